"""Self- and cross-attention over image tokens, with the seam where painted phrases enter.

    y = x + W_o softmax((Q K^T + w A) / sqrt(d)) V          paint-with-words: w = weight * max(Q K^T)

Q comes from the normalised picture; K and V from the same picture (self) or from the context tokens
(cross), where padding is masked out. W_o starts at zero. Logits and softmax are float32.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ediffi_jax.models.blocks import GroupNorm
from ediffi_jax.models.errors import ModelError
from ediffi_jax.types import Features, PerImage, TokenMask, Tokens

Heads = Float[Array, "b n heads d"]
Weights = Float[Array, "b heads q k"]

ATTENTION = "attention"  # the collection of variables that cross-attention puts its weights into, where it is asked for


@flax.struct.dataclass
class Context:
    """What the picture attends to: tokens [b, t, d] and which of them are real, bool [b, t]."""

    tokens: Tokens
    mask: TokenMask


@flax.struct.dataclass
class Paint:
    """Painted phrases: A [b, h, w, t] in [0, 1] at any size, and w' log(1 + sigma) [b] (0 = not painted).

    The t columns are those of the context: CLIP text, T5, CLIP image, null.
    """

    masks: Float[Array, "b h w t"]
    weight: PerImage


def num_heads(channels: int, head_channels: int) -> int:
    """Heads of `head_channels` each, one head when there are fewer channels than that.

    Raises:
        ModelError: `head_channels` does not divide `channels`.
    """
    if channels <= head_channels:
        return 1
    if channels % head_channels:
        raise ModelError(f"head_channels={head_channels} does not divide the {channels} channels of an attention level")
    return channels // head_channels


def attend(
    query: Heads,
    key: Heads,
    value: Heads,
    mask: TokenMask | None = None,
    bias: Float[Array, "b q k"] | None = None,
    weight: PerImage | None = None,
) -> Heads:
    """softmax(...) V with the `attention_weights` of the same arguments: [b, q, heads, d] in the dtype of `value`."""
    return _mix(attention_weights(query, key, mask, bias, weight), value)


def attention_weights(
    query: Heads,
    key: Heads,
    mask: TokenMask | None = None,
    bias: Float[Array, "b q k"] | None = None,
    weight: PerImage | None = None,
) -> Weights:
    """softmax((Q K^T + weight max(Q K^T) bias) / sqrt(d)); the max is each image's, over heads, queries, real keys.

    Args:
        query: [b, q, heads, d].
        key: [b, k, heads, d].
        mask: keys that exist; None means all. At least one key of every image must exist.
        bias, weight: A and w' log(1 + sigma) of paint-with-words (eDiff-I, section 4.3); None means no paint.

    Returns:
        [b, heads, q, k] float32; each query's sum to 1.
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    real = None if mask is None else mask[:, None, None, :]
    if bias is not None:
        peak = jnp.max(logits, axis=(1, 2, 3), where=real, initial=-jnp.inf)
        logits = logits + (weight * peak)[:, None, None, None] * bias[:, None]
    logits = logits / jnp.sqrt(jnp.float32(query.shape[-1]))
    return jax.nn.softmax(logits, axis=-1, where=real)


def _mix(weights: Weights, value: Heads) -> Heads:
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def paint_bias(masks: Float[Array, "b h w t"], height: int, width: int) -> Float[Array, "b n t"]:
    """A at one layer's size: bilinear, anti-aliased when it shrinks, image tokens row by row."""
    b, _, _, t = masks.shape
    resized = jax.image.resize(masks.astype(jnp.float32), (b, height, width, t), "linear")
    return resized.reshape(b, height * width, t)


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel of its picture (ADM)."""

    head_channels: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """[b, h, w, c] -> [b, h, w, c]."""
        b, h, w, c = x.shape
        heads = num_heads(c, self.head_channels)
        tokens = GroupNorm(name="norm")(x).reshape(b, h * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(tokens).reshape(b, h * w, 3, heads, c // heads)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, h, w, c)
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="out")(y)


class CrossAttention(nn.Module):
    """Every pixel attends to the context tokens (eDiff-I puts one after every self-attention)."""

    head_channels: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Features, context: Context, paint: Paint | None = None) -> Features:
        """[b, h, w, c] -> [b, h, w, c]."""
        b, h, w, c = x.shape
        heads = num_heads(c, self.head_channels)
        tokens = GroupNorm(name="norm")(x).reshape(b, h * w, c)
        query = nn.Dense(c, dtype=self.dtype, name="query")(tokens).reshape(b, h * w, heads, c // heads)
        kv = nn.Dense(2 * c, dtype=self.dtype, name="key_value")(context.tokens)
        kv = kv.reshape(b, -1, 2, heads, c // heads)
        bias, weight = (None, None) if paint is None else (paint_bias(paint.masks, h, w), paint.weight)
        weights = attention_weights(query, kv[:, :, 0], context.mask, bias, weight)
        self.sow(ATTENTION, "weights", weights)  # nothing, and at no cost, unless `apply` has mutable=ATTENTION
        y = _mix(weights, kv[:, :, 1]).reshape(b, h, w, c)
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="out")(y)
