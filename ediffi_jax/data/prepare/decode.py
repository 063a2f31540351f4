"""Encoded picture -> RGB array, whatever it is; damage and traps become a `Rejection`.

    bytes ─header─▶ size, format ─draft─▶ pixels ─EXIF─▶ upright ─palette, 16 bit, profile─▶ RGB(A) ─white─▶ RGB

The header is read first: a picture with too many pixels is refused before memory is taken. JPEGs much larger
than what is wanted are decoded at 1/2, 1/4 or 1/8 of their size (the decoder leaves out high frequencies).
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ediffi_jax.data.prepare.reasons import Rejection

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF",
    ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM",
}  # fmt: skip
ORIENTATION = 0x0112  # EXIF
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")  # of what is told broken from cut off
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")

Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and has a name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What is known before decoding: sides in pixels as seen (after EXIF rotation), and what was mended."""

    width: int
    height: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """How pictures are decoded.

    Attributes:
        side: of the square that will be made of them; JPEGs are decoded at no less than twice it.
        max_pixels: that a picture may have.
        exif_rotation: whether to turn pictures upright.
        colour_profiles: whether to convert from an embedded profile to sRGB.
    """

    side: int
    max_pixels: int = 100_000_000
    exif_rotation: bool = True
    colour_profiles: bool = True

    def open(self, data: bytes, name: str = "") -> tuple[Image.Image, Header]:
        """The picture, not yet decoded, and its header. Raises Rejection.

        Args:
            data: the file's bytes.
            name: the file's name, whose extension should fit.
        """
        if not data:
            raise Rejection("empty_file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of metadata that is not used
                image = Image.open(io.BytesIO(data), formats=FORMATS)
                turned = self.exif_rotation and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        except Exception as error:  # parsers of hostile files raise anything
            if isinstance(error, UnidentifiedImageError) and not data.startswith(SIGNATURES):
                raise Rejection("not_an_image", f"{len(data)} bytes that begin with {data[:8]!r}") from error
            raise _damage(error, data) from error
        width, height = image.size
        if width * height > self.max_pixels:
            raise Rejection("too_many_pixels", f"{width}x{height}")
        expected = EXTENSIONS.get(PurePosixPath(name).suffix.lower())
        notes = ["wrong_extension"] if expected and image.format not in (expected, "MPO") else []
        notes += ["animated"] if getattr(image, "n_frames", 1) > 1 and image.format in ("GIF", "WEBP", "PNG") else []
        width, height = (height, width) if turned else (width, height)
        return image, Header(width=width, height=height, notes=tuple(notes))

    def pixels(self, image: Image.Image, data: bytes) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[str, ...]]:
        """Decodes what `open` gave for `data`; returns RGB, perhaps reduced, and what was mended. Raises Rejection."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.draft(None, (2 * self.side, 2 * self.side))
                image.load()
                profile = image.info.get("icc_profile") if self.colour_profiles else None
                image = ImageOps.exif_transpose(image) if self.exif_rotation else image
                picture, noted = to_rgb(image, profile)
        except Exception as error:  # as above
            raise _damage(error, data) from error
        return np.asarray(picture), noted


def _damage(error: Exception, data: bytes) -> Rejection:
    """What is wrong with bytes that could not be decoded: a part of them, or their end."""
    cut = {
        b"\xff\xd8": b"\xff\xd9" not in data[-1024:],  # JPEG's end of image; some cameras write more behind it
        b"\x89P": b"IEND" not in data[-1024:],
        b"GI": not data.endswith(b";"),
        b"RI": int.from_bytes(data[4:8], "little") + 8 > len(data),  # WebP in RIFF
    }.get(data[:2], "truncated" in str(error))
    return Rejection("truncated" if cut else "unreadable", f"{type(error).__name__}: {error}")


def to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """A decoded picture of any mode as RGB on white; a profile other than sRGB is converted from.

    Args:
        image: of any mode of Pillow's.
        profile: the ICC profile it came with.

    Returns:
        The picture, and ("profile_unreadable",) if the profile was of no use.
    """
    if image.mode in SIXTEEN_BITS:  # Pillow would clip them
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    if image.mode in ("1", "P", "PA", "La", "RGBa", "RGBX"):
        transparent = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if alpha is not None:
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    noted: tuple[str, ...] = ()
    if profile:
        try:
            image = _to_srgb(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError):
            noted = ("profile_unreadable",)
    image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image, noted


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    name = (source.profile.profile_description or "").lower()
    if "srgb" in name and image.mode == "RGB":
        return image
    space = {"RGB": ("RGB",), "GRAY": ("L",), "CMYK": ("CMYK",)}.get(source.profile.xcolor_space.strip(), ())
    if image.mode not in space:  # a gray picture with a profile of colours, say
        raise ValueError(f"a {source.profile.xcolor_space} profile on a {image.mode} picture")
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
