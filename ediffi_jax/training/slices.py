"""Devices as an array [expert, data, fsdp], slices where the least is sent between them.

Slices are joined by the data-centre network alone, which is slow. Experts exchange nothing, so the slices lie along
`expert` as far as its size lets them, along `data` beyond that, and never along `fsdp`, whose weights are gathered in
every layer. Within a slice JAX fits the axes to the torus. GPUs and CPUs stand in the order of their processes.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from ediffi_jax.training.errors import TrainingError

Sizes = tuple[int, int, int]


def arrange(devices: Sequence[Any], sizes: Sizes) -> np.ndarray:
    """Every device in its place.

    Args:
        devices: of all slices, real ones or a compiler's descriptions.
        sizes: of the axes; their product is the number of devices.

    Returns:
        Devices [expert, data, fsdp].

    Raises:
        TrainingError: slices that neither `expert` nor `data` can span, or of unequal size.
    """
    if devices[0].platform != "tpu":  # JAX calls each host of GPUs a slice; fsdp may well cross hosts
        return mesh_utils.create_device_mesh(sizes, devices)
    slices = by_slice(devices)
    across = slices_along(sizes, len(slices))
    inner = tuple(size // count for size, count in zip(sizes, across, strict=True))
    stacked = np.stack([within_slice(own, inner) for own in slices]).reshape(*across, *inner)
    return stacked.transpose(0, 3, 1, 4, 2, 5).reshape(sizes)


def by_slice(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice, in the order of their indices. Raises TrainingError if some slice has fewer."""
    slices: dict[int, list[Any]] = collections.defaultdict(list)
    for device in devices:
        slices[getattr(device, "slice_index", None) or 0].append(device)
    counts = {index: len(slices[index]) for index in sorted(slices)}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"slice {index} has {count}" for index, count in counts.items())
        raise TrainingError(f"slices of unequal size ({said} devices); expected the same number in each")
    return [slices[index] for index in counts]


def slices_along(sizes: Sizes, slices: int) -> Sizes:
    """How many slices lie along each axis. Raises TrainingError if `expert` and `data` cannot hold them all."""
    expert = math.gcd(sizes[0], slices)
    rest = slices // expert
    if sizes[1] % rest:
        group = sizes[1] * sizes[2]
        fitting = [n for n in range(rest, group + 1, rest) if group % n == 0]
        raise TrainingError(
            f"{slices} slices do not lie along expert={sizes[0]} and data={sizes[1]} (fsdp stays within a slice);"
            f" expected expert={slices}" + f", or data one of {', '.join(map(str, fitting))}" * bool(fitting)
        )
    return expert, rest, 1


def within_slice(devices: Sequence[Any], shape: Sizes) -> np.ndarray:
    """JAX's own order; axes that fit no whole dimensions of the torus get parts of one."""
    axes = ("expert", "data", "fsdp")
    try:
        return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices).devices
    except RuntimeError:  # JAX assigns whole dimensions only, except on v5e
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
