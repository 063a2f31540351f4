"""Agreement with diffusers' EDM schedulers: the same denoiser, the same levels, the same noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ediffi_jax import samplers
from ediffi_jax.denoiser import precondition

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

STEPS, SHAPE = 12, (2, 5, 5, 3)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 3)) / 2
NOISE = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def network(x: jax.Array, c_noise: jax.Array) -> jax.Array:
    """A small non-linear network of x and of the noise level, written twice."""
    return jnp.tanh(x @ jnp.asarray(WEIGHTS, x.dtype)) + 0.3 * jnp.sin(c_noise)[:, None, None, None] * x


def torch_network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ torch.tensor(WEIGHTS, dtype=x.dtype)) + 0.3 * torch.sin(c_noise) * x


def peer(scheduler) -> np.ndarray:
    """diffusers' loop: it scales the network's input and output itself, with EDM's coefficients."""
    scheduler.set_timesteps(STEPS)
    x = torch.tensor(NOISE, dtype=torch.float64) * float(scheduler.sigmas[0])
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch_network(scaled, t), t, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        (samplers.Euler(), "EDMEulerScheduler"),
        (samplers.DPMpp2M(), "EDMDPMSolverMultistepScheduler"),
    ],
    ids=["euler", "dpmpp_2m"],
)
def test_images_are_those_of_diffusers(sampler: samplers.Sampler, scheduler: str) -> None:
    theirs = getattr(diffusers, scheduler)(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    theirs.set_timesteps(STEPS)
    grid = samplers.karras(STEPS)
    np.testing.assert_allclose(grid, theirs.sigmas.numpy(), rtol=1e-5)
    # diffusers starts from sigma_max * noise by the caller's hand, as `peer` does.
    ours = sampler(precondition(network, 0.5), jnp.asarray(NOISE), grid)
    np.testing.assert_allclose(ours, peer(theirs), atol=1e-4)
