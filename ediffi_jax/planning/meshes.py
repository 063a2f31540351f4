"""The devices of a topology as Mesh(expert, data, fsdp), in the places that a run would give them."""

from __future__ import annotations

import math

from jax.sharding import AxisType, Mesh

from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.topology import Topology
from ediffi_jax.training.mesh import AXES
from ediffi_jax.training.slices import arrange


def make_mesh(topology: Topology, *, expert: int = 1, data: int = 1, fsdp: int = -1) -> Mesh:
    """Lays a topology's devices out, to compile for.

    Args:
        topology: which; its devices are asked of the TPU's compiler.
        expert, data, fsdp: size of each axis; one of them may be -1, which takes what the others leave.

    Returns:
        A mesh with automatic axes, named as in `training.mesh`.

    Raises:
        PlanError: sizes that do not use all devices.
        TrainingError: slices that neither `expert` nor `data` can span.
    """
    sizes = fill((expert, data, fsdp), topology)
    return Mesh(arrange(topology.describe(), sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def fill(sizes: tuple[int, int, int], topology: Topology) -> tuple[int, int, int]:
    """Puts a number for -1. Raises PlanError if the sizes do not multiply to the devices."""
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    what = f"the {topology.devices} devices of {topology.jax_name}" + f" x {topology.slices}" * (topology.slices > 1)
    open_axes = [axis for axis, size in zip(AXES, sizes, strict=True) if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise PlanError(f"mesh {said}: expected sizes of 1 or more, and -1 for at most one axis, which it fills")
    fixed = math.prod(size for size in sizes if size != -1)
    if topology.devices % fixed or (fixed != topology.devices and not open_axes):
        raise PlanError(f"mesh {said} does not use {what}; expected {advice(sizes, topology.devices)}")
    expert, data, fsdp = (topology.devices // fixed if size == -1 else size for size in sizes)
    return expert, data, fsdp


def advice(sizes: tuple[int, int, int], devices: int) -> str:
    """The sizes that would do: of the first axis that keeps none, or of the last one."""
    left = devices
    for axis, size in zip(AXES[:2], sizes[:2], strict=True):
        if size != -1 and left % size:
            return f"{axis} to divide {left}: {', '.join(str(n) for n in range(1, left + 1) if left % n == 0)}"
        left //= max(size, 1)
    return f"fsdp={left} beside {AXES[0]}={max(sizes[0], 1)} and {AXES[1]}={max(sizes[1], 1)}"
