"""Where everything lies: Mesh(expert, data, fsdp), and an ordered list of regex -> placement rules.

Every leaf of parameters, EMA and optimizer state has a leading expert axis, laid over `expert`. Of the
other axes at most one is laid over `fsdp`, as the first matching rule of `RULES` says. Batches [E, B, ...]
are laid over `expert` and (`data`, `fsdp`). The compiler derives every collective from these placements.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool

from ediffi_jax.data.batches import Part
from ediffi_jax.encoders.sharding import gathered
from ediffi_jax.training.errors import TrainingError
from ediffi_jax.training.slices import arrange
from ediffi_jax.types import Params

AXES = ("expert", "data", "fsdp")
# First match wins. "replicate" keeps a leaf whole on each device of an expert's group; "largest" cuts its
# largest axis that `fsdp` divides (the last of equals: output channels).
RULES: tuple[tuple[str, str], ...] = (
    (r"(bias|scale|null|count)$", "replicate"),
    (r".*", "largest"),
)
MIN_SHARDED_SIZE = 2**12  # smaller leaves cost more in latency than they save in memory


def make_mesh(sizes: Mapping[str, int], num_experts: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices out as (expert, data, fsdp).

    Args:
        sizes: size of each axis; -1 takes what the others leave (at most one of them; `expert=-1` takes
            the largest number that divides both the experts and the devices).
        num_experts: experts in the state. A single expert always gets all devices.
        devices: default all devices of all processes.

    Raises:
        TrainingError: sizes that do not fit the devices, their slices or the experts, with those that do.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    expert, data, fsdp = (int(sizes.get(axis, 1)) for axis in AXES)
    fitting = [n for n in range(1, count + 1) if count % n == 0 and num_experts % n == 0]
    if expert == -1 or num_experts == 1:
        data = -1 if num_experts == 1 and expert > 1 else data
        expert = max(fitting)
    if expert not in fitting:
        raise TrainingError(
            f"mesh.expert={expert} does not divide {count} devices and {num_experts} experts;"
            f" choices: {', '.join(map(str, fitting))}"
        )
    if data == -1 and fsdp == -1:
        raise TrainingError("mesh.data and mesh.fsdp are both -1; expected at most one axis to fill")
    group = count // expert
    fsdp = group // max(data, 1) if fsdp == -1 else fsdp
    data = group // max(fsdp, 1) if data == -1 else data
    if data * fsdp != group:
        divisors = [n for n in range(1, group + 1) if group % n == 0]
        raise TrainingError(
            f"mesh of expert={expert} x data={data} x fsdp={fsdp} does not use {count} devices;"
            f" data x fsdp must be {group}: each one of {', '.join(map(str, divisors))}"
        )
    return Mesh(arrange(devices, (expert, data, fsdp)), AXES, axis_types=(AxisType.Auto,) * 3)


def leaf_spec(path: str, shape: Sequence[int], fsdp: int) -> P:
    """Placement of one leaf of the state: leading expert axis, then by the first matching rule."""
    if not shape:
        return P()
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    spec: list[str | None] = ["expert"] + [None] * (len(shape) - 1)
    if rule == "largest" and fsdp > 1 and math.prod(shape[1:]) >= MIN_SHARDED_SIZE:
        divisible = [axis for axis in range(1, len(shape)) if shape[axis] % fsdp == 0]
        if divisible:
            spec[max(divisible, key=lambda axis: (shape[axis], axis))] = "fsdp"
    return P(*spec)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of each leaf of a state (or of its shapes), same tree."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, leaf_spec(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, state)


def whole(mesh: Mesh, params: Params) -> Params:
    """One expert's parameters, gathered where they are used; their gradient comes back in the parts they lie in.

    The transpose of gathering alone would be a gradient that is whole on every device, in memory all at once.

    Args:
        mesh: of `make_mesh`; inside `shard_map` its manual axes are left alone.
        params: leaves without an expert axis.
    """

    def in_parts(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = leaf_spec(name, (1, *leaf.shape), mesh.shape["fsdp"])
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(around, P(*spec[1:])))

    around = jax.sharding.get_abstract_mesh()
    if not around.empty and jax.__version_info__ < (0, 8):
        return gathered(mesh, params)  # which leaves them alone
    around = mesh if around.empty else around
    used = jax.custom_vjp(functools.partial(gathered, mesh))
    used.defvjp(
        lambda params: (gathered(mesh, params), None),
        lambda _, gradient: (jax.tree_util.tree_map_with_path(in_parts, gradient),),
    )
    return used(params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array [E, B, ...] of a batch."""
    return NamedSharding(mesh, P("expert", ("data", "fsdp")))


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array [n, E, B, ...] of n batches."""
    return NamedSharding(mesh, P(None, "expert", ("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises TrainingError if the devices of one expert do not divide each of the `accumulate` parts of its batch."""
    group = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch_size <= 0 or batch_size % group:
        parts = f" x accumulate={accumulate}" * (accumulate > 1)
        raise TrainingError(
            f"batch_size={batch_size} (per expert) is not a multiple of {group}: the devices of an expert"
            f" (data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}){parts}; next fitting:"
            f" {max(1, math.ceil(batch_size / group)) * group}"
        )


def local_part(mesh: Mesh) -> tuple[Part, Part]:
    """The part of every batch [E, B, ...] that this process's devices hold: of the experts, and of each one's images.

    Raises:
        TrainingError: they do not hold the same images of each of their experts.
    """
    own = np.array([device.process_index == jax.process_index() for device in mesh.devices.flat])
    try:
        return part_of(own.reshape(mesh.shape["expert"], -1))
    except ValueError as error:
        sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise TrainingError(
            f"the devices of process {jax.process_index()} are no grid of the mesh {sizes};"
            f" expected sizes that give each of the {jax.process_count()} processes whole experts, or parts of one"
        ) from error


def part_of(own: Bool[np.ndarray, "experts rows"]) -> tuple[Part, Part]:
    """The part that some devices hold, True in `own`. Raises ValueError unless they are some experts x some rows."""
    experts, rows = own.any(axis=1), own.any(axis=0)
    if not np.array_equal(own, np.outer(experts, rows)):
        raise ValueError("no grid")
    parts = [Part(count=len(axis), held=tuple(np.flatnonzero(axis).tolist())) for axis in (experts, rows)]
    return parts[0], parts[1]


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves a host batch onto the mesh; with several processes each gives its `local_part`."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_batches(batches: Sequence[Mapping[str, np.ndarray]], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves several host batches at once, as arrays [n, E, B, ...]."""
    sharding = batches_sharding(mesh)
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    if jax.process_count() == 1:
        return jax.device_put(stacked, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in stacked.items()}


def put_whole(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves a batch that every process has whole onto the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__) for name, rows in batch.items()}
