"""What every sampler shares: its interface, its checks, its randomness, and how it is watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float, Int

from ediffi_jax.denoiser import DenoiseFn
from ediffi_jax.errors import UserError
from ediffi_jax.types import Images, Keys, Scalar

Grid = Float[Array, "steps+1"] | Float[np.ndarray, "steps+1"]
Callback = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class SamplerError(UserError):
    """An unknown sampler or option, an impossible grid, or noise and keys that do not fit."""


class Sampler(Protocol):
    """Turns noise into images along a grid of noise levels. Frozen and hashable: a static argument of `jax.jit`."""

    def __call__(
        self,
        denoise: DenoiseFn,
        noise: Images,
        sigmas: Grid,
        keys: Keys | None = None,
        callback: Callback | None = None,
    ) -> Images:
        """Samples.

        Args:
            denoise: D(x, sigma); called with one scalar sigma for the batch.
            noise: unit normal [B, H, W, C]; its dtype is the state's, float32 or float64.
            sigmas: noise levels [N+1], decreasing: N steps. May be traced; then their order is not checked.
            keys: [B] PRNG keys. Only stochastic samplers need them; image i depends on keys[i] alone.
            callback: called on the host after each step, in order, with (step, sigma, x0 [B, H, W, C]). For
                computations on one device.

        Returns:
            images [B, H, W, C].

        Raises:
            SamplerError: the grid does not decrease, shapes do not fit, keys are missing.
        """
        ...


def initial_noise(keys: Keys, shape: Sequence[int]) -> Float[Array, "b h w c"]:
    """Unit normal noise of each image from its own key: keys [B], shape (H, W, C)."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape)))(keys)


def step_noise(keys: Keys, step: Int[Array, ""], like: Images) -> Images:
    """Unit normal noise of each image for one step, from fold_in(keys[i], step)."""
    fold = jax.vmap(lambda key: jax.random.fold_in(key, step))
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(fold(keys))


def prepare(noise: Images, sigmas: Grid, to_zero: bool = False) -> tuple[Images, Array]:
    """Checks noise and grid, and casts the grid to the noise's dtype.

    Args:
        noise: unit normal [B, H, W, C].
        sigmas: the grid.
        to_zero: append 0: a last step from sigma_N, which is D(x; sigma_N).

    Returns:
        the state at sigmas[0], and the grid.
    """
    if noise.ndim != 4 or noise.dtype not in (jnp.float32, jnp.float64):
        raise SamplerError(f"noise is {noise.dtype}{list(noise.shape)}; expected float32 [B, H, W, C]")
    if jnp.ndim(sigmas) != 1 or len(sigmas) < 2:
        raise SamplerError(f"sigmas have shape {jnp.shape(sigmas)}; expected [N+1] with N >= 1 steps")
    if not isinstance(sigmas, jax.core.Tracer):
        levels = np.asarray(sigmas)
        if not (np.all(np.isfinite(levels)) and np.all(np.diff(levels) < 0) and levels[-1] >= 0):
            raise SamplerError(f"sigmas are {levels}; expected finite, decreasing numbers >= 0")
        to_zero = to_zero and levels[-1] > 0
    sigmas = jnp.asarray(sigmas, noise.dtype)
    if to_zero:
        sigmas = jnp.append(sigmas, jnp.zeros((), sigmas.dtype))
    return sigmas[0] * noise, sigmas


def slope(x: Images, x0: Images, sigma: Scalar) -> Images:
    """dx/dsigma = (x - D(x; sigma)) / sigma of the probability-flow ODE (EDM Eq. 1 with sigma(t) = t); finite at 0."""
    return (x - x0) / jnp.where(sigma > 0, sigma, 1.0)


def report(callback: Callback | None, step: Int[Array, ""], sigma: Scalar, x0: Images) -> None:
    """Tells the host about a step, if it asked."""
    if callback is not None:
        io_callback(callback, None, step, sigma, x0, ordered=True)
