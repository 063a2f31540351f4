"""The base network: the U-Net of ADM with a cross-attention after every self-attention.

    x ─conv─▶ [blocks]──down──▶ [blocks]──down──▶ … ─▶ res · attention · res
                 │ skips           │                          │
    F ◀─conv── [blocks + 1]◀─up── [blocks + 1] ◀─────────── … ┘     skips are concatenated

eDiff-I table 2: 256 channels x (1, 2, 4, 4), 3 blocks a level, self- and cross-attention at 32, 16, 8,
scale-shift norm. Down and up happen inside residual blocks. The last convolution starts at zero: F = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from ediffi_jax.conditioning import Conditioning
from ediffi_jax.models.attention import Context, Paint
from ediffi_jax.models.blocks import GroupNorm, ResBlock, conv
from ediffi_jax.models.conditioner import Conditioner
from ediffi_jax.models.errors import ModelError
from ediffi_jax.models.levels import Block, check_attention, check_input, level_resolutions, per_level
from ediffi_jax.types import Features, Images, PerImage, Vectors


class UNet(nn.Module):
    """ADM U-Net (Dhariwal & Nichol 2021) conditioned on text and image embeddings (eDiff-I, table 2).

    Attributes:
        resolution: nominal size of the picture, which the attention resolutions refer to.
        channels, channel_mults: level i has channels * channel_mults[i].
        blocks: residual blocks a level on the way down (one more on the way up); int or one a level.
        attention_resolutions: levels with self-attention.
        cross_attention_resolutions: levels with cross-attention.
        head_channels: channels of one attention head.
        context_width: common width of the context tokens.
        embed_width: width of the noise embedding; None means 4 * channels.
        dropout: rate inside residual blocks.
        remat: recompute every block in the backward pass instead of storing it.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, norms, softmax and output stay float32.
        out_channels: channels of the picture.
    """

    resolution: int = 64
    channels: int = 256
    channel_mults: Sequence[int] = (1, 2, 4, 4)
    blocks: int | Sequence[int] = 3
    attention_resolutions: Sequence[int] = (32, 16, 8)
    cross_attention_resolutions: Sequence[int] = (32, 16, 8)
    head_channels: int = 64
    context_width: int = 1024
    embed_width: int | None = None
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"
    out_channels: int = 3

    @nn.compact
    def __call__(
        self,
        x: Images,
        c_noise: PerImage,
        cond: Conditioning,
        low_res: Images | None = None,
        aug_level: PerImage | None = None,
        paint: Paint | None = None,
        train: bool = False,
    ) -> Images:
        """F(x; c_noise, cond).

        Args:
            x: preconditioned noisy pictures [b, h, w, c], h and w divisible by 2**(levels - 1).
            c_noise: ln(sigma) / 4, [b].
            cond: what the pictures show.
            low_res, aug_level: must be None; `EfficientUNet` takes them.
            paint: painted phrases for every cross-attention, or None.
            train: dropout on (needs the rng "dropout" when the rate is not 0).

        Returns:
            [b, h, w, out_channels] float32.

        Raises:
            ModelError: sizes that do not fit, or a low-resolution picture.
        """
        self._check(x, low_res)
        embed_width = self.embed_width or 4 * self.channels
        conditioner = Conditioner(self.channels, embed_width, self.context_width, dtype=self.dtype, name="conditioner")
        emb, context = conditioner(c_noise, cond, None)
        h = conv(self.channels, "conv_in", dtype=self.dtype)(x.astype(self.dtype))
        h, skips = self._down(h, emb, context, paint, train)
        width = self.channels * self.channel_mults[-1]
        attention = bool(self.attention_resolutions), bool(self.cross_attention_resolutions)
        h = self._block("middle1", width, attention, train)(h, emb, context, paint)
        h = self._block("middle2", width, (False, False), train)(h, emb, context, paint)
        h = self._up(h, skips, emb, context, paint, train)
        h = nn.silu(GroupNorm(name="norm_out")(h)).astype(jnp.float32)
        return conv(self.out_channels, "conv_out", dtype="float32", zero=True)(h)

    def _check(self, x: Images, low_res: Images | None) -> None:
        levels = len(self.channel_mults)
        check_attention("attention_resolutions", self.attention_resolutions, self.resolution, levels)
        check_attention("cross_attention_resolutions", self.cross_attention_resolutions, self.resolution, levels)
        check_input(x, levels)
        if low_res is not None:
            raise ModelError("unet takes no low-resolution picture; efficient_unet does")

    def _block(self, name: str, features: int, attention: tuple[bool, bool], train: bool) -> nn.Module:
        kind = nn.remat(Block) if self.remat else Block
        return kind(features, *attention, self.head_channels, self.dropout, not train, self.dtype, name=name)

    def _resample(self, name: str, features: int, how: str, train: bool) -> nn.Module:
        kind = nn.remat(ResBlock) if self.remat else ResBlock
        return kind(features, how, self.dropout, not train, self.dtype, name=name)

    def _levels(self) -> list[tuple[int, int, tuple[bool, bool]]]:
        """(channels, blocks, (self-attention, cross-attention)) of each level, finest first."""
        levels = len(self.channel_mults)
        resolutions = level_resolutions(self.resolution, levels)
        attention = [(r in self.attention_resolutions, r in self.cross_attention_resolutions) for r in resolutions]
        widths = [self.channels * m for m in self.channel_mults]
        return list(zip(widths, per_level(self.blocks, levels, "blocks"), attention))

    def _down(
        self, h: Features, emb: Vectors, context: Context, paint: Paint | None, train: bool
    ) -> tuple[Features, list[Features]]:
        skips, levels = [h], self._levels()
        for i, (features, blocks, attention) in enumerate(levels):
            for j in range(blocks):
                h = self._block(f"down{i}_{j}", features, attention, train)(h, emb, context, paint)
                skips.append(h)
            if i < len(levels) - 1:
                h = self._resample(f"down{i}_half", features, "down", train)(h, emb)
                skips.append(h)
        return h, skips

    def _up(
        self, h: Features, skips: list[Features], emb: Vectors, context: Context, paint: Paint | None, train: bool
    ) -> Features:
        for i, (features, blocks, attention) in reversed(list(enumerate(self._levels()))):
            for j in range(blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"up{i}_{j}", features, attention, train)(h, emb, context, paint)
            if i > 0:
                h = self._resample(f"up{i}_double", features, "up", train)(h, emb)
        return h
