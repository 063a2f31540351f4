"""Devices in their places: slices along experts first, tori, hosts; fake ones and the TPU compiler's."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from ediffi_jax.training.errors import TrainingError
from ediffi_jax.training.mesh import AXES, make_mesh, part_of
from ediffi_jax.training.slices import arrange, slices_along


@dataclasses.dataclass(frozen=True)
class Device:
    """What JAX asks of a TPU's device."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    process_index: int
    device_kind: str = "TPU v4"
    platform: str = "tpu"
    core_on_chip: int = 0


def pod(torus: tuple[int, int, int], slices: int = 1, kind: str = "TPU v4") -> list[Device]:
    """The devices of some slices, hosts of 2x2x1 chips, in the order of `jax.devices()`."""
    devices = []
    for index, (z, y, x) in itertools.product(range(slices), itertools.product(*map(range, reversed(torus)))):
        hosts = (torus[0] // 2, torus[1] // 2, torus[2])
        host = (z * hosts[1] + y // 2) * hosts[0] + x // 2 + index * math.prod(hosts)
        devices.append(Device(len(devices), (x, y, z), index, host, kind))
    return devices


@pytest.mark.parametrize(
    ("sizes", "slices", "across"),
    [
        ((1, 1, 16), 1, (1, 1, 1)),
        ((3, 2, 8), 3, (3, 1, 1)),
        ((6, 2, 4), 3, (3, 1, 1)),
        ((2, 4, 8), 4, (2, 2, 1)),
        ((1, 8, 8), 4, (1, 4, 1)),
    ],
)
def test_slices_lie_along_experts_first(sizes: tuple, slices: int, across: tuple) -> None:
    assert slices_along(sizes, slices) == across
    devices = pod((2, 2, 4), slices)
    mesh = arrange(devices[::-1], sizes)  # in whatever order they come
    assert mesh.shape == sizes
    assert sorted(device.id for device in mesh.flat) == list(range(len(devices)))
    of = np.vectorize(lambda device: device.slice_index)(mesh)
    assert (of == of[:, :, :1]).all()  # fsdp never leaves its slice
    if across[0] == slices:
        assert (of == of[:, :1, :1]).all()  # nor does data
        assert (np.diff(of[:, 0, 0]) >= 0).all()
    else:
        assert all(len(set(of[expert].flat)) == across[1] for expert in range(sizes[0]))


def test_three_experts_on_three_slices_are_a_mesh_for_training() -> None:
    """`jax.make_mesh` cannot lay out these devices."""
    devices = pod((2, 2, 4), slices=3)
    with pytest.raises((ValueError, AssertionError)):
        jax.make_mesh((3, 1, 16), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    mesh = make_mesh({"expert": -1, "data": 1, "fsdp": -1}, 3, devices)
    assert isinstance(mesh, Mesh) and tuple(mesh.shape.values()) == (3, 1, 16)
    assert [{device.slice_index for device in group.flat} for group in mesh.devices] == [{0}, {1}, {2}]


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite"])
@pytest.mark.parametrize("sizes", [(1, 1, 16), (1, 2, 8), (1, 4, 4), (2, 1, 8), (2, 2, 4), (4, 4, 1)])
def test_every_axis_may_take_part_of_the_torus_and_every_host_holds_a_grid(sizes: tuple, kind: str) -> None:
    devices = pod((4, 4, 1), kind=kind)
    own = np.vectorize(lambda device: device.process_index)(arrange(devices, sizes))
    held = np.zeros(own.size, int)
    for host in range(4):
        experts, rows = part_of((own == host).reshape(sizes[0], -1))
        held.reshape(sizes[0], -1)[np.ix_(experts.held, rows.held)] += 1
    assert (held == 1).all()


def test_slices_that_do_not_fit_are_refused_in_one_line() -> None:
    indivisible = "mesh.expert=3 does not divide 32 devices and 3 experts; choices: 1"
    for sizes, experts, slices, message in [
        ({"expert": 1, "data": 1, "fsdp": -1}, 1, 2, "expected expert=2, or data one of 2, 4, 8, 16, 32"),
        ({"expert": -1, "data": 1, "fsdp": -1}, 2, 4, "4 slices do not lie along expert=2 and data=1 (fsdp stays"),
        ({"expert": 3, "data": -1, "fsdp": 1}, 3, 2, indivisible),
    ]:
        with pytest.raises(TrainingError) as caught:
            make_mesh(sizes, experts, pod((2, 2, 4), slices))
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"slice 0 has 16, slice 1 has 8 devices\); expected the same number"):
        arrange(pod((2, 2, 4), 2)[:24], (1, 2, 12))


def test_other_devices_keep_their_order_and_hosts_are_no_slices() -> None:
    own = make_mesh({"expert": 2, "data": 2, "fsdp": 2}, 2)
    assert own.devices.flatten().tolist() == jax.devices()
    assert own.axis_types == (AxisType.Auto,) * 3
    hosts = [Device(i, (0, 0, 0), i // 4, i // 4, "NVIDIA H100", "gpu") for i in range(8)]
    assert [device.id for device in arrange(hosts, (1, 1, 8)).flat] == list(range(8))


@pytest.mark.pod
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", ["v5e:4x4", "v5e:16x16", "v6e:8x8", "v4:2x2x4", "v5p:4x4x4", "tpu7x:2x2x4"])
def test_as_the_compiler_describes_them(name: str, slices: int) -> None:
    """Every process of a real pod finds its part, whatever the mesh, and together they are the batch."""
    pytest.importorskip("libtpu", reason="the TPU compiler, extra [tpu], is not installed")
    from ediffi_jax.planning.topology import parse_topology

    devices = parse_topology(name, slices).describe()
    group = len(devices) // slices
    across_experts = [(slices, 1, group), (slices, 4, group // 4), (slices, group, 1)]
    for sizes in [*across_experts, (1, slices, group), (2, slices, group // 2)]:
        mesh = arrange(devices, sizes)
        of = np.vectorize(lambda device: getattr(device, "slice_index", None) or 0)(mesh)
        assert (of == of[:, :, :1]).all()
        own = np.vectorize(lambda device: device.process_index)(mesh).reshape(sizes[0], -1)
        held = np.zeros(own.shape, int)
        for host in range(own.max() + 1):
            experts, rows = part_of(own == host)
            held[np.ix_(experts.held, rows.held)] += 1
        assert (held == 1).all()
