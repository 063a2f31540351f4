"""What the denoiser is told about the picture, as a pytree; dropped, nulled, selected encoder by encoder.

    context = CLIP text [Lc, Dc] + T5 [Lt, Dt] + CLIP image [1, Dp]          (eDiff-I, section 4.1)

In training each encoder of each sample is dropped on its own, with probability 0.2 (CLIP text), 0.25
(T5), 0.9 (CLIP image), so that any subset of them works at sampling; all three are dropped together
in 0.2 * 0.25 * 0.9 = 4.5 % of the samples, which is what guidance needs. A dropped encoder is zeros
*and* masked out, hence the null condition does not depend on the length of the prompt it replaces.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ediffi_jax.errors import UserError, nearest
from ediffi_jax.types import Scalar, TokenMask, Tokens, Vectors

ENCODERS = ("clip_text", "t5", "clip_image")


class ConditioningError(UserError):
    """A condition that cannot be used: an encoder's name that does not exist."""


@flax.struct.dataclass
class Conditioning:
    """Embeddings of a batch; masks are True where a token (or the image) exists.

    Attributes:
        clip_text: float [b, Lc, Dc], CLIP text tokens after the final norm.
        clip_text_mask: bool [b, Lc].
        clip_pooled: float [b, Dp], the text in CLIP's joint space, unit variance a channel.
        t5: float [b, Lt, Dt], T5 encoder tokens.
        t5_mask: bool [b, Lt].
        clip_image: float [b, Dp], a picture in CLIP's joint space, unit variance a channel.
        clip_image_mask: bool [b].
    """

    clip_text: Tokens
    clip_text_mask: TokenMask
    clip_pooled: Vectors
    t5: Tokens
    t5_mask: TokenMask
    clip_image: Vectors
    clip_image_mask: Bool[Array, "b"]


@dataclass(frozen=True, kw_only=True)
class ConditioningSpec:
    """Sizes of a `Conditioning`: token counts and feature widths of each encoder."""

    clip_tokens: int
    clip_width: int
    pooled_width: int
    t5_tokens: int
    t5_width: int


# The paper's encoders (eDiff-I, section 4.1): T5-XXL at 113 tokens, both towers of CLIP ViT-L/14.
PAPER = ConditioningSpec(clip_tokens=77, clip_width=768, pooled_width=768, t5_tokens=113, t5_width=4096)


@dataclass(frozen=True, kw_only=True)
class DropRates:
    """Probability in [0, 1] that a sample loses an encoder in training (eDiff-I, section 4.1)."""

    clip_text: float | Scalar = 0.2
    t5: float | Scalar = 0.25
    clip_image: float | Scalar = 0.9


def zeros(batch: int, spec: ConditioningSpec) -> Conditioning:
    """The null condition of `batch` samples: float32 zeros, every mask False."""
    return Conditioning(
        clip_text=jnp.zeros((batch, spec.clip_tokens, spec.clip_width)),
        clip_text_mask=jnp.zeros((batch, spec.clip_tokens), bool),
        clip_pooled=jnp.zeros((batch, spec.pooled_width)),
        t5=jnp.zeros((batch, spec.t5_tokens, spec.t5_width)),
        t5_mask=jnp.zeros((batch, spec.t5_tokens), bool),
        clip_image=jnp.zeros((batch, spec.pooled_width)),
        clip_image_mask=jnp.zeros((batch,), bool),
    )


def null_like(cond: Conditioning) -> Conditioning:
    """The null condition of the same shapes and dtypes as `cond`."""
    return jax.tree.map(jnp.zeros_like, cond)


Kept = dict[str, Bool[Array, "b"]]  # by encoder: which samples keep it


def keep(cond: Conditioning, kept: Kept) -> Conditioning:
    """Zeros and False masks wherever `kept[encoder]` is False; `where`, so that a NaN is dropped too."""

    def per_sample(name: str, leaf: Array) -> Array:
        return jnp.where(kept[name].reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf))

    return Conditioning(
        clip_text=per_sample("clip_text", cond.clip_text),
        clip_text_mask=per_sample("clip_text", cond.clip_text_mask),
        clip_pooled=per_sample("clip_text", cond.clip_pooled),
        t5=per_sample("t5", cond.t5),
        t5_mask=per_sample("t5", cond.t5_mask),
        clip_image=per_sample("clip_image", cond.clip_image),
        clip_image_mask=per_sample("clip_image", cond.clip_image_mask),
    )


def draw_kept(key: Array, batch: int, rates: DropRates, needs_image: Bool[Array, "b"] | None = None) -> Kept:
    """Which encoders each of `batch` samples keeps: one independent draw an encoder and sample; see `drop`."""
    keys = jax.random.split(key, len(ENCODERS))
    kept = {name: jax.random.uniform(keys[i], (batch,)) >= getattr(rates, name) for i, name in enumerate(ENCODERS)}
    if needs_image is not None:
        kept["clip_image"] |= needs_image
    return kept


def drop(
    key: Array,
    cond: Conditioning,
    rates: DropRates = DropRates(),  # noqa: B008 (frozen)
    needs_image: Bool[Array, "b"] | None = None,
) -> Conditioning:
    """Drops each encoder of each sample independently, CLIP's pooled text together with its tokens.

    Args:
        key: one typed PRNG key.
        cond: a batch.
        rates: probabilities, Python floats or traced scalars; 0 keeps all, 1 drops all.
        needs_image: samples whose caption leaves to the image what only it tells; they always keep it.
    """
    return keep(cond, draw_kept(key, cond.clip_image_mask.shape[0], rates, needs_image))


def select(cond: Conditioning, encoders: Collection[str]) -> Conditioning:
    """Keeps the named encoders ("clip_text", "t5", "clip_image") and nulls the others.

    Raises:
        ConditioningError: a name that is no encoder.
    """
    names = (encoders,) if isinstance(encoders, str) else tuple(encoders)
    for name in names:
        if name not in ENCODERS:
            raise ConditioningError(f"no encoder is called {name!r}{nearest(name, ENCODERS)}")
    batch = cond.clip_image_mask.shape[0]
    return keep(cond, {name: jnp.full((batch,), name in names) for name in ENCODERS})
