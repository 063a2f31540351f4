"""Held-out denoising loss as a function of the noise level's quantile: the curve that compares ensembles.

For quantiles q_1 < … < q_n, the midpoints of n equal cells of [0, 1],

    sigma_i = quantile(q_i),     L_i = E_{x, eps} [ lambda(sigma_i) · mean (D(x + sigma_i eps; sigma_i) − x)² ]

so the mean over all i is the training loss, and the mean over the i in an interval is the loss of the
expert that owns it. Two models measured with one seed see the same images and the same noise: their
difference is paired, and far less noisy than either curve.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float

from ediffi_jax.denoiser import DenoiseFn, loss_weight
from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import LogNormal

Tick = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantileLoss:
    """Losses of one model at `quantiles` [n], for each of N held-out images: `losses` [n, N]."""

    quantiles: np.ndarray
    losses: np.ndarray

    def curve(self, bins: int) -> np.ndarray:
        """Mean loss in `bins` equal cells of [0, 1], shape [bins]; `bins` divides the number of quantiles."""
        return self.losses.mean(axis=1).reshape(bins, -1).mean(axis=1)

    def per_image(self, low: float, high: float) -> np.ndarray:
        """Mean loss of every image over the quantiles in [low, high), shape [N]."""
        return self.losses[(self.quantiles >= low) & (self.quantiles < high)].mean(axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntervalComparison:
    """Losses of two models over one interval of quantiles, and their paired difference.

    `change` is (second − first) / first of the means, `error` its standard error over held-out images.
    """

    low: float
    high: float
    first: float
    second: float
    change: float
    error: float


def midpoints(count: int) -> np.ndarray:
    """The midpoints of `count` equal cells of [0, 1]; never 0 or 1, where sigma would be 0 or infinite."""
    return (np.arange(count) + 0.5) / count


def quantile_loss(
    denoise: DenoiseFn,
    images: Float[Array, "b h w c"],
    noise: LogNormal,
    *,
    sigma_data: float = 0.5,
    count: int = 64,
    seed: int = 0,
    tick: Tick = lambda done: None,
) -> QuantileLoss:
    """The loss of one denoiser at `count` quantiles of p(sigma) on the same images.

    Args:
        denoise: D(x; sigma), conditioned on these images' captions.
        images: clean pictures in [−1, 1].
        noise: p(sigma), whose quantiles are measured.
        sigma_data: the standard deviation of data assumed by the loss weight.
        count: number of quantiles, spread evenly.
        seed: of the noise; equal seeds give equal noise for every model.
        tick: called with the number of quantiles done, for a progress bar.
    """

    def losses_at(sigma: jax.Array, key: jax.Array) -> jax.Array:
        epsilon = jax.random.normal(key, images.shape)
        squared = (denoise(images + sigma * epsilon, sigma) - images) ** 2
        return loss_weight(sigma, sigma_data) * squared.mean(axis=(1, 2, 3))

    quantiles = midpoints(count)
    sigmas = noise.quantile(jnp.asarray(quantiles, jnp.float32))
    program = _compiled(losses_at, sigmas[0], jax.random.key(seed))
    rows = []
    for index, sigma in enumerate(sigmas):
        rows.append(np.asarray(program(sigma, jax.random.fold_in(jax.random.key(seed), index))))
        tick(index + 1)
    return QuantileLoss(quantiles=quantiles, losses=np.stack(rows).astype(np.float64))


def _compiled(function: Callable[..., Array], *example: Array) -> Callable[..., Array]:
    """`jax.jit`, with the arrays that `function` closes over, a network's parameters, as arguments of the program.

    As constants they would be copied into it, folded at compile time, and every model compiled anew.
    """
    closed = jax.make_jaxpr(function)(*example)

    @jax.jit
    def program(constants: list[Array], *args: Array) -> Array:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(*args)[0]

    return functools.partial(program, closed.consts)


def compare(first: QuantileLoss, second: QuantileLoss, ensemble: Ensemble) -> list[IntervalComparison]:
    """Compares two models of the same images and noise over each interval of an ensemble, low noise first."""
    comparisons = []
    for interval in ensemble.intervals:
        a, b = first.per_image(interval.low, interval.high), second.per_image(interval.low, interval.high)
        comparisons.append(
            IntervalComparison(
                low=interval.low,
                high=interval.high,
                first=float(a.mean()),
                second=float(b.mean()),
                change=float((b - a).mean() / a.mean()),
                error=float((b - a).std(ddof=1) / np.sqrt(a.size) / a.mean()),
            )
        )
    return comparisons
