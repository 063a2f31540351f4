"""The chips a plan may name, per chip: memory, peak arithmetic, and bandwidth of memory and of both networks.

TPU figures are the vendor's (https://docs.cloud.google.com/tpu/docs/ v4, v5e, v5p, v6e, tpu7x: "System
architecture"). Memory is what a program can have, which is less than what is soldered on: the compiler of
libtpu 0.0.42 refuses programs above 30.75 GiB of a v4's 32, 15.75 of a v5e's 16, 31.25 of a v6e's 32 and 94.75 of
the 96 of each half of a tpu7x, but grants 95.74 on a v5p sold as 95 (`tests/test_planning_topology.py` asks it again).

ICI bandwidth adds both directions of all links of a chip, as the tables do; half of it can be sent. DCN is
what a chip sends while all chips of its host send: the tables' figure for v5p, v6e and tpu7x (50, 100 and
100 Gbit/s), 2 x 100 Gbit/s over 8 chips for v5e. For v4 no page has a figure of either network: ICI is the six
links of 50 GB/s each way of the TPU v4 paper (arXiv 2304.01433, table 4), DCN is assumed as on the v5p.

GPU figures are of the SXM modules' data sheets (bfloat16 dense, NVLink both directions); "ICI" is NVLink, so
it reaches as far as one host; DCN assumes a DGX's network card per GPU (200 Gbit/s A100, 400 Gbit/s Hopper).
"""

from __future__ import annotations

import dataclasses

GIB = 2**30
GBIT = 1e9 / 8  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. Every figure is of the whole chip, however many devices JAX makes of it.

    Attributes:
        name: as in a topology, such as "v5e".
        platform: "tpu" or "gpu".
        hbm_installed: bytes, as sold.
        hbm_bytes: bytes a program can have.
        peak_flops: bfloat16, per second.
        hbm_bandwidth: bytes per second.
        ici_bandwidth: bytes per second to other chips of the slice (GPU: of the host), both directions added.
        dcn_bandwidth: bytes per second sent to other slices (GPU: hosts).
        cores: TensorCores; what cloud names of v4, v5p and tpu7x count. 1 for GPUs.
        devices_per_chip: as JAX sees them, where a v4's two cores act as one ("megacore").
        torus_dims: dimensions of the network of a slice; 0 if any device reaches any other.
        max_chips: of the largest slice.
    """

    name: str
    platform: str
    hbm_installed: int
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    cores: int = 1
    devices_per_chip: int = 1
    torus_dims: int = 0
    max_chips: int = 8


TPUS = (
    Chip(
        name="v4", platform="tpu", hbm_installed=32 * GIB, hbm_bytes=int(30.75 * GIB),
        peak_flops=275e12, hbm_bandwidth=1200e9, ici_bandwidth=600e9, dcn_bandwidth=50 * GBIT,
        cores=2, torus_dims=3, max_chips=4096,
    ),
    Chip(
        name="v5e", platform="tpu", hbm_installed=16 * GIB, hbm_bytes=int(15.75 * GIB),
        peak_flops=197e12, hbm_bandwidth=819e9, ici_bandwidth=400e9, dcn_bandwidth=25 * GBIT,
        torus_dims=2, max_chips=256,
    ),
    Chip(
        name="v5p", platform="tpu", hbm_installed=95 * GIB, hbm_bytes=int(95.74 * GIB),
        peak_flops=459e12, hbm_bandwidth=2765e9, ici_bandwidth=1200e9, dcn_bandwidth=50 * GBIT,
        cores=2, torus_dims=3, max_chips=6144,
    ),
    Chip(
        name="v6e", platform="tpu", hbm_installed=32 * GIB, hbm_bytes=int(31.25 * GIB),
        peak_flops=918e12, hbm_bandwidth=1638e9, ici_bandwidth=800e9, dcn_bandwidth=100 * GBIT,
        torus_dims=2, max_chips=256,
    ),
    Chip(
        name="tpu7x", platform="tpu", hbm_installed=192 * GIB, hbm_bytes=int(189.5 * GIB),
        peak_flops=2307e12, hbm_bandwidth=7380e9, ici_bandwidth=1200e9, dcn_bandwidth=100 * GBIT,
        cores=2, devices_per_chip=2, torus_dims=3, max_chips=9216,
    ),
)  # fmt: skip

GPUS = (
    Chip(
        name="A100-40", platform="gpu", hbm_installed=40 * 10**9, hbm_bytes=40 * 10**9,
        peak_flops=312e12, hbm_bandwidth=1555e9, ici_bandwidth=600e9, dcn_bandwidth=200 * GBIT,
    ),
    Chip(
        name="A100-80", platform="gpu", hbm_installed=80 * 10**9, hbm_bytes=80 * 10**9,
        peak_flops=312e12, hbm_bandwidth=2039e9, ici_bandwidth=600e9, dcn_bandwidth=200 * GBIT,
    ),
    Chip(
        name="H100-80", platform="gpu", hbm_installed=80 * 10**9, hbm_bytes=80 * 10**9,
        peak_flops=989e12, hbm_bandwidth=3350e9, ici_bandwidth=900e9, dcn_bandwidth=400 * GBIT,
    ),
    Chip(
        name="H200", platform="gpu", hbm_installed=141 * 10**9, hbm_bytes=141 * 10**9,
        peak_flops=989e12, hbm_bandwidth=4800e9, ici_bandwidth=900e9, dcn_bandwidth=400 * GBIT,
    ),
)  # fmt: skip

CHIPS = {chip.name: chip for chip in (*TPUS, *GPUS)}
