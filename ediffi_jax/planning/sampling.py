"""The sampling program of a stage as shapes: `Stage.sample`'s own scan over the grid, on the chips of one host.

    evaluations = how often the sampler asks its denoiser, counted by running it on one pixel
    FLOPs of the model = evaluations * FLOPs of one guided evaluation, traced

A cascade samples on the chips of its own process, every chip all experts and its share of the pictures. The encoders
have encoded the prompts before, and are not part of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ediffi_jax import conditioning, samplers
from ediffi_jax.encoders.sharding import batch_sharding
from ediffi_jax.planning.flops import flops_of_jaxpr
from ediffi_jax.planning.program import batch_shapes, encoders_of, make_objective, model_shapes, stacked_shapes, struct
from ediffi_jax.release import SamplerSpec
from ediffi_jax.stage import Stage, noise_grid
from ediffi_jax.training.mesh import replicated
from ediffi_jax.training.preview import stage_spec
from ediffi_jax.training.schedule import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleProgram:
    """A stage and what it is given.

    Attributes:
        stage: with shapes for parameters, whole on every device.
        rows: conditioning, keys, low_res, [B, ...] over all devices.
        mesh: the devices of a host.
    """

    stage: Stage
    rows: dict[str, Any]
    mesh: Mesh

    @property
    def images(self) -> int:
        """Of a run, on all devices."""
        return self.rows["keys"].shape[0]

    @property
    def held(self) -> dict[str, PyTree]:
        """What lies on the devices before a run."""
        return {"parameters": self.stage.at_compute_dtype(self.stage.params), "batch": self.rows}

    def trace(self, settings: SamplerSpec | None = None) -> jax.stages.Traced:
        """The program; default with the stage's settings."""
        return self.stage.trace(**self.rows, settings=settings)

    def lower(self) -> Any:
        """The program, lowered for the mesh's devices."""
        return self.trace().lower()


def sample_program(config: ConfigDict, phase: Phase, mesh: Mesh, batch_size: int) -> SampleProgram:
    """A recipe's stage after one of its phases.

    Args:
        config: a recipe; no data, weights or encoders need to be there.
        phase: whose experts sample; of an expert that is trained alone, all experts of its partition.
        mesh: devices of a host.
        batch_size: pictures at a time, over all of them.
    """
    encoders = encoders_of(config, mesh)
    objective = make_objective(config, encoders, mesh)
    shapes = model_shapes(objective, batch_shapes(config, phase, encoders, "precomputed"))
    spec = stage_spec(config, phase, config.data.resolution)
    over = batch_sharding(mesh)
    # An array of keys [B] and pictures [B, h, w, 3] to start from.
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    cond = jax.eval_shape(lambda: conditioning.zeros(batch_size, encoders.spec))
    rows = {"conditioning": cond, "keys": keys}
    if size := spec.low_resolution:
        rows["low_res"] = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)
    params = stacked_shapes(shapes, len(phase.cuts) + 1)
    return SampleProgram(
        stage=Stage(
            spec=spec,
            params=jax.tree.map(lambda leaf: struct(leaf, replicated(mesh)), params),
            compute_dtype=str(objective.network.dtype),
        ),
        rows=jax.tree.map(lambda leaf: struct(leaf, over), rows),
        mesh=mesh,
    )


def evaluations(settings: SamplerSpec) -> int:
    """How often a sampler evaluates its denoiser."""
    calls = 0

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        nonlocal calls
        calls += 1
        return x

    with jax.disable_jit():
        samplers.get(settings.name)(denoise, np.zeros((1, 1, 1, 3), np.float32), noise_grid(settings))
    return calls


def flops_of_one(program: SampleProgram) -> int:
    """FLOPs of one evaluation with its guidance, of all pictures: a sampler of one Euler step has one."""
    one = dataclasses.replace(program.stage.spec.sampler, name="euler", steps=1)
    return flops_of_jaxpr(program.trace(one).jaxpr.jaxpr)


def flops_of_all(program: SampleProgram) -> int:
    """FLOPs as they stand in the program, each stage of each step counted, also those that the last step leaves out."""
    return flops_of_jaxpr(program.trace().jaxpr.jaxpr)
