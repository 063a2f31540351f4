"""What is asked of a cascade, checked and with every default filled in, before anything is computed.

A plain `sampler` or `steps` holds for every stage; a plain `guidance` is the base stage's, which decides
what the picture shows, and the others keep their own weights. A dictionary {stage: value} reaches any stage.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ediffi_jax import models, samplers
from ediffi_jax.conditioning import ENCODERS
from ediffi_jax.encoders import Encoders
from ediffi_jax.errors import nearest
from ediffi_jax.paint import PaintError, Plan, make_plan
from ediffi_jax.pictures import read_style
from ediffi_jax.release import SamplerSpec, StageSpec
from ediffi_jax.stage import THRESHOLDS, CascadeError

BATCH_SIZE = 8  # images per device in one program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to sample.

    Attributes:
        prompts: P texts.
        num: images per prompt; image k of prompt p has index p * num + k.
        seed: in [0, 2^32).
        negative: empty, or one text per prompt that guidance leads away from.
        style: per prompt an RGB image for CLIP, or None.
        encoders: which of t5, clip_text, clip_image the images are conditioned on.
        stages: sampling settings of every stage.
        batch_size: images at a time.
        paint: painted phrases, or None.
        style_weight: {stage: weight of guidance by the style image}, where it has one of its own.
        first: index of the first image, where these are a piece of a longer list: its noise is that of the whole.
    """

    prompts: tuple[str, ...]
    num: int
    seed: int
    negative: tuple[str, ...]
    style: UInt8[np.ndarray, "p s s 3"] | None
    encoders: tuple[str, ...]
    stages: Mapping[str, SamplerSpec]
    batch_size: int
    paint: Plan | None = None
    style_weight: Mapping[str, float] = dataclasses.field(default_factory=dict)
    first: int = 0

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.prompts) * self.num

    def batches(self, devices: int = 1) -> list[tuple[np.ndarray, int]]:
        """Pieces of the work: (image indices padded to a round size, how many of them count).

        Sizes are `batch_size` and, for the rest, the next power of two, so that few programs are
        compiled; padding repeats the last image. With several devices sizes are multiples of their number.
        """
        pieces = []
        for start in range(0, self.total, self.batch_size):
            count = min(self.batch_size, self.total - start)
            size = min(1 << (count - 1).bit_length(), self.batch_size)
            size = -(-size // devices) * devices
            pieces.append((start + np.minimum(np.arange(size), count - 1), count))
        return pieces


def make_request(
    specs: Sequence[StageSpec],
    vision_size: int,
    prompts: str | Sequence[str],
    *,
    num: int = 1,
    seed: int = 0,
    guidance: float | Mapping[str, float] | None = None,
    negative: str | Sequence[str] | None = None,
    style: Any = None,
    encoders: Sequence[str] | None = None,
    sampler: str | Mapping[str, str] | None = None,
    steps: int | Mapping[str, int] | None = None,
    batch_size: int | None = None,
    paint: Any = None,
    paint_weight: float | Sequence[float] | None = None,
    paint_stages: str | Sequence[str] | None = None,
    style_weight: float | Mapping[str, float] | None = None,
    first: int = 0,
    devices: int = 1,
    readers: Encoders | None = None,
) -> Request:
    """Checks what a user asks for; see `Cascade.sample` for the arguments.

    Args:
        specs: of the stages.
        vision_size: pixels that the image encoder sees; 0 without one.
        first: index of the first image; `Request.first`.
        devices: the batch size is a multiple of their number.
        readers: the encoders, in whose tokens painted phrases are found; needed only with paint.

    Raises:
        CascadeError, SamplerError, PictureError, PaintError: what is wrong, in one line.
    """
    texts = _texts(prompts, "prompts")
    stages = _stages(specs, guidance, sampler, steps)
    wanted = _encoders(encoders, style)
    return Request(
        prompts=texts,
        num=_whole(num, "num", 1),
        seed=_whole(seed, "seed", 0, 2**32 - 1),
        negative=_negative(negative, len(texts), stages),
        style=_style(style, len(texts), vision_size),
        encoders=wanted,
        stages=stages,
        batch_size=BATCH_SIZE * devices if batch_size is None else _whole(batch_size, "batch_size", 1),
        paint=_paint(specs, texts, paint, paint_weight, paint_stages, wanted, readers),
        style_weight=_style_weight(style_weight, style, [spec.name for spec in specs]),
        first=_whole(first, "first", 0, 2**32 - 1),
    )


def _texts(prompts: str | Sequence[str], what: str) -> tuple[str, ...]:
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not texts:
        raise CascadeError(f"{what} is empty; expected at least one text")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise CascadeError(f"{what}[{index}] is {text!r}; expected a text that is not empty")
    return texts


def _whole(value: Any, name: str, low: int, high: int | None = None) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        span = f"from {low} to {high}" if high is not None else f">= {low}"
        raise CascadeError(f"{name} is {value!r}; expected a whole number {span}")
    return int(value)


def _stages(specs: Sequence[StageSpec], guidance: Any, sampler: Any, steps: Any) -> dict[str, SamplerSpec]:
    """Every stage's settings, with the user's wishes over its defaults."""
    names = [spec.name for spec in specs]
    weights = _per_stage(guidance, names, "guidance", names[:1])
    kinds = _per_stage(sampler, names, "sampler", names)
    counts = _per_stage(steps, names, "steps", names)
    stages = {}
    for spec in specs:
        change: dict[str, Any] = {}
        if spec.name in weights:
            change["guidance"] = _weight(weights[spec.name])
        if spec.name in counts:
            change["steps"] = _whole(counts[spec.name], "steps", 1)
        if spec.name in kinds:
            change["name"] = kinds[spec.name]
        settings = dataclasses.replace(spec.sampler, **change)
        samplers.get(settings.name)  # raises SamplerError with the nearest name
        if settings.threshold is not None and settings.threshold not in THRESHOLDS:
            raise CascadeError(f"unknown threshold {settings.threshold!r}{nearest(settings.threshold, THRESHOLDS)}")
        stages[spec.name] = settings
    return stages


def _per_stage(value: Any, names: Sequence[str], what: str, plain: Sequence[str]) -> dict[str, Any]:
    """{stage: value} of a dictionary, or of a plain value for the stages `plain`."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(plain, value)
    for name in value:
        if name not in names:
            raise CascadeError(f"{what} names the unknown stage {name!r}{nearest(str(name), names)}")
    return dict(value)


def _weight(value: Any, name: str = "guidance") -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError) as error:
        raise CascadeError(f"{name} is {value!r}; expected a number, 0 for none") from error
    if not math.isfinite(weight):
        raise CascadeError(f"{name} is {weight}; expected a finite number, 0 for none")
    return weight


def _negative(negative: str | Sequence[str] | None, prompts: int, stages: Mapping[str, SamplerSpec]) -> tuple[str, ...]:
    if negative is None:
        return ()
    texts = _texts(negative, "negative")
    if len(texts) not in (1, prompts):
        raise CascadeError(f"{len(texts)} negative prompts for {prompts} prompts; expected one, or one each")
    if not any(settings.guidance for settings in stages.values()):
        raise CascadeError("a negative prompt acts through guidance, which is 0 in every stage; expected a weight > 0")
    return texts * prompts if len(texts) == 1 else texts


def _style(style: Any, prompts: int, size: int) -> np.ndarray | None:
    if style is None:
        return None
    if not size:
        raise CascadeError("this cascade's encoders see no pictures; expected no style image")
    several = isinstance(style, (list, tuple)) or (isinstance(style, np.ndarray) and style.ndim == 4)
    images = [read_style(image, size) for image in (style if several else [style])]
    if len(images) not in (1, prompts):
        raise CascadeError(f"{len(images)} style images for {prompts} prompts; expected one, or one each")
    return np.stack(images * prompts if len(images) == 1 else images)


def _style_weight(value: Any, style: Any, names: Sequence[str]) -> dict[str, float]:
    if value is None:
        return {}
    if style is None:
        raise CascadeError("style_weight without a style image; expected style= with it")
    weights = _per_stage(value, names, "style_weight", names[:1])
    for weight in weights.values():
        if not _weight(weight, "style_weight") >= 0:
            raise CascadeError(f"style_weight is {weight}; expected a number >= 0; 0 takes the style as it comes")
    return {name: float(weight) for name, weight in weights.items()}


def _encoders(encoders: Sequence[str] | None, style: Any) -> tuple[str, ...]:
    wanted = ENCODERS if encoders is None else (encoders,) if isinstance(encoders, str) else tuple(encoders)
    for name in wanted:
        if name not in ENCODERS:
            raise CascadeError(f"unknown encoder {name!r}{nearest(str(name), ENCODERS)}")
    if not wanted:
        raise CascadeError(f"encoders is empty; expected some of {', '.join(ENCODERS)}")
    if style is None and encoders is not None and wanted == ("clip_image",):
        raise CascadeError("encoders is only clip_image, and there is no style image; expected style=")
    if style is not None and "clip_image" not in wanted:
        raise CascadeError("a style image acts through the encoder clip_image, which encoders leaves out")
    return tuple(name for name in ENCODERS if name in wanted)


def _paint(
    specs: Sequence[StageSpec],
    texts: Sequence[str],
    paint: Any,
    weight: float | Sequence[float] | None,
    stages: str | Sequence[str] | None,
    wanted: Sequence[str],
    readers: Encoders | None,
) -> Plan | None:
    """The painting of all prompts, None if there is none."""
    if paint is None or paint == {} or (isinstance(paint, (list, tuple)) and not any(paint)):
        if weight is not None:
            raise PaintError("paint_weight without paint; expected paint={phrase: mask} with it")
        return None
    if readers is None:
        raise TypeError("painting needs the encoders: give readers, or ask through `Cascade.request`")
    by_name = {spec.name: spec for spec in specs}
    names = specs[0].name if stages is None else stages
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in by_name:
            raise PaintError(f"paint_stages names the unknown stage {name!r}{nearest(str(name), by_name)}")
        if not models.build(by_name[name].model).cross_attention_resolutions:
            raise PaintError(f"stage {name!r} has no cross-attention, which painting acts through; expected another")
    return make_plan(texts, paint, weight, names, size=specs[0].resolution, encoders=readers, used=wanted)
