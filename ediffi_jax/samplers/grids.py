"""Grids of noise levels, on the host: float64 numbers, large to small.

    sigma_i = (sigma_max^(1/rho) + i/n (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho        i = 0..n

EDM (arXiv 2206.00364, Eq. 5) takes n = N-1 and adds sigma_N = 0; DEIS (arXiv 2204.13902, `ts_order`) takes
n = N and stops at sigma_min. eDiff-I, Table 7: exponent 6, 25 steps (base); 3, 10 steps (super-resolution).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ediffi_jax.samplers.base import SamplerError


def karras(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[np.ndarray, "steps+1"]:
    """EDM's grid: `steps` levels from sigma_max to sigma_min, then 0.

    Args:
        steps: number of steps N >= 1; one step goes from sigma_max to 0.
        sigma_min: the last level above 0.
        sigma_max: the first level.
        rho: exponent; larger puts more steps at low noise.

    Raises:
        SamplerError: arguments out of range.
    """
    _check(steps, sigma_min, sigma_max, rho)
    return np.append(_power_law(steps - 1, sigma_min, sigma_max, rho), 0.0)


def power(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, exponent: float = 6.0
) -> Float[np.ndarray, "steps+1"]:
    """DEIS' grid: `steps` steps from sigma_max that end at sigma_min, above 0.

    Args:
        steps: number of steps N >= 1.
        sigma_min: the last level.
        sigma_max: the first level.
        exponent: larger puts more steps at low noise.

    Raises:
        SamplerError: arguments out of range.
    """
    _check(steps, sigma_min, sigma_max, exponent)
    return _power_law(steps, sigma_min, sigma_max, exponent)


def _power_law(n: int, sigma_min: float, sigma_max: float, rho: float) -> np.ndarray:
    sigmas = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n + 1) ** rho
    sigmas[-1] = sigma_min  # exact ends: rounding must not move them across a cut
    sigmas[0] = sigma_max
    return sigmas


def _check(steps: int, sigma_min: float, sigma_max: float, exponent: float) -> None:
    if steps < 1:
        raise SamplerError(f"steps is {steps}; expected 1 or more")
    if not 0.0 < sigma_min < sigma_max < np.inf:
        raise SamplerError(f"sigma_min is {sigma_min}, sigma_max {sigma_max}; expected 0 < sigma_min < sigma_max")
    if not exponent > 0.0:
        raise SamplerError(f"the grid's exponent is {exponent}; expected a positive number, such as 7")
