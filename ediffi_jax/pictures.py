"""Pictures on disk: PNGs that are never half-written, contact sheets, and style images read from anywhere."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ediffi_jax import copies, stores
from ediffi_jax.errors import UserError

SHEET_WIDTH = 2048  # a contact sheet is at most about this wide, pixels
PROBE = ".probe"  # an object that is there for a moment
_GAP, _LINE = 4, 16  # between pictures, and height of a line of text


class PictureError(UserError):
    """An image that cannot be read or used, or a folder that cannot be written."""


def make_folder(path: str | os.PathLike, remote: bool = False) -> Path | epath.Path:
    """Makes a folder and proves that it can be written, before hours are spent on what goes into it.

    Args:
        path: of the folder.
        remote: whether it may be in an object store.

    Raises:
        PictureError: it cannot be made or written.
        StoreError: the store refused or did not answer.
    """
    if stores.is_remote(path):
        return _make_prefix(stores.at(path), remote)
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PictureError(f"cannot write to the folder {folder}: {error.strerror}; expected a writable one") from error
    return folder


def _make_prefix(path: epath.Path, allowed: bool) -> epath.Path:
    """Proves that a store can be written below a path; there is nothing to make."""
    if not allowed:
        raise PictureError(f"{path} is in an object store; expected a folder of this machine, to be copied there after")
    with stores.reaching(path):
        try:
            (path / PROBE).write_bytes(b"")
            (path / PROBE).unlink()
        except FileNotFoundError as error:
            raise PictureError(f"cannot write to {path}: no such bucket") from error
    return path


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file under a temporary name and renames it, or uploads an object, so that it is whole or absent.

    Raises:
        PictureError: the disk is full or the folder gone.
        StoreError: the store refused or did not answer.
    """
    if stores.is_remote(path):
        with stores.reaching(path):
            stores.at(path).write_bytes(data)
        return
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PictureError(f"cannot write {path}: {error.strerror}") from error


def write_png(path: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes an RGB picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], captions: Sequence[str] | None = None, columns: int | None = None
) -> UInt8[np.ndarray, "hs ws 3"]:
    """All pictures in one, row by row, each with its caption below.

    Args:
        images: pictures of one size.
        captions: one per picture, cut to the picture's width; default none.
        columns: pictures per row; default about as many as rows.

    Raises:
        PictureError: no picture, or not one caption each.
    """
    if len(images) == 0:
        raise PictureError("a contact sheet of no pictures; expected at least one")
    if captions is not None and len(captions) != len(images):
        raise PictureError(f"{len(captions)} captions for {len(images)} pictures; expected one each")
    columns = min(columns or int(np.ceil(np.sqrt(len(images)))), len(images))
    height, width = images[0].shape[:2]
    scale = min(1.0, SHEET_WIDTH / (columns * width))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    line = _LINE if captions else 0
    rows = -(-len(images) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + line + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for index, image in enumerate(images):
        x = _GAP + index % columns * (width + _GAP)
        y = _GAP + index // columns * (height + line + _GAP)
        picture = Image.fromarray(np.asarray(image))
        sheet.paste(picture if scale == 1.0 else picture.resize((width, height), Image.Resampling.LANCZOS), (x, y))
        if captions:
            draw.text((x, y + height + 1), _fit(captions[index], width, font), fill="black", font=font)
    return np.asarray(sheet)


def _fit(text: str, width: int, font: Any) -> str:
    """The text, cut with an ellipsis to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def read_style(style: Any, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """A style image as the image encoder wants it: RGB, its centre square, resized.

    Args:
        style: a path on a disk or in an object store, a PIL image, or a uint8 array [H, W, 3].
        size: height and width of the result.

    Raises:
        PictureError: an unreadable file, or an array of another shape or dtype.
        StoreError: it cannot be copied here.
    """
    if isinstance(style, (str, os.PathLike)):
        try:
            picture = Image.open(copies.local(style))
            picture.load()
        except FileNotFoundError as error:
            raise PictureError(f"style image {str(style)!r} does not exist") from error
        except (UnidentifiedImageError, OSError) as error:
            raise PictureError(f"style image {str(style)!r} is unreadable: {error}") from error
    elif isinstance(style, Image.Image):
        picture = style
    else:
        array = np.asarray(style)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
            raise PictureError(f"a style image is {array.dtype}{list(array.shape)}; expected uint8 [H, W, 3]")
        picture = Image.fromarray(array)
    picture = picture.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
