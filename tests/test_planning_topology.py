"""Names of pod slices, their shapes, and meshes over them; where libtpu is installed, its compiler's own word."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ediffi_jax.planning.chips import CHIPS, GIB, TPUS
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.meshes import fill, make_mesh
from ediffi_jax.planning.topology import most_cubic, parse_topology

# The vendor's tables (v4, v5e, v5p, v6e pages): accelerator type -> topology.
PUBLISHED = {
    "v4-8": "2x2x1", "v4-16": "2x2x2", "v4-32": "2x2x4", "v4-64": "2x4x4", "v4-128": "4x4x4", "v4-256": "4x4x8",
    "v4-512": "4x8x8", "v4-1024": "8x8x8", "v4-1536": "8x8x12", "v4-2048": "8x8x16", "v4-4096": "8x16x16",
    "v5litepod-1": "1x1", "v5litepod-4": "2x2", "v5litepod-8": "2x4", "v5litepod-16": "4x4", "v5litepod-32": "4x8",
    "v5litepod-64": "8x8", "v5litepod-128": "8x16", "v5litepod-256": "16x16",
    "v5p-8": "2x2x1", "v5p-16": "2x2x2", "v5p-64": "2x4x4", "v5p-128": "4x4x4", "v5p-256": "4x4x8",
    "v5p-512": "4x8x8", "v5p-1024": "8x8x8", "v5p-2048": "8x8x16", "v5p-4096": "8x16x16", "v5p-8192": "16x16x16",
    "v5p-12288": "16x16x24",
    "v6e-1": "1x1", "v6e-8": "2x4", "v6e-256": "16x16",
    "tpu7x-8": "2x2x1", "tpu7x-128": "4x4x4",
}  # fmt: skip


@pytest.mark.parametrize(("name", "shape"), PUBLISHED.items())
def test_cloud_names_stand_for_the_published_shapes(name, shape) -> None:
    topology = parse_topology(name)
    assert "x".join(map(str, topology.shape)) == shape
    assert topology.cloud_name == name
    assert parse_topology(topology.jax_name) == topology
    per_chip = 2 if name.startswith(("v4", "v5p", "tpu7x")) else 1
    assert topology.chips * per_chip == int(name.split("-")[1])


def test_devices_of_a_chip_and_of_slices() -> None:
    assert parse_topology("v5p:4x4x4", slices=3).devices == 192
    assert parse_topology("tpu7x-4x4x4").devices == 128
    assert parse_topology("v4-128").devices == 64  # megacore
    assert parse_topology("v4-128").chip_config_name == "megacore"
    assert parse_topology(" V5LITEPOD-16 ").jax_name == "v5e:4x4"


@pytest.mark.parametrize("cubes", [1, 2, 6, 7, 12, 30, 96, 140])
def test_the_default_shape_has_the_least_surface(cubes) -> None:
    boxes = [(a, b, c) for a in range(1, 141) for b in range(a, 141) for c in range(b, 141) if a * b * c == cubes]
    surface = {box: box[0] * box[1] + box[1] * box[2] + box[0] * box[2] for box in boxes}
    found = tuple(side // 4 for side in most_cubic(cubes))
    assert surface[found] == min(surface.values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5x-8", ["unknown chip 'v5x'", "did you mean 'v5p'", "v6e"]),
        ("v5p-100", ["two a chip", "v5p-64 or v5p-128"]),
        ("v5e-1000", ["counts chips", "v5e-256"]),
        ("v5e:3x4", ["not sold as 3x4", "16x16", "nearest: v5e:2x4"]),
        ("v5p:8x4x4", ["ascending multiples of 4", "nearest: v5p:4x4x8"]),
        ("v5p:16x16x28", ["at most 6144 chips", "nearest: v5p:16x16x24"]),
        ("v5e:4x4x4", ["nearest: v5e:8x8"]),
        ("v5e:0x4", ["not sold as 0x4"]),
        ("H100-8", ["is a GPU"]),
        ("sixteen", ["v5litepod-256"]),
    ],
)
def test_wrong_names_get_one_line_with_what_would_do(name, words) -> None:
    with pytest.raises(PlanError) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(PlanError, match="slices=0"):
        parse_topology("v5e:4x4", slices=0)


def test_sizes_are_filled_or_refused() -> None:
    topology = parse_topology("v5e:4x4", slices=2)
    assert fill((2, -1, 4), topology) == (2, 4, 4)
    assert fill((1, 1, -1), topology) == (1, 1, 32)
    for sizes, words in [
        ((3, 1, -1), "expected expert to divide 32: 1, 2, 4, 8, 16, 32"),
        ((2, 5, -1), "expected data to divide 16: 1, 2, 4, 8, 16"),
        ((2, 4, 2), "expected fsdp=4 beside expert=2 and data=4"),
        ((-1, -1, 4), "at most one axis"),
        ((0, 1, -1), "sizes of 1 or more"),
    ]:
        with pytest.raises(PlanError, match=re.escape(words)):
            fill(sizes, topology)


def test_chips_agree_with_each_other() -> None:
    for chip in CHIPS.values():
        assert chip.hbm_bytes < 1.01 * chip.hbm_installed
        assert 100 < chip.peak_flops / chip.hbm_bandwidth < 700  # FLOPs per byte at the ridge
        assert chip.dcn_bandwidth < chip.ici_bandwidth / 2 < chip.hbm_bandwidth


def test_a_missing_compiler_is_named(root) -> None:
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    code = (
        "import jax; jax.devices()\n"
        "from ediffi_jax.planning.topology import parse_topology\n"
        "from ediffi_jax.planning.errors import PlanError\n"
        "try: parse_topology('v5e:2x2').describe()\n"
        "except PlanError as error: print(error)\n"
        "print(jax.devices()[0].platform)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert "[plan]'" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "cpu"


@pytest.mark.pod
@pytest.mark.parametrize("chip", TPUS, ids=lambda chip: chip.name)
def test_the_compiler_knows_every_chip_and_its_memory(chip) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler, extra [tpu], is not installed")
    topology = parse_topology(f"{chip.name}:2x2x1" if chip.torus_dims == 3 else f"{chip.name}:2x2")
    mesh = make_mesh(topology)
    assert mesh.size == topology.devices == 4 * chip.devices_per_chip
    assert jax.devices()[0].platform == "cpu"  # the process keeps its backend
    huge = jax.ShapeDtypeStruct((300_000, 300_000), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
    with pytest.raises(Exception, match="available HBM") as caught:
        jax.jit(lambda x: jnp.sin(x).T @ x).lower(huge).compile()
    available = float(re.search(r"available HBM \(([\d.]+)G\)", str(caught.value))[1])
    assert available * GIB * chip.devices_per_chip == pytest.approx(chip.hbm_bytes, rel=1e-3)


@pytest.mark.pod
def test_meshes_over_real_slices() -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler, extra [tpu], is not installed")
    for name, slices, sizes in [("v5e:2x2", 3, (3, 1, 4)), ("tpu7x-16", 2, (2, 4, 4)), ("v5p-128", 3, (3, 8, 8))]:
        mesh = make_mesh(parse_topology(name, slices), expert=sizes[0], data=sizes[1])
        assert tuple(mesh.shape.values()) == sizes
        of = np.vectorize(lambda device: device.slice_index)(mesh.devices)
        assert (of == np.arange(slices)[:, None, None]).all()
    for name, devices in [("v5e-1", 1), ("tpu7x-2", 2), ("v5p-640", 320), ("v4-128", 64)]:
        assert len(parse_topology(name).describe()) == devices
    with pytest.raises(PlanError, match="to divide 16"):
        make_mesh(parse_topology("v5e:4x4"), expert=5)
