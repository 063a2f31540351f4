"""Pictures to look at in a notebook, with what was painted laid over them.

    shown = (1 - a m) picture + a m colour      m the phrase's mask, a = OPACITY; its edge is drawn in full colour
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ediffi_jax.paint import masks
from ediffi_jax.paint.palette import PALETTE
from ediffi_jax.pictures import PictureError, contact_sheet

OPACITY = 0.3
LEAST = 192  # pixels; smaller pictures are enlarged, pixel by pixel
LINE = 20  # height of a line of the legend

Picture = UInt8[np.ndarray, "h w 3"]


def show(
    images: Any, captions: str | Sequence[str] | None = None, paint: Any = None, columns: int | None = None
) -> Image.Image:
    """One picture of all images; a notebook's cell that ends in it displays it.

    Args:
        images: uint8 [n, h, w, 3] as `Cascade.sample` gives them, or one [h, w, 3].
        captions: one text for each image; default none.
        paint: {phrase: mask} as given to `Cascade.sample`, or a list with one (or None) for each image. Its masks are
            laid over the images in colour, and a legend stands below.
        columns: images per row; default about as many as rows.

    Returns:
        A PIL image; `.save("file.png")` writes it.

    Raises:
        PictureError: no images, or not one caption or painting each.
        PaintError: a mask that cannot be read.
    """
    pictures = _pictures(images)
    texts = [captions] * len(pictures) if isinstance(captions, str) else captions
    paintings = list(paint) if isinstance(paint, (list, tuple)) else [paint] * len(pictures)
    if len(paintings) != len(pictures):
        raise PictureError(f"{len(paintings)} paintings for {len(pictures)} pictures; expected one, or one each")
    colours = _colours(paintings)
    shown = [overlay(picture, one, colours) for picture, one in zip(pictures, paintings, strict=True)]
    sheet = contact_sheet(shown, texts, columns)
    return Image.fromarray(_with_legend(sheet, colours) if colours else sheet)


def overlay(picture: Picture, paint: Mapping[str, Any] | None, colours: Mapping[str, str]) -> Picture:
    """The picture with each phrase's mask over it in its colour ("#rrggbb")."""
    height, width = picture.shape[:2]
    mixed = picture.astype(np.float32)
    for phrase, mask in (paint or {}).items():
        levels = masks.read(mask, 256)[0]
        own = np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        colour = np.array(ImageColor.getrgb(colours[phrase]), np.float32)
        share = np.maximum(OPACITY * own, _edge(own))[..., None]
        mixed += share * (colour - mixed)
    return np.rint(mixed).astype(np.uint8)


def _edge(own: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """1 on pixels of the mask that have a neighbour outside; the picture's border is no edge."""
    inside = own >= 0.5
    padded = np.pad(inside, 1, mode="edge")
    all_inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return (inside & ~all_inside).astype(np.float32)


def _pictures(images: Any) -> list[Picture]:
    """A list of pictures, small ones enlarged. Raises PictureError for anything else."""
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise PictureError(f"images are {array.dtype}{list(array.shape)}; expected uint8 [n, h, w, 3]")
    times = max(1, -(-LEAST // min(array.shape[1:3])))
    return list(array.repeat(times, axis=1).repeat(times, axis=2))


def _colours(paintings: Sequence[Mapping[str, Any] | None]) -> dict[str, str]:
    """Every phrase's colour, in the order in which they come."""
    phrases = dict.fromkeys(phrase for painting in paintings for phrase in painting or {})
    return {phrase: PALETTE[index % len(PALETTE)] for index, phrase in enumerate(phrases)}


def _with_legend(sheet: Picture, colours: Mapping[str, str]) -> Picture:
    """The sheet with a line for each phrase below."""
    height, width = sheet.shape[:2]
    whole = Image.new("RGB", (width, height + LINE * len(colours) + 4), "white")
    whole.paste(Image.fromarray(sheet), (0, 0))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=13)
    for row, (phrase, colour) in enumerate(colours.items()):
        y = height + LINE * row
        draw.rectangle((6, y + 3, 18, y + 15), fill=colour)
        draw.text((26, y + 1), phrase, fill="black", font=font)
    return np.asarray(whole)
