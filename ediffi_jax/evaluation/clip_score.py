"""CLIP score: the cosine between a prompt and its picture in CLIP's joint space (Hessel et al. 2021, unscaled).

    score = <text, image> / (|text| |image|)

The mean over pictures is what the curves of eDiff-I show (CLIP ViT-g/14). Pictures are resized as transformers does it:
the central square, Pillow's bicubic, rounded to 8 bits. Any CLIP that `encoders` reads will do; a score compares only
with others of the same CLIP. A CLIP that also conditions the cascade is no impartial judge of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8

from ediffi_jax.devices import default_devices
from ediffi_jax.encoders import Encoders
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.features import clip_params, over_devices, placement
from ediffi_jax.pictures import read_style
from ediffi_jax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class ClipScore:
    """The score of one CLIP model.

    Attributes:
        encoders: with both towers of it.
        devices: what batches are divided over.

    Raises:
        EvaluationError: a tower is missing.
    """

    encoders: Encoders
    devices: tuple[jax.Device, ...] = dataclasses.field(default_factory=default_devices)

    def __post_init__(self) -> None:
        if self.encoders.clip is None or self.encoders.vision is None:
            missing = "text" if self.encoders.clip is None else "image"
            raise EvaluationError(f"these encoders have no CLIP {missing} tower; a CLIP score needs both")

    def __call__(self, prompts: Sequence[str], pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n"]:
        """The cosine of each pair, float32.

        Raises:
            EvaluationError: not one prompt for each picture.
            EncoderError: an empty prompt.
        """
        if len(prompts) != len(pictures):
            raise EvaluationError(f"{len(prompts)} prompts for {len(pictures)} pictures; expected one each")
        return over_devices(self._program, self._placed, self.devices, self._prepare, len(prompts), prompts, pictures)

    def _prepare(self, prompts: Sequence[str], pictures: np.ndarray) -> Any:
        squares = np.stack([read_style(picture, self.encoders.image_size) for picture in pictures])
        tokens = self._text_alone.tokenize(list(prompts))
        return tokens, squares.astype(np.float32) / 255

    @functools.cached_property
    def _text_alone(self) -> Encoders:
        """Without T5, which a score has no use for."""
        return dataclasses.replace(self.encoders, t5=None, t5_tokenizer=None)

    @functools.cached_property
    def _placed(self) -> Params:
        return jax.device_put(clip_params(self.encoders), placement(self.devices, P()))

    @functools.cached_property
    def _program(self) -> Callable[..., Array]:
        def cosine(params: Params, batch: Any) -> Array:
            cond = self._text_alone.apply(params, *batch)
            text, image = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (cond.clip_pooled, cond.clip_image))
            return (text * image).sum(axis=-1)

        return jax.jit(cosine)

    def describe(self) -> dict[str, Any]:
        """What a result says about it."""
        vision = self.encoders.vision.config.vision
        name = f"CLIP {vision.num_hidden_layers}x{vision.hidden_size}/{vision.patch_size} {vision.image_size}px"
        return {"name": name, "fingerprint": self.encoders.fingerprint}
