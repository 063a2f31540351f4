"""Samplers: numerical solvers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma, down a grid.

    grids.py   sigma_0 > sigma_1 > ... > sigma_N
                  │
    noise ──▶ x = sigma_0 noise ──▶ ┌────────────── one lax.scan over steps ──────────────┐
    [B,H,W,C]                       │  churn (Heun): raise sigma, add keys[i]'s noise     │
                                    │     │                                               │
                                    │     ▼        x, sigma (a scalar)                    │
                                    │  solver step ───────────────────▶ denoise           │ ──▶ x  [B,H,W,C]
                                    │     │        ◀───────────────────   = threshold     │
                                    │     │         x0                      ∘ guide       │
                                    │     │                                 ∘ switch      │
                                    │     ▼                                 ∘ precondition│
                                    │  callback(step, sigma, x0)                          │
                                    └─────────────────────────────────────────────────────┘
    runge_kutta.py   one-step:  Euler, Heun (EDM, churn), DeisRK (kutta3: eDiff-I's own)
    multistep.py     remembering:  DPMpp2M, DeisAB (order 1, 2, 3)

The solver sees nothing of networks, experts or text; the grid is data, so another one compiles nothing anew.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from ediffi_jax.errors import nearest
from ediffi_jax.samplers.base import Callback, Sampler, SamplerError, initial_noise
from ediffi_jax.samplers.grids import karras, power
from ediffi_jax.samplers.multistep import DeisAB, DPMpp2M
from ediffi_jax.samplers.runge_kutta import DeisRK, Euler, Heun

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "euler": Euler,
    "heun": Heun,
    "dpmpp_2m": DPMpp2M,
    "deis_kutta3": functools.partial(DeisRK, method="kutta3"),
    "deis_ab1": functools.partial(DeisAB, order=1),
    "deis_ab2": functools.partial(DeisAB, order=2),
    "deis_ab3": functools.partial(DeisAB, order=3),
}


def get(name: str, **options: Any) -> Sampler:
    """A sampler by name, with options such as churn=40.

    Raises:
        SamplerError: no such sampler, or it has no such option; with the nearest one there is.
    """
    if name not in SAMPLERS:
        raise SamplerError(f"unknown sampler {name!r}{nearest(str(name), SAMPLERS)}")
    make = SAMPLERS[name]
    fixed = getattr(make, "keywords", {})
    allowed = [field.name for field in dataclasses.fields(getattr(make, "func", make)) if field.name not in fixed]
    for option in options:
        if option not in allowed:
            hint = nearest(option, allowed) if allowed else "; it has none"
            raise SamplerError(f"sampler {name!r} has no option {option!r}{hint}")
    return make(**options)


__all__ = [
    "SAMPLERS",
    "Callback",
    "DPMpp2M",
    "DeisAB",
    "DeisRK",
    "Euler",
    "Heun",
    "Sampler",
    "SamplerError",
    "get",
    "initial_noise",
    "karras",
    "power",
]
