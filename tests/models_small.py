"""Networks small enough to compile in a second, and conditions for them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ediffi_jax import models
from ediffi_jax.conditioning import Conditioning

UNET = dict(
    name="unet",
    resolution=8,
    channels=8,
    channel_mults=(1, 2),
    blocks=1,
    attention_resolutions=(4,),
    cross_attention_resolutions=(4,),
    head_channels=8,
    context_width=12,
)
EFFICIENT = dict(
    name="efficient_unet",
    resolution=8,
    channels=8,
    channel_mults=(1, 2),
    blocks=1,
    block_mults=(1, 2),
    attention_resolutions=(4,),
    cross_attention_resolutions=(4,),
    head_channels=8,
    context_width=12,
)
CONFIGS = {"unet": UNET, "efficient_unet": EFFICIENT}


def condition(batch: int, seed: int = 0, sizes: tuple[int, int, int, int, int] = (5, 6, 7, 4, 9)) -> Conditioning:
    """Random features; `sizes` are CLIP tokens, their width, the pooled width, T5 tokens, their width."""
    clip_tokens, clip_width, pooled, t5_tokens, t5_width = sizes
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Conditioning(
        clip_text=normal(batch, clip_tokens, clip_width),
        clip_text_mask=jnp.ones((batch, clip_tokens), bool),
        clip_pooled=normal(batch, pooled),
        t5=normal(batch, t5_tokens, t5_width),
        t5_mask=jnp.ones((batch, t5_tokens), bool),
        clip_image=normal(batch, pooled),
        clip_image_mask=jnp.ones((batch,), bool),
    )


def inputs(network: nn.Module, batch: int, size: int | None = None, seed: int = 0) -> tuple[Any, ...]:
    """x, c_noise, condition, low_res, aug_level of one call; the last two are None for the base."""
    size = size or network.resolution
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(batch, size, size, 3)), jnp.float32)
    c_noise = jnp.asarray(rng.normal(size=batch), jnp.float32)
    if not getattr(network, "low_res", False):
        return x, c_noise, condition(batch, seed), None, None
    low_res = jnp.asarray(rng.uniform(-1, 1, size=(batch, size // 4, size // 4, 3)), jnp.float32)
    return x, c_noise, condition(batch, seed), low_res, jnp.asarray(rng.uniform(0, 0.3, batch), jnp.float32)


def shapes(network: nn.Module, *args: Any) -> Any:
    """Parameter shapes without computing anything."""
    return jax.eval_shape(lambda k: network.init(k, *args), jax.random.key(0))["params"]


def randomised(network: nn.Module, *args: Any, seed: int = 0) -> Any:
    """Parameters of the right shapes, all random: also those that start at zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / max(1.0, np.prod(s.shape[:-1])) ** 0.5, jnp.float32),
        shapes(network, *args),
    )


def small(name: str, **changes: Any) -> nn.Module:
    """The small network of that name."""
    return models.build({**CONFIGS[name], **changes})
