"""Paintings as a command line gives them: --paint="red circle=mask.png", or --canvas with a --legend."""

from __future__ import annotations

from collections.abc import Sequence

from ediffi_jax.paint.canvas import check_legend, rgb
from ediffi_jax.paint.errors import PaintError


def parse(paint: Sequence[str], canvas: str | None, legend: str | None) -> dict[str, str] | None:
    """{phrase: mask in words} of the flags, or None if there are none.

    Args:
        paint: each "phrase=mask"; the mask is a file, left, right, top, bottom, or box:x0,y0,x1,y1.
        canvas: a colour-coded picture.
        legend: what its colours paint, "#ff0000=red circle,#0000ff=blue square".

    Raises:
        PaintError: a part without "=", a canvas without a legend, a phrase given twice, or colours too alike.
    """
    if bool(canvas) != bool(legend):
        raise PaintError("--canvas and --legend belong together; expected both, or neither")
    pairs = [_split(text, "--paint", "red circle=mask.png") for text in paint]
    if canvas and legend:
        colours = [_split(part, "--legend", "#ff0000=red circle") for part in legend.split(",")]
        check_legend(dict(colours))
        pairs += [(phrase, f"#{bytes(rgb(colour).tolist()).hex()}@{canvas}") for colour, phrase in colours]
    painted: dict[str, str] = {}
    for phrase, mask in pairs:
        if phrase in painted:
            raise PaintError(f"{phrase!r} is painted twice; expected one mask (its second occurrence is '{phrase}#2')")
        painted[phrase] = mask
    return painted or None


def _split(text: str, flag: str, example: str) -> tuple[str, str]:
    left, mark, right = (part.strip() for part in text.partition("="))
    if not (left and mark and right):
        raise PaintError(f'{flag} has {text!r}; expected such as {flag}="{example}"')
    return left, right
