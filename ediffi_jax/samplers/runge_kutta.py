"""One-step samplers: Runge-Kutta in sigma, dx/dsigma = (x - D(x; sigma)) / sigma.

    k_j = f(x + h sum_l a_jl k_l, sigma + c_j h)          h = sigma_next - sigma < 0
    x  <- x + h sum_j b_j k_j                              (a, b, c): a Butcher tableau

Euler and Heun are EDM's (arXiv 2206.00364, Alg. 1 and 2); DEIS' rho-RK (arXiv 2204.13902) is the same in
rho = sigma, with Kutta's third-order method in eDiff-I. A step that ends at sigma = 0 is one Euler step,
x = D(x; sigma): later stages would evaluate D at 0, and are skipped, not computed and thrown away.

Stages run in an inner `lax.scan`, so the network is traced and compiled once per sampler, however many
stages there are; and the denoiser is told each stage's own sigma, so that stages are routed one by one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ediffi_jax.denoiser import DenoiseFn
from ediffi_jax.errors import nearest
from ediffi_jax.samplers.base import Callback, Grid, SamplerError, prepare, report, slope, step_noise
from ediffi_jax.types import Images, Keys, Scalar

Stir = Callable[[Array, Scalar, Images], tuple[Scalar, Images]]

# Butcher tableaus: rows of a, then b; c_j = sum_l a_jl.
Tableau = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]
TABLEAUS: dict[str, Tableau] = {
    "euler": (((0.0,),), (1.0,)),
    "heun2": (((0.0, 0.0), (1.0, 0.0)), (1 / 2, 1 / 2)),
    "kutta3": (((0.0, 0.0, 0.0), (1 / 2, 0.0, 0.0), (-1.0, 2.0, 0.0)), (1 / 6, 4 / 6, 1 / 6)),
    "rk4": (
        ((0.0, 0.0, 0.0, 0.0), (1 / 2, 0.0, 0.0, 0.0), (0.0, 1 / 2, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)),
        (1 / 6, 2 / 6, 2 / 6, 1 / 6),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler:
    """Euler's method, order 1 (DDIM): one evaluation a step."""

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
        return _integrate(TABLEAUS["euler"], denoise, x, sigmas, callback)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
    """EDM's sampler, order 2 (Alg. 2; Alg. 1 without churn): two evaluations a step, one in a step to 0.

    Attributes:
        churn: S_churn, noise added back over the whole grid; 0 is deterministic. ImageNet-64: 40.
        churn_min: S_tmin, sigma below which none is added.
        churn_max: S_tmax, sigma above which none is added.
        churn_noise: S_noise, standard deviation of the noise; a little over 1 makes up for lost detail.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __call__(
        self,
        denoise: DenoiseFn,
        noise: Images,
        sigmas: Grid,
        keys: Keys | None = None,
        callback: Callback | None = None,
    ) -> Images:
        """See `Sampler`. Step i of image k draws its noise from fold_in(keys[k], i)."""
        x, sigmas = prepare(noise, sigmas)
        if self.churn == 0.0:
            return _integrate(TABLEAUS["heun2"], denoise, x, sigmas, callback)
        count = 0 if keys is None else len(keys)
        if count != len(noise):
            raise SamplerError(f"churn needs a PRNG key for each of {len(noise)} images; got {count} keys")
        most = min(self.churn / (len(sigmas) - 1), math.sqrt(2) - 1)

        def stir(step: Array, sigma: Scalar, x: Images) -> tuple[Scalar, Images]:
            gamma = jnp.where((sigma >= self.churn_min) & (sigma <= self.churn_max), most, 0.0).astype(x.dtype)
            raised = sigma * (1 + gamma)  # Alg. 2, line 5
            spread = sigma * jnp.sqrt(gamma * (2 + gamma))  # sqrt(raised^2 - sigma^2), line 6
            return raised, x + spread * self.churn_noise * step_noise(keys, step, x)

        return _integrate(TABLEAUS["heun2"], denoise, x, sigmas, callback, stir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeisRK:
    """DEIS rho-RK; with "kutta3" and the power grid the sampler of eDiff-I (Table 7). Deterministic.

    Attributes:
        method: "kutta3" (order 3, three evaluations a step), "heun2", "rk4" or "euler".
        denoise_final: end with x = D(x; sigma_min), one more evaluation, as NVIDIA's later sampler does; else
            what is returned still holds noise of sigma_min. Nothing to do on a grid that ends at 0.

    Raises:
        SamplerError: unknown method.
    """

    method: str = "kutta3"
    denoise_final: bool = True

    def __post_init__(self) -> None:
        if self.method not in TABLEAUS:
            raise SamplerError(f"unknown Runge-Kutta method {self.method!r}{nearest(str(self.method), TABLEAUS)}")

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
        return _integrate(TABLEAUS[self.method], denoise, x, sigmas, callback)


def _integrate(
    tableau: Tableau, denoise: DenoiseFn, x: Images, sigmas: Array, callback: Callback | None, stir: Stir | None = None
) -> Images:
    """The loop: a scan over steps, around a scan over stages. `stir(step, sigma, x)` may raise the noise first."""

    def step(x: Images, at: tuple) -> tuple[Images, None]:
        index, sigma, sigma_next = at
        if stir is not None:
            sigma, x = stir(index, sigma, x)
        x, x0 = _step(tableau, denoise, x, sigma, sigma_next)
        report(callback, index, sigma, x0)
        return x, None

    return jax.lax.scan(step, x, (jnp.arange(len(sigmas) - 1), sigmas[:-1], sigmas[1:]))[0]


def _step(tableau: Tableau, denoise: DenoiseFn, x: Images, sigma: Scalar, sigma_next: Scalar) -> tuple[Images, Images]:
    """One step; also the first stage's x0."""
    a, b = (jnp.array(rows, x.dtype) for rows in tableau)
    stages, h = len(b), sigma_next - sigma

    def evaluate(j: Array, y: Images, level: Scalar) -> Images:
        if stages == 1:
            return denoise(y, level)
        return jax.lax.cond((j == 0) | (sigma_next > 0), denoise, lambda y, _: y, y, level)

    def stage(carry: tuple[Images, Images], at: tuple) -> tuple[tuple[Images, Images], None]:
        slopes, first = carry
        j, row = at
        c = row.sum()
        y, level = x + h * _combine(row, slopes), (1 - c) * sigma + c * sigma_next  # exact at both ends
        x0 = evaluate(j, y, level)
        return (slopes.at[j].set(slope(y, x0, level)), jnp.where(j == 0, x0, first)), None

    empty = jnp.zeros((stages, *x.shape), x.dtype), jnp.zeros_like(x)
    (slopes, first), _ = jax.lax.scan(stage, empty, (jnp.arange(stages), a))
    return jnp.where(sigma_next > 0, x + h * _combine(b, slopes), first), first


def _combine(weights: Array, slopes: Array) -> Images:
    """sum_j weights[j] slopes[j], element by element: a matrix product would round to bfloat16 on a TPU."""
    return jnp.sum(weights[:, None, None, None, None] * slopes, axis=0)
