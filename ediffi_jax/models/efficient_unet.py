"""The super-resolution networks: the Efficient U-Net of Imagen, as eDiff-I modifies it.

    low_res ─cubic─┐
    x ─────────────┴─conv─▶ blocks ─▶ half · blocks ─▶ half · blocks (+ attention) ─┐
                              │ skip       │ skip                                   │
    F ◀─conv── blocks ◀─(+)── double ◀─ blocks ◀─(+)── double ◀─ blocks (+ attention) ┘

Halving comes before the blocks of a level and doubling after them, so that most parameters sit where
pictures are small; coarser levels have more blocks. A skip is *added*, scaled by 1/sqrt(2) (the paper
does not say whether it adds or concatenates), one a level. Attention follows the last block of a level.
Halving is a 2x2 convolution of stride 2, doubling its transpose, both written as a matrix product over
2x2 patches (backward on XLA:CPU five times quicker than a strided 3x3).
Everything is convolutional: trained on patches, it runs on whole pictures.
eDiff-I tables 3 and 4: 128 channels x (1, 2, 4, 8) or (1, 2, 4, 4), blocks 2 x (1, 2, 4, 4), attention at 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ediffi_jax.conditioning import Conditioning
from ediffi_jax.models.attention import Context, Paint
from ediffi_jax.models.blocks import GroupNorm, conv, depth_to_space, space_to_depth
from ediffi_jax.models.conditioner import Conditioner
from ediffi_jax.models.errors import ModelError
from ediffi_jax.models.levels import Block, check_attention, check_input, level_resolutions, per_level
from ediffi_jax.types import Features, Images, PerImage, Vectors


def enlarge(low_res: Images, height: int, width: int) -> Images:
    """[b, h, w, c] -> [b, height, width, c], cubic."""
    b, _, _, c = low_res.shape
    return jax.image.resize(low_res, (b, height, width, c), "cubic")


class EfficientUNet(nn.Module):
    """Efficient U-Net (Saharia et al. 2022, appendix B) conditioned like the base (eDiff-I, tables 3 and 4).

    Attributes:
        resolution: nominal (training patch) size, which the attention resolutions refer to.
        channels, channel_mults: level i has channels * channel_mults[i].
        blocks, block_mults: level i has blocks * block_mults[i] residual blocks on each side.
        attention_resolutions: levels with self-attention.
        cross_attention_resolutions: levels with cross-attention.
        head_channels: channels of one attention head.
        context_width: common width of the context tokens.
        embed_width: width of the noise embedding; None means 4 * channels.
        dropout: rate inside residual blocks.
        skip_scale: factor of the skips.
        low_res: expects a low-resolution picture.
        noise_aug: also embeds how much noise that picture carries.
        remat: recompute every block in the backward pass instead of storing it.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, norms, softmax and output stay float32.
        out_channels: channels of the picture.
    """

    resolution: int = 256
    channels: int = 128
    channel_mults: Sequence[int] = (1, 2, 4, 8)
    blocks: int = 2
    block_mults: int | Sequence[int] = (1, 2, 4, 4)
    attention_resolutions: Sequence[int] = (32,)
    cross_attention_resolutions: Sequence[int] = (32,)
    head_channels: int = 64
    context_width: int = 1024
    embed_width: int | None = None
    dropout: float = 0.0
    skip_scale: float = 0.5**0.5
    low_res: bool = True
    noise_aug: bool = True
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
        """F(x; c_noise, cond, low_res, aug_level).

        Args:
            x: preconditioned noisy pictures [b, h, w, c], h and w divisible by 2**(levels - 1); any such size.
            c_noise: ln(sigma) / 4, [b].
            cond: what the pictures show.
            low_res: the small pictures [b, h', w', 3] in [-1, 1], enlarged here (already enlarged ones pass).
            aug_level: standard deviation of the noise added to `low_res`, [b]; None means 0.
            paint: painted phrases for every cross-attention, or None.
            train: dropout on (needs the rng "dropout" when the rate is not 0).

        Returns:
            [b, h, w, out_channels] float32.

        Raises:
            ModelError: sizes that do not fit, or a low-resolution picture missing or not expected.
        """
        self._check(x, low_res)
        embed_width = self.embed_width or 4 * self.channels
        emb, context = Conditioner(
            self.channels, embed_width, self.context_width, self.noise_aug, self.dtype, name="conditioner"
        )(c_noise, cond, aug_level)
        if self.low_res:
            x = jnp.concatenate([x, enlarge(low_res, *x.shape[1:3])], axis=-1)
        h = conv(self.channels, "conv_in", dtype=self.dtype)(x.astype(self.dtype))
        h, skips = self._down(h, emb, context, paint, train)
        h = self._up(h, skips, emb, context, paint, train)
        h = nn.silu(GroupNorm(name="norm_out")(h)).astype(jnp.float32)
        return conv(self.out_channels, "conv_out", dtype="float32", zero=True)(h)

    def _check(self, x: Images, low_res: Images | None) -> None:
        levels = len(self.channel_mults)
        check_attention("attention_resolutions", self.attention_resolutions, self.resolution, levels)
        check_attention("cross_attention_resolutions", self.cross_attention_resolutions, self.resolution, levels)
        check_input(x, levels)
        if (low_res is not None) != self.low_res:
            given = "one" if low_res is not None else "none"
            raise ModelError(f"efficient_unet has low_res={self.low_res}; low-resolution pictures: given {given}")

    def _levels(self) -> list[tuple[int, int, bool, bool]]:
        """(channels, blocks, self-attention, cross-attention) of each level, finest first."""
        levels = len(self.channel_mults)
        mults = per_level(self.block_mults, levels, "block_mults")
        return [
            (self.channels * m, self.blocks * n, r in self.attention_resolutions, r in self.cross_attention_resolutions)
            for m, n, r in zip(self.channel_mults, mults, level_resolutions(self.resolution, levels))
        ]

    def _blocks(
        self, side: str, level: int, h: Features, emb: Vectors, context: Context, paint: Paint | None, train: bool
    ) -> Features:
        """The blocks of one level, attention after the last."""
        features, blocks, self_attention, cross_attention = self._levels()[level]
        kind = nn.remat(Block) if self.remat else Block
        for j in range(blocks):
            last = j == blocks - 1
            h = kind(
                features,
                self_attention and last,
                cross_attention and last,
                self.head_channels,
                self.dropout,
                not train,
                self.dtype,
                name=f"{side}{level}_{j}",
            )(h, emb, context, paint)
        return h

    def _down(
        self, h: Features, emb: Vectors, context: Context, paint: Paint | None, train: bool
    ) -> tuple[Features, list[Features]]:
        skips = []
        for i, (features, *_) in enumerate(self._levels()):
            if i > 0:
                h = nn.Dense(features, dtype=self.dtype, name=f"down{i}_half")(space_to_depth(h))
            h = self._blocks("down", i, h, emb, context, paint, train)
            skips.append(h)
        return h, skips[:-1]

    def _up(
        self, h: Features, skips: list[Features], emb: Vectors, context: Context, paint: Paint | None, train: bool
    ) -> Features:
        levels = self._levels()
        for i in reversed(range(len(levels))):
            if i < len(levels) - 1:
                h = h + self.skip_scale * skips.pop()
            h = self._blocks("up", i, h, emb, context, paint, train)
            if i > 0:
                h = depth_to_space(nn.Dense(4 * levels[i - 1][0], dtype=self.dtype, name=f"up{i}_double")(h))
        return h
