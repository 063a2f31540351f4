"""The least time a step can take on a chip: arithmetic, memory and both networks, each at its full speed.

    seconds = max(flops / peak, HBM bytes / bandwidth, ICI bytes / (bandwidth / 2), DCN bytes / bandwidth)

A bound, not a forecast: it grants perfect overlap of the four, peak arithmetic on every shape, and all links
of a chip to every collective, though one along a single axis uses only that axis's links. A real step takes longer.
"""

from __future__ import annotations

import dataclasses

from ediffi_jax.planning.chips import Chip
from ediffi_jax.planning.errors import PlanError

PARTS = ("compute", "memory", "ici", "dcn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Lower bounds of one step's time, in seconds.

    Attributes:
        seconds: of the step: the largest of the others.
        compute_seconds: of the arithmetic.
        memory_seconds: of HBM.
        ici_seconds: of the network of a slice.
        dcn_seconds: of the network between slices.
        limited_by: which of `PARTS` is the largest.
        peak_flops: of the chip, per second.
    """

    seconds: float
    compute_seconds: float
    memory_seconds: float
    ici_seconds: float
    dcn_seconds: float
    limited_by: str
    peak_flops: float

    def mfu(self, model_flops_per_chip: float) -> float:
        """The most of a chip's peak that a model's own FLOPs (no rematerialisation) can reach; an upper bound."""
        return model_flops_per_chip / (self.seconds * self.peak_flops)


def bound(
    flops_per_chip: float, hbm_bytes_per_chip: float, ici_bytes: float, dcn_bytes: float, chip: Chip
) -> Roofline:
    """Bounds a step from below.

    Args:
        flops_per_chip: executed, rematerialisation included.
        hbm_bytes_per_chip: read and written.
        ici_bytes: sent by a chip within its slice (`wire_bytes`, of all its devices).
        dcn_bytes: sent by a chip to other slices.
        chip: its speeds. Figures of one device are to be multiplied by `chip.devices_per_chip`.

    Raises:
        PlanError: nothing to do, or a negative amount.
    """
    amounts = (flops_per_chip, hbm_bytes_per_chip, ici_bytes, dcn_bytes)
    if min(amounts) < 0 or not max(amounts):
        raise PlanError(f"a step of {', '.join(map(str, amounts))} FLOPs and bytes; expected none below 0, one above")
    speeds = (chip.peak_flops, chip.hbm_bandwidth, chip.ici_bandwidth / 2, chip.dcn_bandwidth)
    times = [amount / speed for amount, speed in zip(amounts, speeds, strict=True)]
    return Roofline(
        seconds=max(times),
        limited_by=PARTS[times.index(max(times))],
        peak_flops=chip.peak_flops,
        **{f"{part}_seconds": time for part, time in zip(PARTS, times, strict=True)},
    )
