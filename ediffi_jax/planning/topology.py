"""A slice of a TPU pod by any of its names, and its devices as the TPU's compiler describes them.

    v5e:16x16   v5p:4x4x4        chip and shape, as JAX says it (a hyphen does as well)
    v5litepod-256  v6e-16        cloud name of a 2D torus: the number counts chips
    v5p-128  v4-64  tpu7x-128    cloud name of a 3D torus: the number counts TensorCores, two a chip
    cpu:8  gpu  gpu:4            devices of this machine (`local_devices`)

A cloud name stands for the shape closest to a cube, the default there. Shapes of a 3D torus are ascending
A x B x C; from one cube of 64 chips on every side is a multiple of 4
(https://docs.cloud.google.com/tpu/docs/types-topologies; the tables of v4, v5p and tpu7x agree).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterator
from typing import Any

from ediffi_jax.errors import install, nearest
from ediffi_jax.planning.chips import GPUS, TPUS, Chip
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.local_devices import PLATFORMS, local_chip, local_devices

ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "7x": "tpu7x", "v7x": "tpu7x"}
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
CHIPS_PER_HOST = 4  # of every TPU's hosts in slices of several
EXAMPLES = "such as v5e:16x16, v5litepod-256, v5p-128 or v5p:4x4x4"
# What the TPU's runtime would ask its machine; several compilers may run side by side. Only on a machine
# without TPUs are these unset.
NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Equal slices of one kind of TPU.

    Attributes:
        chip: what kind.
        shape: chips along each dimension of a slice's torus.
        slices: joined by the data-centre network alone.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Devices of all slices, as JAX counts them."""
        return self.chips * self.chip.devices_per_chip

    @property
    def local(self) -> bool:
        """Whether it is devices of this machine."""
        return self.chip.platform in PLATFORMS

    @property
    def host(self) -> Topology:
        """The chips of one process: 2 x 2 of a slice, or all where there are fewer."""
        if self.local or math.prod(self.shape) <= CHIPS_PER_HOST:
            return dataclasses.replace(self, slices=1)
        return Topology(chip=self.chip, shape=(2, 2, 1)[: self.chip.torus_dims])

    @property
    def jax_name(self) -> str:
        """One slice, as `jax.experimental.topologies` takes it."""
        return f"{self.chip.name}:{times(self.shape)}"

    @property
    def cloud_name(self) -> str:
        """One slice, as the cloud sells it."""
        if self.local:
            return "this machine"
        counted = math.prod(self.shape) * self.chip.cores
        return f"{'v5litepod' if self.chip.name == 'v5e' else self.chip.name}-{counted}"

    @property
    def chip_config_name(self) -> str | None:
        """Makes one device of a v4's two cores, as on a TPU VM; None for every other chip."""
        return "megacore" if self.chip.name == "v4" else None

    def options(self) -> dict[str, Any]:
        """What else `get_topology_desc` has to be told."""
        options: dict[str, Any] = {}
        if self.chip_config_name:
            options["chip_config_name"] = self.chip_config_name
        if self.slices > 1:
            options["num_slices"] = self.slices
        if math.prod(self.shape) == 1:  # a host has 2 x 2 chips unless said otherwise
            options["chips_per_host_bounds"] = (1, 1, 1)
        return options

    def describe(self) -> list[Any]:
        """Asks the TPU's compiler for the devices; needs no TPU, and leaves the process's own backend alone.

        Returns:
            The devices (only to compile for), in order of slice and id.

        Raises:
            PlanError: libtpu is not installed, or does not know the shape.
        """
        return list(described(self))


def times(shape: tuple[int, ...]) -> str:
    """A shape in words, such as "4x4x4"."""
    return "x".join(map(str, shape))


@functools.lru_cache(maxsize=8)
def described(topology: Topology) -> tuple[Any, ...]:
    """The devices of a topology; a second question costs nothing."""
    if topology.local:
        return tuple(local_devices(topology.chip.platform, topology.chips)[: topology.chips])
    from jax.experimental import topologies

    for name, value in NO_MACHINE.items():
        os.environ.setdefault(name, value)  # libtpu reads them while it loads
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.jax_name, **topology.options())
    except RuntimeError as error:
        if "not installed" in str(error):
            raise PlanError(
                f"launch.plan needs the TPU's compiler, libtpu (but no TPU): {install('plan')}"
            ) from error
        raise PlanError(f"the TPU's compiler refuses {topology.jax_name}: {str(error).splitlines()[0]}") from error
    return tuple(sorted(found.devices, key=lambda device: (getattr(device, "slice_index", None) or 0, device.id)))


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Reads a topology's name.

    Args:
        name: chip and shape, or a cloud name (see the module's text).
        slices: how many of them.

    Raises:
        PlanError: an unknown chip, a shape or number that is not sold, fewer than one slice.
    """
    known = {chip.name: chip for chip in TPUS}
    if local := re.fullmatch(r"(cpu|gpu)(?::(\d+))?", name.strip().lower()):
        if slices != 1:
            raise PlanError(f"slices={slices}; devices of this machine are one slice")
        chip, count = local_chip(local[1], int(local[2]) if local[2] else None)
        return Topology(chip=chip, shape=(count,))
    if any(name.upper().startswith(chip.name.split("-")[0]) for chip in GPUS):
        here = "expected gpu (those of this machine)"
        raise PlanError(f"{name} is a GPU, which has no topology to compile for; {here}, or a TPU {EXAMPLES}")
    match = re.fullmatch(r"([a-z0-9]+)[:-](\d+(?:x\d+)*)", name.strip().lower())
    if not match:
        raise PlanError(f"topology {name!r} is not a chip and its shape or size; expected one {EXAMPLES}")
    kind, size = match.groups()
    kind = ALIASES.get(kind, kind)
    if kind not in known:
        raise PlanError(f"unknown chip {kind!r} in topology {name!r}{nearest(kind, known)}")
    if slices < 1:
        raise PlanError(f"slices={slices}; expected 1 or more")
    sides = tuple(map(int, size.split("x")))
    chip = known[kind]
    shape = shape_of_size(chip, sides[0], name) if len(sides) == 1 else shape_of_sides(chip, sides, name)
    return Topology(chip=chip, shape=shape, slices=slices)


def shapes(chip: Chip) -> Iterator[tuple[int, ...]]:
    """The shape that stands for each number of chips, small to large."""
    if chip.torus_dims == 2:
        yield from FLAT
        return
    if chip.name == "tpu7x":
        yield (1, 1, 1)
    yield from BELOW_A_CUBE
    for cubes in range(1, chip.max_chips // 64 + 1):
        yield most_cubic(cubes)


@functools.lru_cache(maxsize=None)
def most_cubic(cubes: int) -> tuple[int, int, int]:
    """Sides, in chips, of the box of 4x4x4 cubes with the least surface."""
    boxes = [
        (a, b, cubes // a // b)
        for a in range(1, round(cubes ** (1 / 3)) + 1)
        if cubes % a == 0
        for b in range(a, math.isqrt(cubes // a) + 1)
        if cubes // a % b == 0
    ]
    a, b, c = min(boxes, key=lambda box: box[0] * box[1] + box[1] * box[2] + box[0] * box[2])
    return 4 * a, 4 * b, 4 * c


def shape_of_size(chip: Chip, size: int, name: str) -> tuple[int, ...]:
    """The shape a cloud name stands for. Raises PlanError with the nearest sizes sold."""
    table = {math.prod(shape) * chip.cores: shape for shape in shapes(chip)}
    if size in table:
        return table[size]
    below, above = ([n for n in table if (n < size) == less] for less in (True, False))
    close = " or ".join(f"{chip.name}-{n}" for n in (*below[-1:], *above[:1]))
    unit = "TensorCores, two a chip" if chip.cores == 2 else "chips"
    raise PlanError(
        f"topology {name!r}: no slice of {chip.name} has {size} (the number counts {unit}); nearest: {close}"
    )


def shape_of_sides(chip: Chip, sides: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Checks a shape. Raises PlanError with those of as many chips, or of the nearest number."""
    if chip.torus_dims == 2:
        sold, rule = sides in FLAT, f"one of {', '.join(map(times, FLAT))}"
    else:
        cubes = len(sides) == 3 and all(side and side % 4 == 0 for side in sides) and list(sides) == sorted(sides)
        sold = sides in BELOW_A_CUBE or (sides == (1, 1, 1) and chip.name == "tpu7x") or cubes
        rule = f"{', '.join(map(times, BELOW_A_CUBE))} or ascending multiples of 4"
    if sold and math.prod(sides) <= chip.max_chips:
        return sides
    close = min(shapes(chip), key=lambda shape: abs(math.prod(shape) - math.prod(sides)))
    raise PlanError(
        f"topology {name!r}: {chip.name} is not sold as {times(sides)}; expected {rule}, at most"
        f" {chip.max_chips} chips; nearest: {chip.name}:{times(close)}"
    )
