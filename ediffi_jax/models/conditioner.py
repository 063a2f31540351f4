"""What a network knows beside the noisy picture: one vector, and the tokens it attends to.

    emb     = silu(MLP(sin/cos(c_noise)) + W_p clip_pooled + W_i clip_image [+ MLP(sin/cos(c_aug))])
    context = [LN(W_c clip_text), LN(W_t t5), LN(W_v clip_image), null]        one learned null token

Masked tokens (padding, dropped encoders) are never attended; the null token always can be, and it is
all that is left when everything was dropped. A dropped pooled vector is zeros and leaves W's bias.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from ediffi_jax.conditioning import Conditioning
from ediffi_jax.models.attention import Context
from ediffi_jax.types import PerImage, TokenMask, Tokens, Vectors

LOWEST_FREQUENCY, HIGHEST_FREQUENCY = 0.25, 32.0  # rad per unit of c_noise, which spans about -1.6 to 1.1


def sinusoid(x: PerImage, width: int) -> Vectors:
    """[b] -> [b, width]: cos then sin of x at `width`/2 frequencies, spaced evenly in their logarithm."""
    half = width // 2
    frequencies = jnp.geomspace(LOWEST_FREQUENCY, HIGHEST_FREQUENCY, half, dtype=jnp.float32)
    phase = x.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class NoiseEmbedding(nn.Module):
    """Sinusoid of a noise level -> Linear -> SiLU -> Linear."""

    channels: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, level: PerImage) -> Vectors:
        """[b] -> [b, width]."""
        h = nn.Dense(self.width, dtype=self.dtype, name="dense1")(sinusoid(level, self.channels))
        return nn.Dense(self.width, dtype=self.dtype, name="dense2")(nn.silu(h))


class Conditioner(nn.Module):
    """Embeds the noise level, the pooled vectors and the tokens of a `Conditioning`.

    Attributes:
        channels: width of the sinusoid.
        embed_width: width of the vector.
        context_width: width of the tokens.
        noise_aug: also embed the standard deviation of the noise in the low-resolution picture.
    """

    channels: int
    embed_width: int
    context_width: int
    noise_aug: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, c_noise: PerImage, cond: Conditioning, aug_level: PerImage | None) -> tuple[Vectors, Context]:
        """c_noise [b] = ln(sigma) / 4, aug_level [b] or None (= 0) -> emb [b, embed_width], context tokens and mask."""
        emb = NoiseEmbedding(self.channels, self.embed_width, self.dtype, name="noise")(c_noise)
        emb += nn.Dense(self.embed_width, dtype=self.dtype, name="clip_pooled")(cond.clip_pooled)
        emb += nn.Dense(self.embed_width, dtype=self.dtype, name="clip_image")(cond.clip_image)
        if self.noise_aug:
            level = jnp.zeros_like(c_noise) if aug_level is None else aug_level
            c_aug = jnp.log(level + 1e-3) / 4
            emb += NoiseEmbedding(self.channels, self.embed_width, self.dtype, name="aug")(c_aug)
        return nn.silu(emb), self._context(cond)

    def _context(self, cond: Conditioning) -> Context:
        batch = cond.clip_pooled.shape[0]
        null = self.param("null", nn.initializers.normal(1.0), (self.context_width,), jnp.float32)
        parts: list[tuple[Tokens, TokenMask]] = [
            (self._project(cond.clip_text, "clip_text"), cond.clip_text_mask),
            (self._project(cond.t5, "t5"), cond.t5_mask),
            (self._project(cond.clip_image[:, None], "clip_image_token"), cond.clip_image_mask[:, None]),
            (jnp.broadcast_to(null, (batch, 1, self.context_width)).astype(self.dtype), jnp.ones((batch, 1), bool)),
        ]
        tokens, masks = zip(*parts)
        return Context(tokens=jnp.concatenate(tokens, axis=1), mask=jnp.concatenate(masks, axis=1))

    def _project(self, tokens: Tokens, name: str) -> Tokens:
        projected = nn.Dense(self.context_width, dtype=self.dtype, name=name)(tokens)
        return nn.LayerNorm(dtype=jnp.float32, name=f"{name}_norm")(projected).astype(self.dtype)
