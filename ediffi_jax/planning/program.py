"""The train step of a config as shapes: what `launch.train` would compile, without data, weights or accelerators.

    config ─▶ network, objective, optimizer, mesh ─▶ step, and the shapes and placements of its arguments

It is `training.step.make_train_step` itself, so what is measured of it is what a run will be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ediffi_jax import models
from ediffi_jax.conditioning import DropRates
from ediffi_jax.data.config import DataConfig
from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.encoders import Encoders
from ediffi_jax.encoders.sharding import param_shardings, weight_axes
from ediffi_jax.noise import LogNormal
from ediffi_jax.planning.encoders import planned_encoders
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.training.config import validate
from ediffi_jax.training.config_files import to_json
from ediffi_jax.training.mesh import batch_sharding, check_batch_size, state_shardings
from ediffi_jax.training.objective import Objective
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState, create, make_optimizer
from ediffi_jax.training.step import make_train_step
from ediffi_jax.training.unconditional import Unconditional

EMBEDDINGS = ("live", "precomputed", "int8")
SAMPLE = 1  # images that shapes of parameters are found with


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgram:
    """A step and its arguments.

    Attributes:
        step: (state, batch, encoder weights) -> (state, metrics), jitted.
        state, batch, frozen: shapes, dtypes and placements.
        phase: whose step it is.
        mesh: what it is laid over.
        batch_size: images per expert.
    """

    step: Callable[..., Any]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    frozen: PyTree
    phase: Phase
    mesh: Mesh
    batch_size: int

    @property
    def images(self) -> int:
        """Per step, over all experts."""
        return self.phase.num_experts * self.batch_size

    @property
    def held(self) -> dict[str, PyTree]:
        """What lies on the devices between steps, and the batch."""
        state = {"parameters": self.state.params, "ema": self.state.ema, "optimizer": self.state.opt_state}
        return {**state, "encoders": self.frozen, "batch": self.batch}

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of `step`."""
        return self.state, self.batch, self.frozen

    def lower(self) -> Any:
        """`step` traced and lowered for the mesh's devices."""
        return self.step.lower(*self.arguments)


def phase_of(config: ConfigDict, index: int) -> Phase:
    """A phase of the config, from 0; -1 is the last. Raises PlanError if there is none."""
    phases = validate(config)
    if not -len(phases) <= index < len(phases):
        raise PlanError(f"--phase={index}: the config has {len(phases)} phases; expected 0 to {len(phases) - 1}, or -1")
    return phases[index]


def train_program(config: ConfigDict, phase: Phase, mesh: Mesh, embeddings: str = "live") -> TrainProgram:
    """The step of one phase.

    Args:
        config: a recipe; its data need not be there, nor its encoders: those of the paper are assumed then.
        phase: of the config.
        mesh: devices to compile for.
        embeddings: "live" encodes in the step, "precomputed" and "int8" read what `launch.encode` made.

    Raises:
        UserError: what does not fit.
    """
    check_batch_size(mesh, config.batch_size, config.accumulate)
    encoders = encoders_of(config, mesh)
    objective = make_objective(config, encoders, mesh)
    optimizer = make_optimizer(config.optimizer, 1)
    batch = batch_shapes(config, phase, encoders, embeddings)
    state = state_shapes(objective, optimizer, phase, batch)
    placed = batch_sharding(mesh)
    params = encoders.params if isinstance(encoders, Encoders) and embeddings == "live" else {}
    return TrainProgram(
        step=make_train_step(
            objective=objective, optimizer=optimizer, ema=config.ema, phase=phase, mesh=mesh, seed=config.seed,
            accumulate=config.accumulate,
        ),  # fmt: skip
        state=placed_shapes(state, state_shardings(mesh, state)),
        batch={name: struct(leaf, placed) for name, leaf in batch.items()},
        frozen=placed_shapes(params, param_shardings(mesh, params, weight_axes(mesh))),
        phase=phase,
        mesh=mesh,
        batch_size=config.batch_size,
    )


def dtype_of(config: ConfigDict, mesh: Mesh) -> str:
    """What a run computes in, where "auto" is what the mesh's devices are best at."""
    fast = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return fast if config.compute_dtype == "auto" else config.compute_dtype


def encoders_of(config: ConfigDict, mesh: Mesh) -> Encoders | Unconditional:
    """Those of a config with shapes for weights, as devices of the mesh hold them."""
    return planned_encoders(config.encoders, dtype_of(config, mesh)) if config.encoders else Unconditional()


def make_objective(config: ConfigDict, encoders: Encoders | Unconditional, mesh: Mesh) -> Objective:
    """The loss, computed in what the mesh's devices are best at."""
    return Objective(
        network=models.build({**to_json(config.model), "dtype": dtype_of(config, mesh)}),
        encoders=encoders,
        noise=LogNormal(**config.noise),
        sigma_data=config.sigma_data,
        drop=DropRates(**config.conditioning),
        max_level=config.aug.max_level,
    )


def batch_shapes(
    config: ConfigDict, phase: Phase, encoders: Encoders | Unconditional, embeddings: str
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch [E, B, ...] as the loader makes it (`data.loader.make_loader`)."""
    if embeddings not in EMBEDDINGS:
        raise PlanError(f"--embeddings={embeddings}; expected one of {', '.join(EMBEDDINGS)}")
    lead = (phase.num_experts, config.batch_size)
    sizes = DataConfig.parse({**config.data, "name": "synthetic", "embeddings": ""}).views
    live = embeddings == "live" or isinstance(encoders, Unconditional)
    pictures = {name: shape for name, shape in sizes.shapes().items() if live or name != "clip_pixels"}
    batch = {name: jax.ShapeDtypeStruct((*lead, *shape), jnp.uint8) for name, shape in pictures.items()}
    if isinstance(encoders, Unconditional):
        return batch
    if sizes.clip:
        batch["needs_image"] = jax.ShapeDtypeStruct(lead, jnp.bool_)
    if live:
        lengths = {"t5": encoders.spec.t5_tokens, "clip": encoders.spec.clip_tokens}
        for name, length in lengths.items():
            batch[f"{name}_ids"] = jax.ShapeDtypeStruct((*lead, length), jnp.int32)
            batch[f"{name}_mask"] = jax.ShapeDtypeStruct((*lead, length), jnp.bool_)
        return batch
    rows = RowFormat(spec=encoders.spec, int8=embeddings == "int8", pictures=sizes.clip > 0)
    stored = rows.decode([], [])
    return batch | {name: jax.ShapeDtypeStruct((*lead, *leaf.shape[1:]), leaf.dtype) for name, leaf in stored.items()}


def model_shapes(objective: Objective, batch: dict[str, Any]) -> PyTree:
    """Parameters of one model, as shapes, for batches [E, B, ...]."""
    example = {name: jax.ShapeDtypeStruct((SAMPLE, *leaf.shape[2:]), leaf.dtype) for name, leaf in batch.items()}
    return jax.eval_shape(lambda example: objective.init(jax.random.key(0), example), example)


def stacked_shapes(shapes: PyTree, experts: int) -> PyTree:
    """The same of so many experts, [E, ...]."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((experts, *leaf.shape), leaf.dtype), shapes)


def state_shapes(objective: Objective, optimizer: Any, phase: Phase, batch: dict[str, Any]) -> TrainState:
    """Parameters, EMA and moments of all experts of the phase, as shapes."""
    stacked = stacked_shapes(model_shapes(objective, batch), phase.num_experts)
    return jax.eval_shape(lambda params: create(params, optimizer), stacked)


def struct(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """A shape with a placement."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def placed_shapes(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with placements, leaf by leaf."""
    return jax.tree.map(struct, tree, shardings)
