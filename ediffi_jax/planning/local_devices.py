"""Devices of this machine in the place of a pod: its GPUs, or as many emulated CPU devices as one likes.

A chip of which no figure is known has 0 for it: what follows from that is then "not stated".
"""

from __future__ import annotations

import os
import re
from typing import Any

import jax

from ediffi_jax.planning.chips import GPUS, Chip
from ediffi_jax.planning.errors import PlanError

PLATFORMS = ("cpu", "gpu")
EMULATED = "xla_force_host_platform_device_count"
UNSTATED = {"peak_flops": 0.0, "hbm_bandwidth": 0.0, "ici_bandwidth": 0.0, "dcn_bandwidth": 0.0}
CPU = Chip(name="cpu", platform="cpu", hbm_installed=0, hbm_bytes=0, max_chips=1024, **UNSTATED)


def local_chip(platform: str, count: int | None) -> tuple[Chip, int]:
    """The chip that a plan for this machine is about, and how many.

    Args:
        platform: "cpu" or "gpu".
        count: how many; None is one CPU device, or all GPUs.

    Raises:
        PlanError: fewer are here.
    """
    if count == 0:
        raise PlanError(f"topology {platform}:0; expected 1 device or more")
    found = local_devices(platform, count or 1)
    if platform == "cpu":
        return CPU, count or 1
    return gpu(found[0].device_kind, found[0].memory_stats()), count or len(found)


def local_devices(platform: str, count: int) -> list[Any]:
    """Devices of this machine, at least so many. Raises PlanError if there are fewer."""
    try:
        if platform == "gpu":
            jax.config.update("jax_platforms", "cuda,cpu")
        elif EMULATED not in os.environ.get("XLA_FLAGS", ""):  # else their number has been said
            jax.config.update("jax_num_cpu_devices", max(count, jax.config.jax_num_cpu_devices))
    except RuntimeError:  # JAX has asked its devices already; what is there is there
        pass
    try:
        found = jax.devices(platform)
    except RuntimeError:
        found = []
    if len(found) < count:
        here = f"{len(found)} {platform.upper()} device{'s' * (len(found) != 1)}"
        raise PlanError(f"topology {platform}:{count}: this machine has {here}; expected at most that, or a TPU's name")
    return found


def gpu(kind: str, memory: dict[str, int] | None) -> Chip:
    """A GPU by what its driver calls it: a chip of the table, else one with nothing stated but its memory."""
    there = (memory or {}).get("bytes_limit", 0)
    words = re.split(r"[^A-Z0-9]+", kind.upper())
    fitting = [chip for chip in GPUS if chip.name.split("-")[0] in words]
    if fitting:
        return min(fitting, key=lambda chip: abs(chip.hbm_bytes - there))
    return Chip(name=kind, platform="gpu", hbm_installed=there, hbm_bytes=there, **UNSTATED)
