"""All phases of a recipe from one that was compiled.

Phases of one recipe run the same step with other numbers of experts, who take turns or stand side by side: in
proportion to their number where the mesh is the same. Where it is not, only what follows from FLOPs is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ediffi_jax.training.schedule import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """A phase as part of a run.

    Attributes:
        index: of the phase.
        experts, steps: how many train, for how long.
        share: its experts over those of the compiled phase.
        compiled: whether it is the compiled one.
        same_mesh: whether it has the compiled one's mesh, and so its step.
    """

    index: int
    experts: int
    steps: int
    share: float
    compiled: bool
    same_mesh: bool

    def days(self, step_seconds: float) -> float:
        """From the seconds of the compiled phase's step."""
        return self.steps * self.share * step_seconds / 86_400.0


def stretches(phases: tuple[Phase, ...], index: int, sizes: Mapping[int, Any]) -> tuple[Stretch, ...]:
    """The phases of a run.

    Args:
        phases: of the recipe.
        index: of the compiled one.
        sizes: the mesh's sizes for each number of experts.
    """
    own = phases[index].num_experts
    return tuple(
        Stretch(
            index=number,
            experts=phase.num_experts,
            steps=phase.steps,
            share=phase.num_experts / own,
            compiled=number == index % len(phases),
            same_mesh=sizes[phase.num_experts] == sizes[own],
        )
        for number, phase in enumerate(phases)
    )


def lines(run: tuple[Stretch, ...], bound: float | None, expected: float, mfu: float, chips: int) -> Iterator[str]:
    """The table of a run of several phases.

    Args:
        run: its phases.
        bound: least seconds of the compiled phase's step; None if there is none.
        expected: seconds of that step at the MFU that one expects.
        mfu: that MFU.
        chips: of the run.
    """
    if len(run) < 2:
        return
    yield "all phases, from the compiled one (the same step, other numbers of experts); chip-hours:"
    at = f"at an MFU of {100 * mfu:.0f} %"
    yield f"  {'phase':<12}{'experts':>8}{'steps':>11}{'days >=':>9}{'hours >=':>11}{'days':>9}{'hours':>11}  {at}"
    for one in run:
        name = f"{one.index}{' compiled' if one.compiled else ''}"
        least = one.days(bound) if bound and one.same_mesh else None
        yield f"  {name:<12}{one.experts:>8}{one.steps:>11,}{_cells(least, chips)}{_cells(one.days(expected), chips)}"
    least = sum(one.days(bound) for one in run) if bound and all(one.same_mesh for one in run) else None
    total, steps = sum(one.days(expected) for one in run), sum(one.steps for one in run)
    yield f"  {'all':<12}{'':>8}{steps:>11,}{_cells(least, chips)}{_cells(total, chips)}"


def _cells(days: float | None, chips: int) -> str:
    return f"{'-':>9}{'-':>11}" if days is None else f"{days:>9.2f}{24 * days * chips:>11,.0f}"
