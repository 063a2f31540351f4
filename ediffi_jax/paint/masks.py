"""Masks: where in the picture a phrase belongs, from whatever a user has at hand.

    "left"  "box:0,0,0.5,1"  "mask.png"  "#ff0000@canvas.png"  PIL image  bool, uint8 or float array
        ─▶  levels uint8 [r, r], r the base stage's resolution; 255 = the phrase's own, 0 = not

Any size and aspect is stretched over the square picture, and averaged over each pixel's area. Pictures count
by their brightness, times their opacity. A float array holds 0 to 1, a whole-number one 0 to 255 or only 0 and 1.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ediffi_jax import copies
from ediffi_jax.errors import nearest
from ediffi_jax.paint.canvas import of_colour, open_picture, read_canvas
from ediffi_jax.paint.errors import PaintError
from ediffi_jax.paint.regions import SIDES, Soft, box

DATA_URI = "data:image/png;base64,"
COLOUR_OF_FILE = re.compile(r"(#[0-9a-fA-F]{3}(?:[0-9a-fA-F]{3})?)@(.+)", re.DOTALL)


def read(mask: Any, size: int) -> tuple[UInt8[np.ndarray, "size size"], str, str]:
    """A mask at the base stage's resolution, text that gives it again, and a hash.

    Args:
        mask: see the top of this module.
        size: height and width of the result.

    Returns:
        levels uint8; the text given, or for an image or array a data URI of the levels; sha256 of the
        file, or of the levels where there is no file.

    Raises:
        PaintError: not a mask, not readable, empty, or too small to leave a trace at this size.
    """
    file = None
    if isinstance(mask, (str, os.PathLike)):
        values, file = _written(os.fspath(mask))
    elif isinstance(mask, Image.Image):
        values = _brightness(mask)
    else:
        values = _array(mask)
    if not values.max() > 0:
        raise PaintError("the mask is empty (nothing is brighter than black); expected some of it painted")
    small = Image.fromarray(np.ascontiguousarray(values, np.float32)).resize((size, size), Image.Resampling.BOX)
    levels = np.clip(np.rint(255 * np.asarray(small)), 0, 255).astype(np.uint8)
    if not levels.any():
        raise PaintError(f"the mask is too small: nothing of it is left at {size}x{size}; expected a larger region")
    source = os.fspath(mask) if isinstance(mask, (str, os.PathLike)) else _data_uri(levels)
    content = levels.tobytes() if file is None else file.read_bytes()
    return levels, source, hashlib.sha256(content).hexdigest()


def _written(text: str) -> tuple[Soft, Path | None]:
    """The mask that a text stands for, and the file that was read for it."""
    if text in SIDES:
        return box(*SIDES[text]), None
    if text.startswith("box:"):
        edges = text[len("box:") :].split(",")
        if len(edges) != 4:
            raise PaintError(f"{text!r} has {len(edges)} numbers; expected box:x0,y0,x1,y1, fractions of the picture")
        return box(*edges), None
    if text.startswith(DATA_URI):
        try:
            file = io.BytesIO(base64.b64decode(text[len(DATA_URI) :], validate=True))
        except ValueError as error:
            raise PaintError("the mask's data: text is damaged; expected base64 of a PNG") from error
        return np.asarray(open_picture(file, "the mask in the data: text").convert("L"), np.float32) / 255, None
    coloured = COLOUR_OF_FILE.fullmatch(text)
    path = copies.local(coloured[2] if coloured else text)
    if not os.path.exists(path):  # unlike `Path.exists`, not shaken by a name of any length
        choices = nearest(text, (*SIDES, "box:x0,y0,x1,y1")) + ", or a file"
        raise PaintError(f"the mask {str(path)!r} does not exist{choices}")
    if coloured:
        return of_colour(read_canvas(path), coloured[1]).astype(np.float32), path
    return _brightness(open_picture(path, f"the mask {str(path)!r}")), path


def _brightness(picture: Image.Image) -> Soft:
    """0 to 1, black where transparent."""
    if picture.mode == "F":
        return _array(np.asarray(picture))
    if picture.mode.startswith("I"):  # 16 bits
        return np.asarray(picture, np.float32).clip(0, 65535) / 65535
    rgba = picture.convert("RGBA")
    gray = np.asarray(rgba.convert("L"), np.float32) * (np.asarray(rgba.getchannel("A"), np.float32) / 255)
    return _of_levels(gray)


def _of_levels(values: np.ndarray) -> Soft:
    """Whole numbers 0 to 255, or a mask of 0 and 1, to 0 to 1."""
    return values.astype(np.float32) / (255 if values.size and values.max() > 1 else 1)


def _array(mask: Any) -> Soft:
    try:
        array = np.asarray(mask)
    except ValueError as error:  # rows of unequal lengths
        raise PaintError(f"the mask is {type(mask).__name__}; expected an image, an array, or a file") from error
    what = f"the mask is {array.dtype}{list(array.shape)}"
    if array.dtype.kind not in "buif":
        raise PaintError(f"the mask is {type(mask).__name__}; expected an image, an array, or a file")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or array.ndim not in (2, 3):
        raise PaintError(f"{what}; expected [height, width]")
    if array.ndim == 3:
        if array.dtype != np.uint8 or array.shape[2] not in (3, 4):
            raise PaintError(f"{what}; expected [height, width], or a picture uint8 [height, width, 3 or 4]")
        return _brightness(Image.fromarray(array))
    if not np.isfinite(array).all():
        raise PaintError(f"{what} and holds values that are no numbers; expected 0 to 1")
    low, high = array.min(), array.max()
    limit = 1 + 1e-6 if array.dtype.kind == "f" else 255
    if low < 0 or high > limit:
        expected = "0 to 1 (float), or 0 to 255 (whole numbers)"
        raise PaintError(f"{what} and holds {low:g} to {high:g}; expected {expected}")
    return array.astype(np.float32) if array.dtype.kind in "bf" else _of_levels(array)


def _data_uri(levels: UInt8[np.ndarray, "h w"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", optimize=True)
    return DATA_URI + base64.b64encode(buffer.getvalue()).decode("ascii")
