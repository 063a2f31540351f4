"""Encoded picture -> the arrays a stage trains on.

    record's picture [S, S] ──box──▶ full [R, R] ──crop──▶ image    [C, C]
                        │               └────box──▶ low ──same crop──▶ low_res [C/f, C/f]
                        └──box──▶ clip_pixels [P, P]    (always the whole picture)

Every reduction is a box average (exact for whole factors), which is antialiased; a crop starts on a
multiple of the factor f, so both crops show the same part to the pixel. A JPEG of at least eight times the size that
is wanted (S) is decoded at a half, a quarter or an eighth of its size, to no less than four times S: JPEG's own
reduction, in its cosine transform, comes before the box average then.
"""

from __future__ import annotations

import dataclasses
import struct

import cv2
import numpy as np
from jaxtyping import UInt8

from ediffi_jax import errors

Picture = UInt8[np.ndarray, "h w 3"]


class LoaderError(errors.UserError):
    """A data set, split, size or record that the loader cannot use."""


MARGIN = 4  # a reduced JPEG is still so many times larger than wanted
# How many times smaller a JPEG is decoded, and OpenCV's flag for it.
REDUCTIONS = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) from the frame header of a JPEG; None if there is none."""
    place = 2 if encoded[:2] == b"\xff\xd8" else len(encoded)
    while place + 9 <= len(encoded) and encoded[place] == 0xFF:
        marker, length = encoded[place + 1], int.from_bytes(encoded[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack_from(">HH", encoded, place + 5)
        place += 1 if marker == 0xFF else 2 + length
    return None


def decode(encoded: bytes, enough: int = 0) -> Picture:
    """PNG, JPEG or WebP bytes -> uint8 RGB [h, w, 3].

    Args:
        encoded: the file.
        enough: a JPEG may come 2, 4 or 8 times smaller, if then its shorter side is no less than this; 0 for never.

    Raises:
        LoaderError: another format, cut off, or more pixels than OpenCV takes.
    """
    size = jpeg_size(encoded) if enough else None
    flag = cv2.IMREAD_COLOR
    if size is not None:
        flag = next((flag for times, flag in REDUCTIONS.items() if min(size) >= times * enough), flag)
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:  # no bytes, or more pixels than OpenCV takes
        picture = None
    if picture is None:
        raise LoaderError(f"a record's picture ({len(encoded)} bytes) is not a readable PNG, JPEG or WebP")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def shrink(picture: Picture, size: int) -> Picture:
    """The box average at `size` pixels; the same array if it has that size."""
    if picture.shape[0] == size and picture.shape[1] == size:
        return picture
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """The sizes of what a stage sees, in pixels.

    Attributes:
        source: of the stored pictures.
        resolution: of the full picture this stage makes; divides `source`.
        low: of the full picture it starts from, 0 for a base model; divides `resolution`.
        crop: side of the part of the full picture to train on, 0 for all of it.
        clip: side of the picture for the CLIP image encoder, 0 for none.
        reduced: whether a JPEG that is much larger than `source` is decoded at a part of its size.
    """

    source: int
    resolution: int
    low: int = 0
    crop: int = 0
    clip: int = 0
    reduced: bool = True

    def __post_init__(self) -> None:
        def whole(a: int, b: int) -> bool:
            return b > 0 and a % b == 0

        if not whole(self.source, self.resolution):
            raise LoaderError(
                f"resolution {self.resolution} does not divide source_resolution {self.source}"
            )
        if self.low and not whole(self.resolution, self.low):
            raise LoaderError(
                f"low_resolution {self.low} does not divide resolution {self.resolution}"
            )
        if self.crop and (self.crop > self.resolution or self.crop % self.factor):
            raise LoaderError(
                f"crop {self.crop} must be at most the resolution {self.resolution} and a multiple "
                f"of {self.factor}"
            )

    @property
    def factor(self) -> int:
        """How many times the low-resolution picture is smaller."""
        return self.resolution // self.low if self.low else 1

    @property
    def side(self) -> int:
        """Side of `image`."""
        return self.crop or self.resolution

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """The keys that `cut` gives, with their shapes."""
        sizes = {"image": self.side}
        sizes |= {"low_res": self.side // self.factor} if self.low else {}
        sizes |= {"clip_pixels": self.clip} if self.clip else {}
        return {name: (size, size, 3) for name, size in sizes.items()}

    def read(self, encoded: bytes) -> Picture:
        """A stored picture decoded and fitted; raises `LoaderError` if it cannot be used."""
        return self.fit(decode(encoded, MARGIN * self.source if self.reduced else 0))

    def fit(self, picture: Picture) -> Picture:
        """The centre square of a stored picture at the source resolution; raises `LoaderError` if it is smaller."""
        if picture.shape[:2] == (self.source, self.source):
            return picture
        height, width = picture.shape[:2]
        side = min(height, width)
        if side < self.source:
            raise LoaderError(f"a stored picture has {height}x{width} pixels; source_resolution is {self.source}")
        top, left = (height - side) // 2, (width - side) // 2
        return shrink(picture[top : top + side, left : left + side], self.source)

    def cut(self, picture: Picture, rng: np.random.Generator) -> dict[str, Picture]:
        """One stored picture -> the arrays of `shapes`; `rng` places the crop."""
        image = shrink(picture, self.resolution)
        if self.crop and self.crop < self.resolution:
            steps = (self.resolution - self.crop) // self.factor + 1
            y, x = rng.integers(steps, size=2) * self.factor
            image = image[y : y + self.crop, x : x + self.crop]
        views = {"image": image}
        if self.low:
            views["low_res"] = shrink(image, self.side // self.factor)
        if self.clip:
            views["clip_pixels"] = shrink(picture, self.clip)
        return views
