"""The noise levels of training: a log-normal p(sigma), read by quantile, so that an expert is an interval of [0, 1].

    ln sigma ~ N(mean, std^2)                        EDM (arXiv 2206.00364), Table 1; eDiff-I, Sec. 3
    quantile(q) = exp(mean + std * Phi^-1(q))        sigma below which a mass q lies
    cdf(sigma)  = Phi((ln sigma - mean) / std)
    sigma in [low, high):   u ~ U(low, high),  sigma = quantile(u)

Float32 knows numbers near 1 only to 6e-8, yet the paper's high-noise expert lives in [511/512, 1). A draw
therefore carries both masses, q below sigma and p = 1 - q above it, and reads the smaller: Phi^-1(q) = -Phi^-1(p).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from ediffi_jax.errors import UserError

Real = float | Float[Array, ""]
Reals = float | Float[Array, "*shape"]


class NoiseError(UserError):
    """Parameters that make no noise distribution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal:
    """p(sigma) with ln sigma ~ N(mean, std^2).

    Attributes:
        mean: mean of ln sigma (sigma in units of the data, pictures in [-1, 1]).
        std: standard deviation of ln sigma, positive.

    Raises:
        NoiseError: std is not positive, or one of them is not finite.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise NoiseError(f"noise has mean {self.mean}, std {self.std}; expected finite numbers and std > 0")

    def quantile(self, q: Reals) -> Float[Array, "*shape"]:
        """sigma below which a mass q of [0, 1] lies; exactly 0 at q = 0 and infinity at q = 1."""
        return jnp.exp(self.mean + self.std * ndtri(jnp.asarray(q, jnp.result_type(q, float))))

    def cdf(self, sigma: Reals) -> Float[Array, "*shape"]:
        """Mass below sigma >= 0; exactly 0 at 0 and 1 at infinity."""
        return ndtr((jnp.log(jnp.asarray(sigma, jnp.result_type(sigma, float))) - self.mean) / self.std)

    def edge(self, q: float) -> np.float32:
        """quantile(q) on the host, rounded once to float32: the number that parts two experts everywhere.

        A compiled `quantile` may differ in the last bit from program to program; an edge must not.
        """
        if q <= 0.0 or q >= 1.0:
            return np.float32(0.0 if q <= 0.0 else np.inf)
        return np.float32(math.exp(self.mean + self.std * NormalDist().inv_cdf(q)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interval:
    """A range [low, high) of probability mass within [0, 1]; low = 0 is the least noise.

    A pytree, so that intervals may be traced, or stacked and mapped over experts.
    """

    low: Real = 0.0
    high: Real = 1.0


def draw_sigma(
    key: Array,
    noise: LogNormal,
    interval: Interval,
    shape: Sequence[int],
    low_sigma: Real | None = None,
    high_sigma: Real | None = None,
) -> Float[Array, "*shape"]:
    """Draws from p(sigma) restricted to an interval of mass; never 0, never infinite.

    Args:
        key: PRNG key.
        noise: p(sigma).
        interval: where to draw; its ends may be traced scalars.
        shape: of the result.
        low_sigma: lower edge in sigma, default quantile(interval.low). Rounding is kept inside
            [low_sigma, high_sigma): give `Ensemble.edges()` to agree with `route` to the last bit.
        high_sigma: upper edge in sigma, default quantile(interval.high).

    Returns:
        float32 sigmas.
    """
    # Odd multiples of 2^-24: exact in float32, so are 1 - t and both ends stay out of reach.
    t = jax.random.uniform(key, tuple(shape), jnp.float32) + 2.0**-24
    mass = interval.high - interval.low
    q = interval.low + mass * t
    p = (1.0 - interval.high) + mass * (1.0 - t)
    z = jnp.where(q < p, ndtri(q), -ndtri(p))
    low = noise.quantile(interval.low) if low_sigma is None else low_sigma
    high = noise.quantile(interval.high) if high_sigma is None else high_sigma
    below = jnp.nextafter(jnp.asarray(high, jnp.float32), jnp.float32(0.0))
    return jnp.clip(jnp.exp(noise.mean + noise.std * z), jnp.asarray(low, jnp.float32), below)
