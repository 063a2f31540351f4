"""The page's canvas: the phrases of the prompt as coloured chips, and what is painted with them.

The browser's half is painter.js beside this file. Its value is {"canvas": PNG data URL, "legend": {colour: phrase}},
which `wishes.read_canvas` reads.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ediffi_jax.paint import phrases
from ediffi_jax.paint.palette import PALETTE

Box = tuple[str, float, float, float, float]  # phrase; left, top, width, height as fractions of the canvas


def painter(prompt: str, example: Sequence[Box]) -> gr.HTML:
    """The component, with `example` painted on it."""
    return gr.HTML(
        value={}, html_template=_asset("painter.html"), css_template=_asset("painter.css"),
        js_on_load=_asset("painter.js"), elem_id="painter", phrases=phrases(prompt, len(PALETTE)),
        palette=list(PALETTE), example=[list(box) for box in example],
    )  # fmt: skip


def repainted(prompt: str | None) -> Any:
    """The component's update after the prompt has changed."""
    return gr.HTML(phrases=phrases(prompt or "", len(PALETTE)))


def _asset(name: str) -> str:
    return importlib.resources.files("ediffi_jax.studio_page").joinpath(name).read_text(encoding="utf-8")
