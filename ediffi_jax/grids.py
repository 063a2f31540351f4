"""The paper's comparisons as one labelled picture each: the same noise all along a row, one thing changed.

    encoders   prompt x (T5 only, CLIP only, both)             eDiff-I, section 4.2
    styles     prompt x (no reference, reference, …)           eDiff-I, section 4.2; the references stand above
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ediffi_jax.cascade import Cascade
from ediffi_jax.pictures import contact_sheet, read_style
from ediffi_jax.stage import CascadeError

ENCODERS: Mapping[str, tuple[str, ...]] = {
    "T5 only": ("t5",),
    "CLIP only": ("clip_text",),
    "T5 and CLIP": ("t5", "clip_text"),
}

Sheet = UInt8[np.ndarray, "h w 3"]


def encoders(cascade: Cascade, prompts: Sequence[str], **wishes: Any) -> Sheet:
    """A row for every prompt, a column for each choice of text encoders.

    Args:
        cascade: what samples.
        prompts: the texts.
        wishes: of `Cascade.sample`, such as seed and guidance; one picture per prompt.

    Raises:
        CascadeError, SamplerError: wishes that cannot be.
    """
    columns = [cascade.sample(prompts, encoders=names, **wishes) for names in ENCODERS.values()]
    return _table(prompts, list(ENCODERS), columns)


def styles(cascade: Cascade, prompts: Sequence[str], references: Sequence[Any], **wishes: Any) -> Sheet:
    """A row for every prompt, a column without a reference and one for each; the references above.

    Args:
        cascade: what samples.
        prompts: the texts.
        references: at least one path, PIL image or uint8 [H, W, 3].
        wishes: of `Cascade.sample`, such as style_weight; one picture per prompt.

    Raises:
        CascadeError, PictureError: no reference, or one that is unreadable, or wishes that cannot be.
    """
    if not references:
        raise CascadeError("a grid of styles without a reference; expected at least one style image")
    side = cascade.stages[-1].spec.resolution
    heads = [np.full((side, side, 3), 255, np.uint8), *(read_style(reference, side) for reference in references)]
    plain = {name: value for name, value in wishes.items() if name != "style_weight"}
    columns = [cascade.sample(prompts, **plain)]
    columns += [cascade.sample(prompts, style=reference, **wishes) for reference in references]
    labels = ["no style", *(f"style {number + 1}" for number in range(len(references)))]
    return _table(prompts, labels, columns, heads)


def _table(
    prompts: Sequence[str], labels: Sequence[str], columns: Sequence[np.ndarray], heads: Sequence[np.ndarray] = ()
) -> Sheet:
    """Pictures columns[c][row], each with its label and prompt below; `heads` are a first row of their own."""
    images = [*heads, *(column[row] for row in range(len(prompts)) for column in columns)]
    captions = [*(labels if heads else ()), *(f"{label} | {prompt}" for prompt in prompts for label in labels)]
    return contact_sheet(images, captions, columns=len(columns))
