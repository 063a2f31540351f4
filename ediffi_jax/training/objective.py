"""What one expert minimises on one batch, the same function in training and on held-out data.

    x0 = image / 127.5 - 1,   x = x0 + sigma * eps,   L = lambda(sigma) * mean (D(x; sigma, c) - x0)^2

zero outside the expert's [low_sigma, high_sigma) (Eq. 2 of the paper with EDM's weight lambda). The frozen
encoders run here, inside the compiled step. A super-resolution model also sees the low-resolution picture,
with gaussian noise of a level it is told (Sec. 4 of the paper: so that it learns to mend its input).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ediffi_jax import conditioning
from ediffi_jax.conditioning import Conditioning, DropRates, Kept
from ediffi_jax.data.embedding_rows import to_conditioning
from ediffi_jax.denoiser import interval_loss, precondition
from ediffi_jax.encoders import Tokens
from ediffi_jax.noise import LogNormal
from ediffi_jax.training.frozen import FrozenEncoders
from ediffi_jax.training.unconditional import Unconditional

Batch = Mapping[str, Array]
TOKENS = ("t5_ids", "t5_mask", "clip_ids", "clip_mask")


def to_unit(pixels: Array) -> Float[Array, "*shape"]:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def encode_batch(encoders: FrozenEncoders, encoder_params: PyTree, batch: Batch) -> Conditioning:
    """Captions and pictures of one batch [B, ...] through the frozen encoders, or as prepared ahead."""
    if isinstance(encoders, Unconditional):
        return encoders.null(batch["image"].shape[0])
    if "clip_pooled" in batch:
        return to_conditioning(batch)
    tokens = Tokens(**{name: batch[name] for name in TOKENS}) if "t5_ids" in batch else None
    pixels = batch["clip_pixels"].astype(jnp.float32) / 255.0 if "clip_pixels" in batch else None
    return jax.lax.stop_gradient(encoders.apply(encoder_params, tokens, pixels))


@flax.struct.dataclass
class Noises:
    """What a batch is noised with, a row a sample: the same whatever part of the batch is worked off at a time.

    Attributes:
        image: standard normal, like the pictures.
        low_res, level: of the low-resolution pictures: standard normal, and how much of it; None without them.
    """

    image: Float[Array, "b h w c"]
    low_res: Float[Array, "b h w c"] | None = None
    level: Float[Array, "b"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of one expert.

    Attributes:
        network: a model of `ediffi_jax.models`.
        encoders: the frozen encoders.
        noise: p(sigma).
        sigma_data: standard deviation of the data that EDM's scalings assume.
        drop: per-sample, independent drop rates of the encoders' outputs.
        max_level: the noise level added to the low-resolution picture is U(0, max_level) per sample.
    """

    network: nn.Module
    encoders: FrozenEncoders
    noise: LogNormal
    sigma_data: float
    drop: DropRates
    max_level: float

    def draw_kept(self, batch: Batch, key: Array) -> Kept:
        """Which encoders each sample keeps in training."""
        return conditioning.draw_kept(key, batch["image"].shape[0], self.drop, batch.get("needs_image"))

    def conditioning(self, encoder_params: PyTree, batch: Batch, kept: Kept) -> Conditioning:
        """Conditioning as in training: encoded, then of each sample what it keeps."""
        return conditioning.keep(encode_batch(self.encoders, encoder_params, batch), kept)

    def draw_noises(self, batch: Batch, key: Array) -> tuple[Noises, Array]:
        """The noises of a batch, and the key of its dropout."""
        noise_key, level_key, augment_key, dropout_key = jax.random.split(key, 4)
        shape = batch["image"].shape
        image = jax.random.normal(noise_key, shape)
        if "low_res" not in batch:
            return Noises(image=image), dropout_key
        level = self.max_level * jax.random.uniform(level_key, shape[:1])
        low_res = jax.random.normal(augment_key, batch["low_res"].shape)
        return Noises(image=image, low_res=low_res, level=level), dropout_key

    def losses(
        self,
        params: PyTree,
        batch: Batch,
        cond: Conditioning,
        sigma: Float[Array, "b"],
        low_sigma: Array,
        high_sigma: Array,
        noises: Noises,
        dropout_key: Array | None = None,
    ) -> Float[Array, "b"]:
        """Weighted squared error of each sample, exactly 0 where sigma is outside [low_sigma, high_sigma).

        Args:
            params: one expert's parameters (no expert axis).
            batch: image uint8 [B, H, W, 3], for super-resolution also low_res uint8 [B, h, w, 3].
            cond: this batch's conditioning.
            sigma: noise levels.
            low_sigma: lower edge of the expert's interval, a scalar.
            high_sigma: upper edge.
            noises: see `draw_noises`.
            dropout_key: turns the dropout layers on.
        """
        extra: dict[str, Array] = {}
        if noises.level is not None:
            low_res = to_unit(batch["low_res"]) + noises.level[:, None, None, None] * noises.low_res
            extra = {"low_res": low_res, "aug_level": noises.level}
        train = dropout_key is not None

        def network(x_in: Array, c_noise: Array) -> Array:
            rngs = {"dropout": dropout_key} if train else None
            return self.network.apply({"params": params}, x_in, c_noise, cond, train=train, rngs=rngs, **extra)

        denoise = precondition(network, self.sigma_data)
        return interval_loss(
            denoise, to_unit(batch["image"]), noises.image, sigma, low_sigma, high_sigma, self.sigma_data
        )

    def init(self, key: Array, batch: Batch) -> PyTree:
        """Fresh parameters of one expert, for batches shaped like `batch` [B, ...] (one sample is used)."""
        one = {name: jnp.zeros((1, *rows.shape[1:]), rows.dtype) for name, rows in batch.items()}
        cond = conditioning.zeros(1, self.encoders.spec)
        extra = {}
        if "low_res" in batch:
            extra = {"low_res": to_unit(one["low_res"]), "aug_level": jnp.zeros((1,))}
        return self.network.init(key, to_unit(one["image"]), jnp.zeros((1,)), cond, **extra)["params"]


