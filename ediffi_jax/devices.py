"""What is sampled and measured on: all accelerators of this machine, or the cores of its processor.

XLA computes a convolution of small pictures on one core or two, whatever the machine has. So the verbs that
sample make each core a JAX device of its own, and a batch is divided over them as over accelerators: with four
cores in under half the time. Training takes cores that way only if told to (``JAX_NUM_CPU_DEVICES=4``): the number
of devices changes rounding, and a run is to depend on nothing but its config, its seed and the step.
"""

from __future__ import annotations

import os

import jax

EMULATED = "xla_force_host_platform_device_count"
MOST_CORES = 8  # a batch of the usual size divides into no more
COPIES = 2**30  # bytes that parameters may take on all cores together


def use_cores() -> tuple[jax.Device, ...]:
    """`default_devices`, after each core (up to a power of two) was made a CPU device of its own, if that is possible.

    It is not if the user has said how many there are (JAX_NUM_CPU_DEVICES, or XLA_FLAGS for emulated ones), or if JAX
    has been asked for its devices before. Accelerators, if there are any, are used as ever.
    """
    said = "JAX_NUM_CPU_DEVICES" in os.environ or EMULATED in os.environ.get("XLA_FLAGS", "")
    count = min(_cores(), MOST_CORES)
    if not said and count > 1:
        try:
            jax.config.update("jax_num_cpu_devices", 1 << (count.bit_length() - 1))
        except RuntimeError:  # too late
            pass
    return default_devices()


def default_devices() -> tuple[jax.Device, ...]:
    """All local accelerators, or the cores that are devices; of CPU devices that are only emulated, one."""
    devices = jax.local_devices()
    emulated = devices[0].platform == "cpu" and jax.config.jax_num_cpu_devices < 2
    return tuple(devices[:1] if emulated else devices)


def affordable(devices: tuple[jax.Device, ...], size: int) -> tuple[jax.Device, ...]:
    """Devices for parameters of `size` bytes: all accelerators, but no more cores than `COPIES` allows, at least one."""
    count = len(devices)
    while count > 1 and devices[0].platform == "cpu" and count * size > COPIES:
        count //= 2
    return devices[:count]


def _cores() -> int:
    """Cores this process may run on; fewer if NPROC, which XLA's thread pools obey, says so."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get("NPROC", "")
    return min(here, int(said)) if said.isdigit() and int(said) else here
