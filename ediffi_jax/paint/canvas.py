"""Canvases: one colour-coded picture that paints several phrases.

A pixel has a legend's colour if no channel differs by more than `TOLERANCE`, and it is not transparent.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageColor, UnidentifiedImageError

from ediffi_jax import copies
from ediffi_jax.paint.errors import PaintError

TOLERANCE = 12  # levels of 255

Canvas = UInt8[np.ndarray, "h w 4"]


def from_canvas(image: Any, legend: Mapping[str, str]) -> dict[str, Bool[np.ndarray, "h w"]]:
    """The masks of a colour-coded canvas.

    Args:
        image: path, PIL image, or uint8 array [h, w, 3 or 4]; what is transparent has no colour.
        legend: colour ("#ff0000", "#f00" or a name such as "red") -> phrase. Colours match within `TOLERANCE`
            levels in every channel; several colours of one phrase are joined.

    Raises:
        PaintError: no image, no legend, a word that is no colour, colours too alike, or one absent from the canvas.
    """
    check_legend(legend)
    canvas = read_canvas(image)
    masks: dict[str, np.ndarray] = {}
    for colour, phrase in legend.items():
        mask = of_colour(canvas, colour)
        masks[phrase] = masks[phrase] | mask if phrase in masks else mask
    return masks


def check_legend(legend: Mapping[str, str]) -> None:
    """Raises PaintError for an empty legend, a word that is no colour, and colours that a pixel could both have."""
    if not isinstance(legend, Mapping) or not legend:
        raise PaintError(f"the legend is {legend!r}; expected colours and phrases, such as {{'#ff0000': 'red circle'}}")
    seen: dict[str, np.ndarray] = {}
    for name in legend:
        colour = rgb(name)
        for other, value in seen.items():
            if np.abs(colour - value).max() <= 2 * TOLERANCE:
                raise PaintError(f"the legend's colours {other} and {name} are too alike; expected them further apart")
        seen[name] = colour


def read_canvas(image: Any) -> Canvas:
    """A canvas from a path, a PIL image, or a uint8 array. Raises PaintError for anything else."""
    if isinstance(image, (str, os.PathLike)):
        path = copies.local(image)
        if not os.path.exists(path):
            raise PaintError(f"the canvas {str(path)!r} does not exist; expected a picture")
        image = open_picture(path, f"the canvas {str(path)!r}")
    elif not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4) or not array.size:
            raise PaintError(f"the canvas is {array.dtype}{list(array.shape)}; expected uint8 [height, width, 3 or 4]")
        image = Image.fromarray(array)
    return np.asarray(image.convert("RGBA"))


def rgb(name: str) -> Int[np.ndarray, "3"]:
    """A colour's red, green and blue, 0 to 255. Raises PaintError for a word that is no colour."""
    try:
        return np.array(ImageColor.getrgb(str(name).strip())[:3])
    except ValueError as error:
        raise PaintError(f"{name!r} is no colour; expected one such as '#ff0000' or 'red'") from error


def of_colour(canvas: Canvas, name: str) -> Bool[np.ndarray, "h w"]:
    """Where the canvas has the colour. Raises PaintError where nothing has it, naming what there is."""
    opaque = canvas[:, :, 3] >= 128
    mask = opaque & (np.abs(canvas[:, :, :3].astype(np.int16) - rgb(name)) <= TOLERANCE).all(axis=2)
    if not mask.any():
        raise PaintError(f"the canvas has nothing of the legend's colour {name}; its colours are {_colours(canvas)}")
    return mask


def _colours(canvas: np.ndarray, most: int = 8) -> str:
    """The commonest colours of a canvas, in words."""
    colours, counts = np.unique(canvas[canvas[:, :, 3] >= 128][:, :3], axis=0, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:most]
    names = ["#" + bytes(colours[index]).hex() for index in first]
    more = f" and {len(counts) - most} more" if len(counts) > most else ""
    return f"{', '.join(names)}{more}" if names else "none: it is transparent"


def open_picture(file: Path | io.BytesIO, what: str) -> Image.Image:
    """A picture, read to its end. Raises PaintError for a file that is none, and calls it `what`."""
    try:
        picture = Image.open(file)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = " ".join(str(error).split())
        raise PaintError(f"{what} is not an image that can be read ({said}); expected PNG or the like") from error
    return picture
