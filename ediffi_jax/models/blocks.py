"""Residual block of the ADM U-Net: group norm with scale and shift, and resampling inside the block.

    h = conv1(resample(silu(GN(x))))
    y = resample(x) + conv2(dropout(silu(GN(h) (1 + scale) + shift))),   scale, shift = Dense(emb)

`conv2` starts at zero, so a fresh block is its (resampled) shortcut. Statistics of the norm are
float32 whatever the compute dtype is.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ediffi_jax.types import Features, Vectors

Resample = Literal["none", "up", "down"]


def num_groups(channels: int, most: int = 32) -> int:
    """Largest divisor of `channels` that is at most `most` and leaves at least 4 channels a group."""
    limit = max(1, min(most, channels // 4))
    return max(n for n in range(1, limit + 1) if channels % n == 0)


def space_to_depth(x: Features) -> Features:
    """[b, h, w, c] -> [b, h/2, w/2, 4c]: each 2x2 of pixels becomes one pixel's channels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4 * c)


def depth_to_space(x: Features) -> Features:
    """[b, h, w, 4c] -> [b, 2h, 2w, c]: inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, c // 4)


def upsample(x: Features) -> Features:
    """[b, h, w, c] -> [b, 2h, 2w, c], nearest neighbour."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def downsample(x: Features) -> Features:
    """[b, h, w, c] -> [b, h/2, w/2, c], mean of each 2x2."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def resample(x: Features, how: Resample) -> Features:
    """`upsample`, `downsample`, or `x` itself."""
    return {"none": lambda y: y, "up": upsample, "down": downsample}[how](x)


def conv(features: int, name: str, *, dtype: str, kernel: int = 3, stride: int = 1, zero: bool = False) -> nn.Conv:
    """A `kernel` x `kernel` convolution that keeps the size (or divides it by `stride`); `zero` starts it at 0."""
    pad = (kernel - 1) // 2
    init = nn.initializers.zeros_init() if zero else nn.initializers.lecun_normal()
    return nn.Conv(
        features, (kernel, kernel), (stride, stride), ((pad, pad), (pad, pad)), dtype=dtype, kernel_init=init, name=name
    )


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) with an optional scale and shift of each image, in float32.

    Mean and variance come from one pass of per-channel sums (columns, then rows: three times quicker
    backward on XLA:CPU than both at once); everything after them is a single multiply-add per pixel.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Features, scale: Vectors | None = None, shift: Vectors | None = None) -> Features:
        """[b, h, w, c] -> [b, h, w, c] of the same dtype; `scale`, `shift` [b, c]: y (1 + scale) + shift."""
        channels = x.shape[-1]
        gain = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        x32 = x.astype(jnp.float32)
        groups = num_groups(channels)
        mean, variance = (
            jnp.repeat(m.reshape(-1, groups, channels // groups).mean(-1), channels // groups, axis=-1)
            for m in (x32.mean(2).mean(1), jnp.square(x32).mean(2).mean(1))
        )
        a = gain * jax.lax.rsqrt(jnp.maximum(variance - mean**2, 0.0) + self.epsilon)
        b = bias - mean * a
        if scale is not None:
            a, b = a * (1 + scale), b * (1 + scale)
        if shift is not None:
            b = b + shift
        return (x32 * a[:, None, None] + b[:, None, None]).astype(x.dtype)


class ResBlock(nn.Module):
    """Residual block (Dhariwal & Nichol 2021) conditioned on an embedding by scale-shift norm.

    Attributes:
        features: channels of the output.
        resample: halve or double the picture inside the block.
        dropout: rate before the last convolution; needs an rng "dropout" unless `deterministic`.
    """

    features: int
    resample: Resample = "none"
    dropout: float = 0.0
    deterministic: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Features, emb: Vectors) -> Features:
        """x [b, h, w, c], emb [b, d] (already through its activation) -> [b, h', w', features]."""
        h = nn.silu(GroupNorm(name="norm1")(x))
        h, x = resample(h, self.resample), resample(x, self.resample)
        h = conv(self.features, "conv1", dtype=self.dtype)(h)
        modulation = nn.Dense(2 * self.features, dtype=self.dtype, name="emb")(emb).astype(jnp.float32)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = nn.silu(GroupNorm(name="norm2")(h, scale, shift))
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        h = conv(self.features, "conv2", dtype=self.dtype, zero=True)(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h
