"""What a train step takes, roughly: from shapes, residuals and FLOPs, nothing compiled; for `search`.

    state        parameters, EMA, moments as they are cut; gradients like parameters
    activations  what the backward pass keeps, [residuals of 2 images] - [residuals of 1] per image
    time         max(FLOPs / peak, state and activations / HBM, weights gathered and gradients summed / networks)

The residuals are an upper bound, since a compiler computes elementwise work again rather than keep it; and with
rematerialisation one block's are there while it is gone through. `KEPT` and `BLOCK` set that right, taken from the
compiled step of an ADM of the base's size on v5e:4x4. Good for an order, not for a promise: candidates get compiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ediffi_jax.encoders import Encoders
from ediffi_jax.planning.flops import flops_of_jaxpr
from ediffi_jax.planning.meshes import make_mesh
from ediffi_jax.planning.program import batch_shapes, encoders_of, make_objective, model_shapes
from ediffi_jax.planning.topology import Topology
from ediffi_jax.training.mesh import leaf_spec
from ediffi_jax.training.objective import Objective
from ediffi_jax.training.schedule import Phase

KEPT = 0.5  # of the residuals without rematerialisation, what a compiled step keeps
BLOCK = 0.1  # of them, what is there of one block with it
CODE = 5e8  # bytes of a program, about
STATE = 4  # float32 numbers per parameter: itself, its average and two moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """How a step may be laid out.

    Attributes:
        expert, data, fsdp: sizes of the mesh.
        batch_size: of each expert.
        remat: whether blocks are computed again.
    """

    expert: int
    data: int
    fsdp: int
    batch_size: int
    remat: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Of the mesh."""
        return {"expert": self.expert, "data": self.data, "fsdp": self.fsdp}

    def flags(self) -> str:
        """That make `launch.train` and `launch.plan` do so."""
        axes = " ".join(f"--config.mesh.{axis}={size}" for axis, size in self.sizes.items())
        return f"{axes} --config.batch_size={self.batch_size} --config.model.remat={self.remat}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a chip, about.

    Attributes:
        hbm: bytes.
        seconds: of a step.
        fits: whether the chip has that memory, or it is not stated.
    """

    hbm: float
    seconds: float
    fits: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What an estimate is made from, of one model and one image.

    Attributes:
        params: shapes of a model.
        residuals: bytes that the backward pass keeps of an image, by remat.
        flops: of the step of an image, by remat.
        row: bytes of an image's part of a batch.
        encoders: bytes of the encoders' weights in the step.
        experts: that train.
        accumulate: parts of a batch, one after the other.
    """

    params: PyTree
    residuals: Mapping[bool, float]
    flops: Mapping[bool, float]
    row: float
    encoders: float
    experts: int
    accumulate: int = 1

    def estimate(self, shape: Shape, topology: Topology) -> Estimate:
        """Memory and time of a way to lay the step out."""
        chip = topology.chip
        turns, group = self.experts // shape.expert, shape.data * shape.fsdp
        images = shape.batch_size / group * chip.devices_per_chip
        whole = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        part = sum(4 * self._cut(path, leaf, shape.fsdp) for path, leaf in leaves) * chip.devices_per_chip
        kept = self.residuals[True] + BLOCK * self.residuals[False] if shape.remat else KEPT * self.residuals[False]
        state = STATE * part * turns
        given = images * turns * self.row + self.encoders / group * chip.devices_per_chip
        hbm = state + part + images * kept / self.accumulate + given + CODE
        sent = turns * (1.5 * whole * (1 - 1 / shape.fsdp) + 2 * part * (1 - 1 / shape.data))
        slow = turns * 2 * part if topology.slices > shape.expert else 0.0
        amounts = (
            (turns * images * self.flops[shape.remat], chip.peak_flops),
            (2 * state + turns * images * 2 * kept, chip.hbm_bandwidth),
            (sent, chip.ici_bandwidth / 2),
            (slow, chip.dcn_bandwidth),
        )
        seconds = max(amount / speed if speed else 0.0 for amount, speed in amounts)
        return Estimate(hbm=hbm, seconds=seconds, fits=not chip.hbm_bytes or hbm <= chip.hbm_bytes)

    @staticmethod
    def _cut(path: Any, leaf: Any, fsdp: int) -> int:
        """Numbers of a leaf that one device keeps."""
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        cut = "fsdp" in leaf_spec(name, (1, *leaf.shape), fsdp)
        return math.prod(leaf.shape) // (fsdp if cut else 1)


def costs_of(config: ConfigDict, phase: Phase, topology: Topology, embeddings: str) -> Costs:
    """Traces the loss and its gradient, with and without rematerialisation."""
    mesh = make_mesh(topology, expert=1, data=topology.slices, fsdp=-1)
    encoders = encoders_of(config, mesh)
    batch = batch_shapes(config, phase, encoders, embeddings)
    live = isinstance(encoders, Encoders) and embeddings == "live"
    frozen = encoders.params if live else {}
    residuals, flops = {}, {}
    for remat in (True, False):
        changed = ConfigDict(config.to_dict())
        changed.model.remat = remat
        objective = make_objective(changed, encoders, mesh)
        params = model_shapes(objective, batch)
        one, two = (_kept(objective, params, frozen, batch, count) for count in (1, 2))
        residuals[remat] = two - one
        flops[remat] = flops_of_jaxpr(jax.make_jaxpr(_gradient(objective, 1))(params, frozen, _rows(batch, 1)).jaxpr)
    return Costs(
        params=params,
        residuals=residuals,
        flops=flops,
        row=sum(math.prod(leaf.shape[2:]) * leaf.dtype.itemsize for leaf in batch.values()),
        encoders=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen)),
        experts=phase.num_experts,
        accumulate=config.accumulate,
    )


def _rows(batch: Mapping[str, Any], count: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((count, *leaf.shape[2:]), leaf.dtype) for name, leaf in batch.items()}


def _loss(objective: Objective, count: int) -> Any:
    def loss(params: PyTree, frozen: PyTree, batch: Mapping[str, Any]) -> jax.Array:
        key = jax.random.key(0)
        cond = objective.conditioning(frozen, batch, objective.draw_kept(batch, key))
        noises, dropout_key = objective.draw_noises(batch, key)
        edges = jnp.float32(0), jnp.float32(jnp.inf)
        return objective.losses(params, batch, cond, jnp.ones(count), *edges, noises, dropout_key).mean()

    return loss


def _gradient(objective: Objective, count: int) -> Any:
    return jax.grad(_loss(objective, count))


def _kept(objective: Objective, params: PyTree, frozen: PyTree, batch: Mapping[str, Any], count: int) -> int:
    """Bytes of everything that the backward pass of so many images is given."""

    def backward(params: PyTree, frozen: PyTree, rows: Mapping[str, Any]) -> Any:
        return jax.vjp(lambda p: _loss(objective, count)(p, frozen, rows), params)[1]

    found = jax.eval_shape(backward, params, frozen, _rows(batch, count))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))
