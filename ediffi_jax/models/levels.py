"""What both U-Nets share: which level works at which resolution, and one block with its attention.

Level i works at the nominal resolution `resolution / 2**i`. Attention is asked for by nominal
resolution, so a network trained on 256x256 patches keeps its level when it runs on 1024x1024.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array

from ediffi_jax.errors import nearest
from ediffi_jax.models.attention import Context, CrossAttention, Paint, SelfAttention
from ediffi_jax.models.blocks import ResBlock
from ediffi_jax.models.errors import ModelError
from ediffi_jax.types import Features, Vectors


def level_resolutions(resolution: int, levels: int) -> tuple[int, ...]:
    """Nominal resolution of each level, finest first."""
    return tuple(resolution // 2**i for i in range(levels))


def per_level(value: int | Sequence[int], levels: int, name: str) -> tuple[int, ...]:
    """One value for each level, repeating a single one.

    Raises:
        ModelError: a sequence of another length.
    """
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels:
        raise ModelError(f"{name}={values} has {len(values)} entries; expected {levels}, one a level of channel_mults")
    return values


def check_attention(name: str, wanted: Sequence[int], resolution: int, levels: int) -> None:
    """Raises ModelError when `wanted` names a resolution that no level works at."""
    have = level_resolutions(resolution, levels)
    for r in wanted:
        if r not in have:
            raise ModelError(f"{name} holds {r}, which no level works at{nearest(str(r), map(str, have))}")


def check_input(x: Array, levels: int) -> None:
    """Raises ModelError when the picture cannot be halved `levels - 1` times."""
    step = 2 ** (levels - 1)
    height, width = x.shape[1:3]
    if height % step or width % step:
        raise ModelError(f"pictures of {height}x{width} do not divide by {step}, which {levels} levels need")


class Block(nn.Module):
    """Residual block, then self-attention, then cross-attention, each if asked for.

    Attributes:
        features: channels of the output.
        self_attention, cross_attention: which follow.
    """

    features: int
    self_attention: bool = False
    cross_attention: bool = False
    head_channels: int = 64
    dropout: float = 0.0
    deterministic: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Features, emb: Vectors, context: Context, paint: Paint | None = None) -> Features:
        """x [b, h, w, c], emb [b, d] -> [b, h, w, features]."""
        x = ResBlock(self.features, "none", self.dropout, self.deterministic, self.dtype, name="res")(x, emb)
        if self.self_attention:
            x = SelfAttention(self.head_channels, self.dtype, name="self_attention")(x)
        if self.cross_attention:
            x = CrossAttention(self.head_channels, self.dtype, name="cross_attention")(x, context, paint)
        return x
