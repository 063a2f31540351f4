"""Held-out loss of the EMA weights in equal bins of noise quantile, per expert: the curve that says when to branch.

Expert i's interval [low_i, high_i) is cut into `BINS` equal parts. Image n is given the noise level

    u_n = low + (high - low) (k_n + v_n) / BINS,   k_n = (n + round) mod BINS,   v_n ~ U(0, 1)

so every bin sees the same number of images (stratified), and images, levels and noise are functions of
the seed alone: a curve moves only because the weights did. Conditioning is text without drops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from ediffi_jax import conditioning
from ediffi_jax.encoders.sharding import gathered
from ediffi_jax.training.mesh import put_whole, replicated
from ediffi_jax.training.objective import Objective, encode_batch
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.step import ExpertRange, expert_ranges, over_experts

BINS = 16
ROUNDS = 4  # bins each image is measured in
TEXT = ("t5", "clip_text")

QuantileLoss = Callable[[PyTree, PyTree], Float[np.ndarray, "e bins"]]


def make_quantile_loss(
    objective: Objective, phase: Phase, mesh: Mesh, batches: Sequence[Mapping[str, np.ndarray]], seed: int
) -> QuantileLoss:
    """Compiles the curve.

    Args:
        objective: the loss being trained.
        phase: which experts the weights have.
        mesh: devices.
        batches: held-out batches as the loader gives them for one expert, arrays [1, B, ...].
        seed: of noise levels and noise.

    Returns:
        (stacked EMA weights, encoder parameters) -> mean weighted loss per expert and bin, [E, BINS].
    """

    def expert_losses(
        params: PyTree, batch: Mapping, own: ExpertRange, bins: Array, key: Array, frozen: PyTree
    ) -> Float[Array, "b"]:
        uniform_key, loss_key = jax.random.split(key)
        part = (bins + jax.random.uniform(uniform_key, bins.shape)) / BINS
        sigma = objective.noise.quantile(own.interval.low + (own.interval.high - own.interval.low) * part)
        cond = conditioning.select(encode_batch(objective.encoders, gathered(mesh, frozen), batch), TEXT)
        noises, _ = objective.draw_noises(batch, loss_key)
        return objective.losses(params, batch, cond, sigma, 0.0, jnp.inf, noises)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))  # every process reads them
    def losses(ema: PyTree, batch: Mapping, bins: Array, key: Array, frozen: PyTree) -> Array:
        mapped = over_experts(expert_losses, mesh, stacked=3)
        return mapped(ema, batch, expert_ranges(objective.noise, phase), bins, key, frozen)

    def quantile_loss(ema: PyTree, frozen: PyTree) -> Float[np.ndarray, "e bins"]:
        total = np.zeros((phase.num_experts, BINS))
        count = np.zeros(BINS)
        for index, batch in enumerate(batches):
            size = batch["image"].shape[1]
            rows = {k: np.broadcast_to(v, (phase.num_experts, *v.shape[1:])) for k, v in batch.items()}
            on_mesh = put_whole(rows, mesh)
            for turn in range(ROUNDS):
                bins = (index * size + np.arange(size) + turn * (BINS // ROUNDS)) % BINS
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), turn)
                values = jax.device_get(losses(ema, on_mesh, jnp.asarray(bins), key, frozen))
                np.add.at(total, (slice(None), bins), values)
                np.add.at(count, bins, 1)
        return total / np.maximum(count, 1)

    return quantile_loss
