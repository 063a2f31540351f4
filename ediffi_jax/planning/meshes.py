"""The devices of a topology as Mesh(expert, data, fsdp), slices where the least is sent between them.

Experts exchange nothing, so the slices lie along `expert` as far as its size lets them, along `data` beyond
that, and never along `fsdp`, whose weights are gathered in every layer. Within a slice JAX fits the axes to
the torus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.topology import Topology
from ediffi_jax.training.mesh import AXES


def make_mesh(topology: Topology, *, expert: int = 1, data: int = 1, fsdp: int = -1) -> Mesh:
    """Lays a topology's devices out, to compile for.

    Args:
        topology: which; its devices are asked of the TPU's compiler.
        expert, data, fsdp: size of each axis; one of them may be -1, which takes what the others leave.

    Returns:
        A mesh with automatic axes, named as in `training.mesh`.

    Raises:
        PlanError: sizes that do not use all devices, slices that neither `expert` nor `data` can span.
    """
    sizes = fill((expert, data, fsdp), topology)
    across = slices_along(sizes, topology.slices)
    return Mesh(arrange(topology.describe(), sizes, across), AXES, axis_types=(AxisType.Auto,) * len(AXES))


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


def slices_along(sizes: Sequence[int], slices: int) -> tuple[int, int, int]:
    """How many slices lie along each axis. Raises PlanError if `expert` and `data` cannot hold them all."""
    expert = math.gcd(sizes[0], slices)
    rest = slices // expert
    if sizes[1] % rest:
        group = sizes[1] * sizes[2]
        fitting = [n for n in range(rest, group + 1, rest) if group % n == 0]
        raise PlanError(
            f"{slices} slices do not lie along expert={sizes[0]} and data={sizes[1]} (fsdp stays within a slice);"
            f" expected expert={slices}" + f", or data one of {', '.join(map(str, fitting))}" * bool(fitting)
        )
    return expert, rest, 1


def arrange(devices: Sequence[Any], sizes: Sequence[int], across: Sequence[int]) -> np.ndarray:
    """Devices as an array [expert, data, fsdp].

    Args:
        devices: of all slices, each slice in one run.
        sizes: of the axes.
        across: slices along each axis, outermost in it.
    """
    inner = [size // slices for size, slices in zip(sizes, across, strict=True)]
    slices = np.empty(across, dtype=object)
    per_slice = len(devices) // slices.size
    blocks = [
        within_slice(devices[start : start + per_slice], inner) for start in range(0, len(devices), per_slice)
    ]
    stacked = np.stack(blocks).reshape(*across, *inner)
    return stacked.transpose(0, 3, 1, 4, 2, 5).reshape(sizes)


def within_slice(devices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """JAX's own order; axes that fit no whole dimensions of the torus get parts of one."""
    try:
        return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=list(devices)).devices
    except RuntimeError:  # JAX assigns whole dimensions only, except on v5e
        return mesh_utils.create_device_mesh(tuple(shape), list(devices), allow_split_physical_axes=True)
