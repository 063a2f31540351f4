"""T5 encoder (Raffel et al. 2020; v1.1 with gated GELU), the text encoder with the most binding in eDiff-I.

    x <- x + W_o softmax(Q K^T + b) V,   Q, K, V from RMS(x)     b = bias of the bucket of j - i, shared by all layers
    x <- x + W_2 (act(W_1 RMS(x)))       or  W_2 (act(W_10 RMS(x)) * W_11 RMS(x))

No 1/sqrt(d) (it is folded into T5's weights) and no biases. Published T5 weights overflow half
precision in the residual stream and in W_2, so with dtype bfloat16 the residual stream, W_2, norms,
logits and softmax stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ediffi_jax.encoders.activations import activation
from ediffi_jax.encoders.configs import read_fields
from ediffi_jax.types import Ids, TokenMask, Tokens


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of a T5 encoder, named as in its config.json; the defaults are those of transformers."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> T5Config:
        """From the mapping in config.json; keys that do not concern the encoder are left."""
        return read_fields(cls, config)

    def to_json(self) -> dict[str, Any]:
        """What transformers reads back as a T5EncoderModel."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"architectures": ["T5EncoderModel"], "model_type": "t5", "tie_word_embeddings": False, **fields}

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies an activated and a linear branch."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def act(self) -> str:
        """Activation; "gated-gelu" means the tanh approximation, for historical reasons."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.split("-")[-1]


def relative_position_bucket(
    distance: Int[np.ndarray, "..."], num_buckets: int, max_distance: int
) -> Int[np.ndarray, "..."]:
    """Bucket of key position minus query position: half for each sign, exact up to num_buckets/4, then logarithmic."""
    half = num_buckets // 2
    exact = half // 2
    magnitude = np.abs(distance)
    # float32 as in the original: the edges between logarithmic buckets are where rounding decides.
    ratio = np.log(np.maximum(magnitude, 1).astype(np.float32) / np.float32(exact))
    ratio /= np.float32(math.log(max_distance / exact))
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(magnitude < exact, magnitude, far)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale, in float32; the result in `dtype`."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalises the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class SelfAttention(nn.Module):
    """Unscaled multi-head attention with an additive float32 bias."""

    config: T5Config
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, bias: Float[Array, "b heads q k"]) -> Tokens:
        """[b, t, d_model] to the same in `dtype`; `bias` is added to the logits."""
        c = self.config
        heads = (*x.shape[:2], c.num_heads, c.d_kv)

        def project(name: str, std: float) -> Array:
            settings = {"use_bias": False, "dtype": self.dtype, "kernel_init": nn.initializers.normal(std)}
            return nn.Dense(c.num_heads * c.d_kv, name=name, **settings)(x).reshape(heads)

        q, k = project("q", (c.d_model * c.d_kv) ** -0.5), project("k", c.d_model**-0.5)
        v = project("v", c.d_model**-0.5)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) + bias
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], -1)
        init = nn.initializers.normal((c.num_heads * c.d_kv) ** -0.5)
        return nn.Dense(c.d_model, use_bias=False, dtype=self.dtype, kernel_init=init, name="o")(y)


class FeedForward(nn.Module):
    """Plain or gated feed-forward layer; W_2 ("wo") in float32."""

    config: T5Config
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """[b, t, d_model] in `dtype` to the same in float32."""
        c = self.config
        act = activation(c.act)

        def dense(name: str, width: int, dtype: Any) -> nn.Dense:
            init = nn.initializers.normal((c.d_ff if name == "wo" else c.d_model) ** -0.5)
            return nn.Dense(width, use_bias=False, dtype=dtype, kernel_init=init, name=name)

        if c.gated:
            y = act(dense("wi_0", c.d_ff, self.dtype)(x)) * dense("wi_1", c.d_ff, self.dtype)(x)
        else:
            y = act(dense("wi", c.d_ff, self.dtype)(x))
        return dense("wo", c.d_model, jnp.float32)(y)


class Block(nn.Module):
    """Self-attention, then feed-forward, each on the normalised float32 residual stream."""

    config: T5Config
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, bias: Float[Array, "b heads q k"]) -> Tokens:
        """Residual stream float32 [b, t, d_model] to the next."""
        epsilon = self.config.layer_norm_epsilon
        y = RMSNorm(epsilon, self.dtype, name="attention_norm")(x)
        x = x + SelfAttention(self.config, self.dtype, name="attention")(y, bias).astype(jnp.float32)
        y = RMSNorm(epsilon, self.dtype, name="feed_forward_norm")(x)
        return x + FeedForward(self.config, self.dtype, name="feed_forward")(y)


class T5Encoder(nn.Module):
    """Token ids to contextual features.

    Attributes:
        config: sizes.
        dtype: of the matrix products other than W_2; float32 or bfloat16.
    """

    config: T5Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Ids, mask: TokenMask) -> Tokens:
        """Last hidden state [b, t, d_model] float32 of ids int32 [b, t]; no token attends where `mask` is False."""
        c = self.config
        table = self.param("embedding", nn.initializers.normal(1.0), (c.vocab_size, c.d_model))
        x = jnp.take(table, ids, axis=0).astype(jnp.float32)
        buckets = (c.relative_attention_num_buckets, c.relative_attention_max_distance)
        position = np.arange(ids.shape[1])
        bucket = relative_position_bucket(position[None, :] - position[:, None], *buckets)
        init = nn.initializers.normal(c.d_model**-0.5)
        bias = self.param("relative_attention_bias", init, (buckets[0], c.num_heads)).astype(jnp.float32)[bucket]
        hidden = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min / 2)
        bias = jnp.transpose(bias, (2, 0, 1))[None] + hidden[:, None, None, :]
        for i in range(c.num_layers):
            x = Block(c, self.dtype, name=f"block_{i}")(x, bias)
        return RMSNorm(c.layer_norm_epsilon, jnp.float32, name="final_norm")(x)
