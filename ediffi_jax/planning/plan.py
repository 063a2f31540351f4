"""A plan: a phase of a recipe on a slice of a pod, and what that comes to.

    config, topology, mesh ─▶ program ─▶ measured ─▶ roofline ─▶ images/s, days, chip-hours
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ediffi_jax.errors import nearest
from ediffi_jax.planning.collectives import summary
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.flops import global_flops
from ediffi_jax.planning.measuring import Measured, measure
from ediffi_jax.planning.meshes import make_mesh
from ediffi_jax.planning.program import TrainProgram, phase_of, train_program
from ediffi_jax.planning.roofline import Roofline, bound
from ediffi_jax.planning.topology import Topology
from ediffi_jax.planning.whole_run import Stretch, stretches
from ediffi_jax.training.config import validate
from ediffi_jax.training.mesh import AXES
from ediffi_jax.training.schedule import Phase

GB = 1e9
DAY = 86_400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a phase comes to.

    Attributes:
        topology: chips.
        program: the step that was compiled.
        measured: what the compiler said.
        roofline: least time of a step; None if it does not fit.
        steps: of this phase.
        embeddings: "live", "precomputed" or "int8".
        remat: whether blocks are computed again in the backward pass.
        run: all phases of the recipe.
    """

    topology: Topology
    program: TrainProgram
    measured: Measured
    roofline: Roofline | None
    steps: int
    embeddings: str
    remat: bool
    run: tuple[Stretch, ...] = ()

    @property
    def params(self) -> int:
        """Of one model."""
        return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(self.program.state.params))

    @property
    def images_per_second(self) -> float:
        """At the most, over all experts; 0 if it does not fit."""
        return self.program.images / self.roofline.seconds if self.roofline else 0.0

    @property
    def mfu(self) -> float:
        """At the most: share of the chips' peak that the model's own FLOPs could take; 0 if it does not fit."""
        return self.roofline.mfu(self.measured.model_flops / self.topology.chips) if self.roofline else 0.0

    @property
    def checkpoint_bytes(self) -> int:
        """Parameters, EMA and moments of all experts."""
        state = self.program.state
        leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    def step_seconds(self, mfu: float) -> float:
        """At a share of the peak that one expects; infinite if a chip's speed is not stated."""
        speed = self.topology.chips * self.topology.chip.peak_flops * mfu
        return self.measured.model_flops / speed if speed else math.inf

    def days(self, mfu: float | None = None) -> float:
        """Of the phase: at the bound, or at a share of the peak that one expects."""
        bound = self.roofline.seconds if self.roofline else math.inf
        return self.steps * (bound if mfu is None else self.step_seconds(mfu)) / DAY

    def to_json(self) -> dict[str, Any]:
        """Flat, for machines. FLOPs are of a step over all chips; bytes of HBM and of collectives of one chip."""
        measured, chip = self.measured, self.topology.chip
        devices = chip.devices_per_chip
        payload = summary(measured.collectives)
        return {
            "fits": measured.fits,
            "topology": self.topology.jax_name,
            "cloud_name": self.topology.cloud_name,
            "slices": self.topology.slices,
            "chips": self.topology.chips,
            "mesh": {axis: self.program.mesh.shape[axis] for axis in AXES},
            "experts": self.program.phase.num_experts,
            "embeddings": self.embeddings,
            "remat": self.remat,
            "hbm_used_gb": measured.used / GB,
            "hbm_available_gb": chip.hbm_bytes / GB,
            "hbm_gb": {k: v / GB for k, v in dataclasses.asdict(measured.memory).items()} if measured.memory else {},
            "params": self.params,
            "global_batch": self.program.images,
            "batch_per_expert": self.program.batch_size,
            "compiled_flops_per_step": measured.compiled_flops,
            "model_flops_per_step": measured.model_flops,
            "compile_seconds": measured.compile_seconds,
            "step_seconds_bound": self.roofline.seconds if self.roofline else None,
            "limited_by": self.roofline.limited_by if self.roofline else None,
            "images_per_second_bound": self.images_per_second,
            "mfu_bound": self.mfu,
            "collective_bytes": {a: {n: b * devices for n, b in by.items()} for a, by in payload.items()},
            "checkpoint_gb": self.checkpoint_bytes / GB,
            "steps": self.steps,
            "days_bound": self.days() if self.roofline else None,
            "chip_hours_bound": 24 * self.days() * self.topology.chips if self.roofline else None,
            "schedule": [self._stretch(one) for one in self.run],
        }

    def _stretch(self, one: Stretch) -> dict[str, Any]:
        timed = self.roofline is not None and one.same_mesh
        return {
            "phase": one.index, "experts": one.experts, "steps": one.steps, "compiled": one.compiled,
            "days_bound": one.days(self.roofline.seconds) if timed else None,
            "model_flops": one.steps * one.share * self.measured.model_flops,
        }  # fmt: skip


def make_plan(
    config: ConfigDict,
    topology: Topology,
    mesh: Mapping[str, int] | None = None,
    *,
    phase: int = 0,
    embeddings: str = "live",
    effort: str = "quick",
) -> Plan:
    """Compiles a phase's step for a topology.

    Args:
        config: a recipe.
        topology: chips to compile for.
        mesh: sizes of the axes; default the config's.
        phase: which of the config's.
        embeddings: as in `program.train_program`.
        effort: as in `measuring.measure`.

    Raises:
        UserError: what does not fit together, in one line.
    """
    chosen = phase_of(config, phase)
    laid = mesh_of(config, chosen, topology, mesh)
    program = train_program(config, chosen, laid, embeddings)
    flops = model_flops(config, chosen, laid, embeddings)
    measured = measure(program, topology.chip, flops, effort)
    phases = validate(config)
    sizes = {count: mesh_sizes(kept_sizes(config, mesh), count, topology) for count in {p.num_experts for p in phases}}
    return Plan(
        topology=topology, program=program, measured=measured, roofline=roofline(measured, topology),
        steps=chosen.steps, embeddings=embeddings, remat=bool(config.model.get("remat", False)),
        run=stretches(phases, phase, sizes),
    )  # fmt: skip


def mesh_of(config: ConfigDict, phase: Phase, topology: Topology, given: Mapping[str, int] | None = None) -> Mesh:
    """A phase's devices: the recipe's sizes with those `given` in their place. Raises PlanError if they do not fit."""
    return make_mesh(topology, **mesh_sizes(kept_sizes(config, given), phase.num_experts, topology))


def kept_sizes(config: ConfigDict, given: Mapping[str, int] | None) -> dict[str, int]:
    """The recipe's sizes of axes with those `given` in their place; only one of both fills what is left."""
    given = dict(given or {})
    kept = {axis: 1 if size == -1 and -1 in given.values() else size for axis, size in config.mesh.items()}
    return {**kept, **given}


def read_mesh(text: str | None) -> dict[str, int]:
    """Reads "expert=3,fsdp=-1". Raises PlanError for an unknown axis or a size that is none."""
    sizes: dict[str, int] = {}
    for word in filter(None, (text or "").split(",")):
        axis, _, size = word.strip().partition("=")
        if axis not in AXES:
            raise PlanError(f"--mesh has no axis {axis!r}{nearest(axis, AXES)}")
        if not re.fullmatch(r"-1|[1-9]\d*", size):
            raise PlanError(f"--mesh={word}; expected {axis}=NUMBER, or {axis}=-1 for what the others leave")
        sizes[axis] = int(size)
    return sizes


def mesh_sizes(sizes: Mapping[str, int], experts: int, topology: Topology) -> dict[str, int]:
    """Sizes as `meshes.make_mesh` takes them: a run's `expert=-1` is the most groups that experts and devices allow."""
    found = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    if found["expert"] == -1 or experts == 1:
        found["expert"] = math.gcd(experts, topology.devices)
    return found


def model_flops(config: ConfigDict, phase: Phase, mesh: Mesh, embeddings: str) -> int:
    """Of a step of all experts, counted on a trace without rematerialisation."""
    plain = ConfigDict(config.to_dict())
    plain.model.remat = False
    program = train_program(plain, phase, mesh, embeddings)
    return global_flops(program.step, *program.arguments)


def roofline(measured: Measured, topology: Topology, reads: float = 1.0, writes: float = 1.0) -> Roofline | None:
    """The least time of a step; None if it does not fit, or the chip's speed is not stated.

    Args:
        measured: of one run.
        topology: what it was compiled for.
        reads, writes: of the state, as in `measuring.Memory.traffic`.
    """
    if measured.memory is None or not topology.chip.peak_flops:
        return None
    devices = topology.chip.devices_per_chip
    sent = {"ici": 0, "dcn": 0, "chip": 0}
    for one in measured.collectives:
        sent[one.network] += one.count * one.wire_bytes * devices
    flops = measured.compiled_flops / topology.chips
    return bound(flops, measured.memory.traffic(reads, writes), sent["ici"], sent["dcn"], topology.chip)
