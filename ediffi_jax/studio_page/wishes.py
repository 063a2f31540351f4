"""What the page's controls say, as they arrive from a browser, turned into arguments of `Cascade.request`."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ediffi_jax.cascade import Cascade
from ediffi_jax.conditioning import ENCODERS
from ediffi_jax.paint.canvas import TOLERANCE, from_canvas, rgb
from ediffi_jax.request import Request
from ediffi_jax.studio_page.limits import Limits, StudioError

DATA_URL = "data:image/png;base64,"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """A request of the page, within the limits.

    Attributes:
        prompt: text.
        negative: what to lead away from, "" for nothing.
        num, seed: pictures, and their seed.
        guidance: of the base stage.
        steps: of the base stage.
        canvas: RGBA, on which each painted phrase has a colour of its own; None if nothing is painted.
        legend: {"#rrggbb": phrase} of the colours that are on the canvas.
        paint_weight: w'.
        style: RGB, or None.
        style_weight: of guidance by the style alone; None guides by it together with the text.
        encoders: to condition on; None for all.
    """

    prompt: str
    negative: str
    num: int
    seed: int
    guidance: float
    steps: int
    canvas: Image.Image | None
    legend: Mapping[str, str]
    paint_weight: float
    style: Image.Image | None
    style_weight: float | None
    encoders: tuple[str, ...] | None

    def request(self, cascade: Cascade) -> Request:
        """Checked against the cascade; raises a UserError that says what is wrong."""
        painted = from_canvas(self.canvas, self.legend) if self.canvas is not None else None
        return cascade.request(
            self.prompt, num=self.num, seed=self.seed, guidance=self.guidance, negative=self.negative or None,
            steps={cascade.stages[0].spec.name: self.steps}, paint=painted,
            paint_weight=self.paint_weight if painted else None,
            style=self.style, style_weight=self.style_weight, encoders=self.encoders,
        )  # fmt: skip


def read_wishes(
    limits: Limits,
    prompt: Any,
    painted: Any,
    style: str | os.PathLike | None,
    encoders: Sequence[str],
    seed: Any,
    num: Any,
    steps: Any,
    guidance: Any,
    paint_weight: Any,
    style_weight: Any,
    negative: Any,
) -> Wishes:
    """The values of the controls, in the page's order.

    Raises:
        StudioError: a value that is none, or beyond the limits.
    """
    canvas, legend = read_canvas(painted, limits)
    seen = tuple(name for name in ENCODERS if name in encoders)
    if not seen:
        raise StudioError(f"no encoder is chosen; expected some of {', '.join(ENCODERS)}")
    picture = None if style is None else limits.open_picture(style, "the style picture").convert("RGB")
    weight = None if picture is None or style_weight in (None, "") else _number(style_weight, "style weight", 0, 100)
    return Wishes(
        prompt=_text(prompt, "prompt", limits), negative=_text(negative, "negative prompt", limits, empty=True),
        num=_whole(num, "pictures", 1, limits.pictures), seed=_whole(seed, "seed", 0, 2**32 - 1),
        steps=_whole(steps, "steps", 1, limits.steps), guidance=_number(guidance, "guidance", 0, 100),
        canvas=canvas, legend=legend, paint_weight=_number(paint_weight, "paint weight", 0, 100),
        style=picture, style_weight=weight, encoders=None if len(seen) == len(ENCODERS) else seen,
    )  # fmt: skip


def read_canvas(painted: Any, limits: Limits) -> tuple[Image.Image | None, dict[str, str]]:
    """The painter's value, {"canvas": data URL, "legend": {colour: phrase}}: canvas and the legend of what is on it.

    Raises:
        StudioError: not such a value.
    """
    if not painted or not painted.get("canvas"):
        return None, {}
    url, legend = painted["canvas"], painted.get("legend") or {}
    if not isinstance(url, str) or not url.startswith(DATA_URL) or not isinstance(legend, dict):
        raise StudioError("the canvas is damaged; expected a PNG as a data URL")
    try:
        content = base64.b64decode(url[len(DATA_URL) :], validate=True)
    except (ValueError, binascii.Error) as error:
        raise StudioError("the canvas is damaged; expected base64") from error
    canvas = limits.open_picture(content, "the canvas").convert("RGBA")
    pixels = np.asarray(canvas)
    opaque = pixels[:, :, 3] >= 128
    there = {
        colour: str(phrase)
        for colour, phrase in legend.items()
        if (opaque & (np.abs(pixels[:, :, :3].astype(np.int16) - rgb(colour)) <= TOLERANCE).all(axis=2)).any()
    }
    return (canvas, there) if there else (None, {})


def _text(value: Any, what: str, limits: Limits, empty: bool = False) -> str:
    text = str(value or "").strip()
    if not text and not empty:
        raise StudioError(f"the {what} is empty; expected a text such as 'a red circle and a blue square'")
    if len(text) > limits.characters:
        raise StudioError(f"the {what} has {len(text)} characters; expected at most {limits.characters}")
    return text


def _number(value: Any, what: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise StudioError(f"{what} is {value!r}; expected a number from {low:g} to {high:g}") from error
    if not (math.isfinite(number) and low <= number <= high):
        raise StudioError(f"{what} is {number:g}; expected a number from {low:g} to {high:g}")
    return number


def _whole(value: Any, what: str, low: int, high: int) -> int:
    number = _number(value, what, low, high)
    if number != int(number):
        raise StudioError(f"{what} is {number:g}; expected a whole number from {low} to {high}")
    return int(number)
