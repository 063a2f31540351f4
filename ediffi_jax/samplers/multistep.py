"""Multistep samplers: one evaluation a step, the order from remembered ones. First steps have lower order.

DPM-Solver++(2M) (arXiv 2211.01095, Alg. 2) with lambda = -ln sigma, h = lambda_{i+1} - lambda_i, r = h_{i-1} / h:

    Dbar = (1 + 1/(2r)) D_i - 1/(2r) D_{i-1}          x <- sigma_{i+1}/sigma_i x - (e^-h - 1) Dbar

DEIS rho-AB (arXiv 2204.13902) in rho = sigma: Adams-Bashforth on the grid as it is, not on equal steps,

    x <- x + sum_j w_ij f_{i-j},    w_ij = integral over [sigma_i, sigma_{i+1}] of the Lagrange polynomial
                                          that is 1 at sigma_{i-j} and 0 at the other remembered levels

A step to sigma = 0 is of order 1: x = D(x; sigma). Weights depend on the grid alone, and are made before the loop.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ediffi_jax.denoiser import DenoiseFn
from ediffi_jax.samplers.base import Callback, Grid, SamplerError, prepare, report, slope
from ediffi_jax.types import Images, Keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp2M:
    """DPM-Solver++(2M), order 2, for a grid that ends at 0 (`karras`); deterministic."""

    def __call__(
        self,
        denoise: DenoiseFn,
        noise: Images,
        sigmas: Grid,
        keys: Keys | None = None,
        callback: Callback | None = None,
    ) -> Images:
        """See `Sampler`."""
        x, sigmas = prepare(noise, sigmas)

        def step(carry: tuple[Images, Images], at: tuple) -> tuple[tuple[Images, Images], None]:
            (x, before), (index, sigma, ratio, extra) = carry, at
            x0 = denoise(x, sigma)
            report(callback, index, sigma, x0)
            dbar = x0 + extra * (x0 - before)
            return (ratio * x + (1 - ratio) * dbar, x0), None  # e^-h = sigma_{i+1} / sigma_i

        ratio, extra = two_step_weights(sigmas)
        scanned = (jnp.arange(len(ratio)), sigmas[:-1], ratio, extra)
        return jax.lax.scan(step, (x, jnp.zeros_like(x)), scanned)[0][0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeisAB:
    """DEIS rho-AB of order 1 to 3; deterministic.

    Attributes:
        order: how many evaluations a step reads, its own included.
        denoise_final: end with x = D(x; sigma_min), one more evaluation. Nothing to do on a grid that ends at 0.

    Raises:
        SamplerError: another order.
    """

    order: int = 3
    denoise_final: bool = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise SamplerError(f"Adams-Bashforth order is {self.order}; expected 1, 2 or 3")

    def __call__(
        self,
        denoise: DenoiseFn,
        noise: Images,
        sigmas: Grid,
        keys: Keys | None = None,
        callback: Callback | None = None,
    ) -> Images:
        """See `Sampler`."""
        x, sigmas = prepare(noise, sigmas, to_zero=self.denoise_final)

        def step(carry: tuple[Images, Images], at: tuple) -> tuple[tuple[Images, Images], None]:
            (x, slopes), (index, sigma, weights) = carry, at
            x0 = denoise(x, sigma)
            report(callback, index, sigma, x0)
            slopes = jnp.concatenate([slope(x, x0, sigma)[None], slopes[:-1]])
            return (x + jnp.sum(weights[:, None, None, None, None] * slopes, axis=0), slopes), None

        weights = adams_bashforth_weights(sigmas, self.order)
        slopes = jnp.zeros((self.order, *x.shape), x.dtype)
        return jax.lax.scan(step, (x, slopes), (jnp.arange(len(weights)), sigmas[:-1], weights))[0][0]


def two_step_weights(sigmas: Float[Array, "steps+1"]) -> tuple[Float[Array, "steps"], Float[Array, "steps"]]:
    """DPM-Solver++(2M)'s e^-h = sigma_{i+1}/sigma_i, and 1/(2r) = h_i/(2 h_{i-1}): 0 first, and to sigma = 0."""
    ratio = sigmas[1:] / jnp.where(sigmas[:-1] > 0, sigmas[:-1], 1.0)
    h = -jnp.log(jnp.where(ratio > 0, ratio, 1.0))  # 0 stands for the last, infinite one
    h_before = jnp.append(jnp.full((1,), jnp.inf, h.dtype), h[:-1])
    return ratio, h / (2.0 * h_before)


def adams_bashforth_weights(sigmas: Float[Array, "steps+1"], order: int) -> Float[Array, "steps order"]:
    """w_ij above: step i's weights of f_i, f_{i-1}, f_{i-2}; of order 1 in the first step and to 0, 2 in the second."""
    steps = jnp.arange(len(sigmas) - 1)
    now, h = sigmas[:-1], jnp.diff(sigmas)
    # Remembered levels measured from sigma_i; stand-ins, distinct and not 0, where there are none yet.
    a = jnp.where(steps >= 1, jnp.roll(sigmas, 1)[:-1] - now, 1.0)
    b = jnp.where(steps >= 2, jnp.roll(sigmas, 2)[:-1] - now, 2.0 * jnp.maximum(a, 1.0))
    t1, t2, t3 = h, h**2 / 2, h**3 / 3  # integrals of 1, t, t^2 over [0, h]
    zero = jnp.zeros_like(h)
    first = jnp.stack([t1, zero, zero], axis=1)
    second = jnp.stack([t1 - t2 / a, t2 / a, zero], axis=1)
    third = jnp.stack(
        [
            (t3 - (a + b) * t2 + a * b * t1) / (a * b),
            (t3 - b * t2) / (a * (a - b)),
            (t3 - a * t2) / (b * (b - a)),
        ],
        axis=1,
    )
    allowed = jnp.where(sigmas[1:] > 0, jnp.minimum(order, steps + 1), 1)[:, None]
    return jnp.where(allowed == 1, first, jnp.where(allowed == 2, second, third))[:, :order]
