"""Which devices a collective of a compiled program joins, and what lies between them: mesh axes, chips, slices.

A program numbers its devices in the order of the mesh; compiled for several slices it is the program of one of
them and numbers only its own. What crosses slices is addressed by device id. Groups come written in five ways:

    {{0,1},{2,3}}                                   lists; {} is everybody
    [2,4]<=[4,2]T(1,0)                              rows of a reshaped, transposed and again reshaped 0, 1, 2, ...
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}   along axes of the program's own mesh
    {{0,1},{1,2}} as source_target_pairs            from, to
    {{100000,200000}}, {{100000->200000}}, {1,2}x{0:3}  over slices, by id; slice k's ids begin at k * 100000
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.hlo import Instruction

SLICE_IDS = 100_000
REDUCING = ("all-reduce", "all-gather", "reduce-scatter")
Groups = list[list[int]]
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(((?:[^()]|\([^()]*\))*)\))? ?\{([^}]*)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each device of a mesh stands; positions count in the mesh's order.

    Attributes:
        axes: names of the mesh's axes.
        coords: [devices, axes], each device's place along each.
        ids: of the devices.
        slices: the slice each is in.
        chips: the chip each is on, any numbers.
    """

    axes: tuple[str, ...]
    coords: np.ndarray
    ids: tuple[int, ...]
    slices: tuple[int, ...]
    chips: tuple[int, ...]

    @classmethod
    def of(cls, mesh: Mesh) -> Layout:
        """That of a mesh; what no slice is known of is in one, and is a chip of its own without coordinates."""
        devices = list(mesh.devices.flat)
        slices = tuple(getattr(device, "slice_index", None) or 0 for device in devices)
        places = [
            (where, *(getattr(device, "coords", None) or ("id", device.id)))
            for where, device in zip(slices, devices, strict=True)
        ]
        number = {place: index for index, place in enumerate(dict.fromkeys(places))}
        return cls(
            axes=tuple(mesh.axis_names),
            coords=np.stack(np.unravel_index(np.arange(mesh.size), mesh.devices.shape), axis=1),
            ids=tuple(device.id for device in devices),
            slices=slices,
            chips=tuple(number[place] for place in places),
        )

    def of_partitions(self, partitions: int) -> list[int]:
        """The positions that a program's own numbers 0, 1, ... stand for.

        Raises:
            PlanError: the program is of another number of devices.
        """
        if partitions == len(self.ids):
            return list(range(len(self.ids)))
        first = [position for position, where in enumerate(self.slices) if where == self.slices[0]]
        if partitions == len(first):
            return first
        raise PlanError(
            f"the program runs on {partitions} devices, the mesh has {len(self.ids)}"
            f" ({len(first)} in a slice); expected the mesh it was compiled for"
        )

    def crossed(self, groups: Groups) -> tuple[str, ...]:
        """The axes along which members of a group differ."""
        moved = np.zeros(len(self.axes), bool)
        for group in groups:
            moved |= (self.coords[group] != self.coords[group[0]]).any(axis=0)
        return tuple(axis for axis, differs in zip(self.axes, moved, strict=True) if differs)


def groups_of(instruction: Instruction, layout: Layout, partitions: int) -> Groups:
    """The groups of positions that a collective joins; of a permutation, its pairs.

    Raises:
        PlanError: groups written in another way, or of devices the mesh does not have.
    """
    target = re.search(r"_xla_megascale_target=(\"[^\"]*\"|\{\{.*?\}\})", instruction.attributes)
    if target:
        return by_id(target[1].strip('"'), layout)
    positions = layout.of_partitions(partitions)
    pairs = instruction.braces("source_target_pairs")
    if pairs is not None:
        groups = listed(pairs)
    elif instruction.opcode.startswith(REDUCING) and "use_global_device_ids=true" not in instruction.attributes:
        # Such groups are of replicas, of which there is one: all its devices with a channel, else nobody.
        groups = [list(range(partitions if "channel_id=" in instruction.attributes else 1))]
    else:
        groups = replica_groups(instruction.attributes, partitions)
    try:
        return [[positions[number] for number in group] for group in groups]
    except IndexError as error:
        raise PlanError(f"{instruction.name} joins a device beyond the {partitions} of its program") from error


def replica_groups(attributes: str, partitions: int) -> Groups:
    """Groups of a program's own numbers, in any of their forms."""
    if mesh := _MESH.search(attributes):
        return along_axes(*mesh.groups())
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return iota_order(iota[2]).reshape(integers(iota[1])).tolist()
    if "replica_groups={}" in attributes:
        return [list(range(partitions))]
    if lists := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return listed(lists[1])
    written = re.search(r"replica_groups=\S{0,60}", attributes)
    raise PlanError(f"groups of devices in a form that is not known here: {written[0] if written else 'none'}")


def integers(text: str) -> list[int]:
    """The whole numbers in a text."""
    return [int(number) for number in re.findall(r"\d+", text)]


def listed(text: str) -> Groups:
    """Groups such as {0,1},{2,3}."""
    return [integers(group) for group in re.findall(r"\{([^{}]*)\}", text)]


def iota_order(text: str) -> np.ndarray:
    """The numbers 0, 1, ... reshaped and transposed as [4,2]T(1,0) says, flat."""
    sizes, order = _IOTA.search(text).groups()
    whole = np.arange(np.prod(integers(sizes))).reshape(integers(sizes))
    return (whole.transpose(integers(order)) if order else whole).reshape(-1)


def along_axes(axes: str, device_ids: str | None, along: str) -> Groups:
    """Groups along axes, or parts of axes ('x':(2)4 is the part of size 4 below the first 2), of a program's mesh."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    parts = {name: (int(outer), int(size)) for name, outer, size in re.findall(r"'([^']*)':\((\d+)\)(\d+)", along)}
    chosen = re.findall(r"'([^']*)'", along)
    shape, joined = [], []
    for name, size in sizes.items():
        outer, part = parts.get(name, (1, size)) if name in chosen else (size, 1)
        joined.append(len(shape) + 1)
        shape += [outer, part, size // outer // part]
    numbers = np.arange(np.prod(shape))
    if device_ids:
        numbers = iota_order(device_ids) if "[" in device_ids else np.array(integers(device_ids))
    apart = [axis for axis in range(len(shape)) if axis not in joined]
    width = int(np.prod([shape[axis] for axis in joined]))
    return numbers.reshape(shape).transpose(*apart, *joined).reshape(-1, width).tolist()


def by_id(text: str, layout: Layout) -> Groups:
    """Groups of positions from device ids, as what crosses slices is addressed."""
    product = re.fullmatch(r"\{([\d,:]+)\}x\{([\d,:]+)\}", text)
    if product:
        slices, inside = (expand(part) for part in product.groups())
        groups = [[SLICE_IDS * one + local for one in slices] for local in inside]
    else:
        groups = listed(text.replace("->", ","))
    position = {identity: index for index, identity in enumerate(layout.ids)}
    unknown = [identity for group in groups for identity in group if identity not in position]
    if unknown or not groups:
        raise PlanError(f"a transfer between slices names {unknown or text}, which the mesh does not have")
    return [[position[identity] for identity in group] for group in groups]


def expand(text: str) -> Sequence[int]:
    """Numbers such as 0:3 (both ends) or 1,2."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition(":")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
