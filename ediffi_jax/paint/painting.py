"""Painted phrases as the network takes them (eDiff-I, section 4.3: paint-with-words, without training).

    A[i, t] = mask of the phrase that token t belongs to, at image token i; 0 if it belongs to none
    logits  = (Q K^T + w A) / sqrt(d)         w = w' log(1 + sigma) max(Q K^T)

A phrase is located in the whole prompt as each text encoder reads it, so its columns are several, in
CLIP's part of the context and in T5's. A token of two phrases gets the sum of their masks. w' is
the `paint_weight` that a user gives; the null pass of guidance is not painted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from ediffi_jax.encoders import Encoders
from ediffi_jax.models import Paint
from ediffi_jax.paint import masks, spans
from ediffi_jax.paint.errors import PaintError
from ediffi_jax.types import PerImage

# w' when none is given: where control stops growing on the bundled cascade, see docs/control.md.
PAINT_WEIGHT = 1.2


@flax.struct.dataclass
class Painting:
    """Rows of a batch.

    Attributes:
        masks: A, float [b, h, w, t] at any size, t in the order of the context: CLIP text, T5, CLIP image, null.
        weight: w' [b], 0 where nothing is painted.
    """

    masks: Float[Array, "b h w t"]
    weight: PerImage

    def at(self, c_noise: PerImage) -> Paint:
        """What the network is given at the noise level c_noise = ln(sigma) / 4, [b]."""
        return Paint(masks=self.masks, weight=self.weight * jax.nn.softplus(4.0 * c_noise))  # = log(1 + sigma)

    def unpainted(self) -> Painting:
        """The same shapes with weight 0."""
        return self.replace(weight=0 * self.weight)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stroke:
    """One painted phrase of one prompt.

    Attributes:
        phrase: as it was given.
        columns: of the context, its tokens in both encoders.
        levels: its mask at the base stage's resolution, 0 to 255.
        source: text that gives the mask again; see `masks.read`.
        sha256: of the mask's file, or of its levels where there is no file.
    """

    phrase: str
    columns: tuple[int, ...]
    levels: UInt8[np.ndarray, "r r"]
    source: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What is painted in a request.

    Attributes:
        strokes: of each prompt.
        weights: w' of each prompt.
        stages: names of the stages that follow the painting.
        tokens: t, columns of the context.
    """

    strokes: tuple[tuple[Stroke, ...], ...]
    weights: tuple[float, ...]
    stages: tuple[str, ...]
    tokens: int

    def painting(self) -> Painting | None:
        """Rows [P, ...] on the host; None if no prompt is painted with a weight, and then nothing is changed at all."""
        weights = [weight if strokes else 0.0 for strokes, weight in zip(self.strokes, self.weights, strict=True)]
        if not any(weights):
            return None
        size = next(strokes[0].levels.shape[0] for strokes in self.strokes if strokes)
        a = np.zeros((len(self.strokes), size, size, self.tokens), np.float32)
        for row, strokes in enumerate(self.strokes):
            for stroke in strokes:
                a[row, :, :, list(stroke.columns)] += stroke.levels / np.float32(255)
        return Painting(masks=a, weight=np.array(weights, np.float32))

    def record(self, prompt: int) -> list[dict[str, Any]]:
        """What a sample's record says of its prompt's painting."""
        weight = self.weights[prompt]
        return [
            {"phrase": stroke.phrase, "mask": stroke.source, "sha256": stroke.sha256, "weight": weight}
            for stroke in self.strokes[prompt]
        ]

    def settings(self) -> dict[str, Any]:
        """The arguments of `Cascade.sample` that give this plan again."""
        paint = [{stroke.phrase: stroke.source for stroke in strokes} or None for strokes in self.strokes]
        return {"paint": paint, "paint_weight": list(self.weights), "paint_stages": list(self.stages)}


def make_plan(
    prompts: Sequence[str],
    paint: Mapping[str, Any] | Sequence[Mapping[str, Any] | None],
    weight: float | Sequence[float] | None,
    stages: Sequence[str],
    *,
    size: int,
    encoders: Encoders,
    used: Collection[str],
) -> Plan:
    """Locates phrases, reads masks, checks weights.

    Args:
        prompts: P texts.
        paint: {phrase: mask} for all prompts, or P of them (None: not painted).
        weight: w', one for all or one each; default `PAINT_WEIGHT`.
        stages: names, checked already.
        size: the base stage's resolution.
        encoders: whose tokens the phrases are found among.
        used: which of "t5", "clip_text", "clip_image" the pictures are conditioned on.

    Raises:
        PaintError: what is wrong, in one line.
    """
    paints = [paint] * len(prompts) if isinstance(paint, Mapping) else paint
    if not isinstance(paints, (list, tuple)) or not all(isinstance(each, (Mapping, type(None))) for each in paints):
        kind = type(paint).__name__
        raise PaintError(f"paint is {kind}; expected {{phrase: mask}}, or a list with one (or None) a prompt")
    if len(paints) != len(prompts):
        raise PaintError(f"{len(paints)} paintings for {len(prompts)} prompts; expected one for all, or one each")
    strokes = tuple(
        tuple(_stroke(prompt, phrase, mask, size, encoders, used) for phrase, mask in (each or {}).items())
        for prompt, each in zip(prompts, paints, strict=True)
    )
    return Plan(
        strokes=strokes,
        weights=_weights(weight, len(prompts)),
        stages=tuple(stages),
        tokens=encoders.spec.clip_tokens + encoders.spec.t5_tokens + 2,
    )


def _stroke(prompt: str, phrase: str, mask: Any, size: int, encoders: Encoders, used: Collection[str]) -> Stroke:
    found = columns(prompt, phrase, encoders, used)
    try:
        levels, source, digest = masks.read(mask, size)
    except PaintError as error:
        raise PaintError(f"paint {phrase!r}: {error}") from error
    return Stroke(phrase=phrase, columns=found, levels=levels, source=source, sha256=digest)


def columns(prompt: str, phrase: str, encoders: Encoders, used: Collection[str]) -> tuple[int, ...]:
    """The columns of the context that hold a phrase's tokens, CLIP's then T5's.

    Raises:
        PaintError: the phrase is not in the prompt, or an encoder in use does not read as far.
    """
    tokenizers = {
        "clip_text": (encoders.clip_tokenizer, 0),
        "t5": (encoders.t5_tokenizer, encoders.spec.clip_tokens),
    }
    reading = {name: each for name, each in tokenizers.items() if name in used and each[0] is not None}
    if not reading:
        raise PaintError("painting acts through the encoders t5 and clip_text, and neither is in use; expected one")
    begin, end = spans.find(prompt, phrase)
    found: list[int] = []
    for name, (tokenizer, first) in reading.items():
        pieces = [i for i, (a, b) in enumerate(tokenizer.offsets(prompt)) if a < end and b > begin]
        if pieces and pieces[-1] >= tokenizer.room:
            raise PaintError(
                f"the phrase {phrase!r} is cut off: {tokenizer.name} reads the first {tokenizer.room} tokens of a"
                f" prompt (encoder {name}); expected a shorter prompt, or the phrase earlier in it"
            )
        found += [first + len(tokenizer.start) + i for i in pieces]
    if not found:
        raise PaintError(f"the phrase {phrase!r} has no token of its own; expected words that an encoder reads")
    return tuple(found)


def _weights(weight: float | Sequence[float] | None, count: int) -> tuple[float, ...]:
    given = PAINT_WEIGHT if weight is None else weight
    values = list(given) if isinstance(given, (list, tuple, np.ndarray)) and np.ndim(given) else [given] * count
    if len(values) != count:
        raise PaintError(f"{len(values)} paint weights for {count} prompts; expected one for all, or one each")
    return tuple(_weight(value) for value in values)


def _weight(value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError) as error:
        raise PaintError(f"paint_weight is {value!r}; expected a number >= 0, such as {PAINT_WEIGHT}") from error
    if not math.isfinite(weight) or weight < 0:
        raise PaintError(f"paint_weight is {weight:g}; expected a finite number >= 0, such as {PAINT_WEIGHT}")
    return weight
