"""The expert schedule: a run is a list of phases, and each phase branches the one before it.

A phase trains `steps` steps of the experts given by `cuts`; expert i starts as a copy of expert
`parents[i]` of the phase before (Sec. 4.1 of the paper; its binary tree is one such list). With
`expert=i` only expert i of the partition is trained, alone: the way to train experts of one ensemble
on different hardware or for different numbers of steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from absl import logging

from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import Interval, LogNormal
from ediffi_jax.training.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training with a fixed set of experts.

    Attributes:
        steps: optimizer steps of this phase.
        cuts: quantiles of p(sigma) between experts, ascending, inside (0, 1).
        parents: for each expert the index of the one it starts from in the phase before; empty means
            all start from expert 0.
        expert: -1 trains all experts, i >= 0 only expert i.
    """

    steps: int
    cuts: tuple[float, ...] = ()
    parents: tuple[int, ...] = ()
    expert: int = -1

    def ensemble(self, noise: LogNormal) -> Ensemble:
        """The whole partition of [0, 1] that this phase belongs to."""
        return Ensemble(cuts=self.cuts, noise=noise)

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """Indices, in the whole partition, of the experts trained here."""
        return tuple(range(len(self.cuts) + 1)) if self.expert < 0 else (self.expert,)

    @property
    def num_experts(self) -> int:
        """Experts trained here: the length of the leading axis of every leaf of the state."""
        return len(self.expert_ids)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """The quantile intervals of the experts trained here."""
        every = Ensemble(cuts=self.cuts).intervals
        return tuple(every[i] for i in self.expert_ids)

    @property
    def rows(self) -> tuple[int, ...]:
        """For each expert trained here, the row of the state before it starts from."""
        parents = self.parents or (0,) * (len(self.cuts) + 1)
        return tuple(parents[i] for i in self.expert_ids)


def parse_phases(phases: Sequence[Mapping]) -> tuple[Phase, ...]:
    """Reads `config.phases` and checks that every phase can start from the one before.

    Raises:
        ConfigError: no phase, unknown key, parents of the wrong length or out of range.
        ExpertError: cuts out of order or outside (0, 1).
    """
    if not phases:
        raise ConfigError("config.phases is empty; expected at least one phase such as {'steps': 1000}")
    parsed: list[Phase] = []
    names = {field.name for field in dataclasses.fields(Phase)}
    for index, raw in enumerate(phases):
        if not hasattr(raw, "keys"):
            raise ConfigError(f"config.phases[{index}] is {raw!r}; expected a phase such as {{'steps': 1000}}")
        unknown = sorted(set(raw) - names)
        if unknown or "steps" not in raw:
            raise ConfigError(
                f"config.phases[{index}] has keys {sorted(raw)}; expected steps and some of {sorted(names)}"
            )
        phase = Phase(
            steps=int(raw["steps"]),
            cuts=tuple(float(cut) for cut in raw.get("cuts", ())),
            parents=tuple(int(parent) for parent in raw.get("parents", ())),
            expert=int(raw.get("expert", -1)),
        )
        check_phase(phase, rows=parsed[-1].num_experts if parsed else 1, name=f"config.phases[{index}]")
        parsed.append(phase)
    return tuple(parsed)


def check_phase(phase: Phase, *, rows: int, name: str) -> None:
    """Checks one phase against the `rows` experts of the phase before it.

    Raises:
        ConfigError: parents of the wrong length or range, expert out of range, negative steps.
        ExpertError: cuts out of order or outside (0, 1).
    """
    experts = Ensemble(cuts=phase.cuts).num_experts
    if phase.steps < 0:
        raise ConfigError(f"{name}: steps is {phase.steps}; expected 0 or more")
    if phase.parents and len(phase.parents) != experts:
        raise ConfigError(
            f"{name}: {len(phase.parents)} parents for {experts} experts ({len(phase.cuts)} cuts);"
            f" expected {experts} parents, one per expert"
        )
    for parent in phase.parents:
        if not 0 <= parent < rows:
            raise ConfigError(f"{name}: parent {parent} does not exist; expected 0 to {rows - 1}")
    if not -1 <= phase.expert < experts:
        raise ConfigError(f"{name}: expert {phase.expert} does not exist; expected -1 (all) or 0 to {experts - 1}")


def warn_of_strangers(phases: Sequence[Phase]) -> None:
    """Warns of experts that start from one which never saw any of their noise levels.

    That is allowed: a whole new range has to start somewhere, as the paper's middle expert may.

    Args:
        phases: consecutive ones; the first has its weights already.
    """
    for before, phase in itertools.pairwise(phases):
        for expert, row, own in zip(phase.expert_ids, phase.rows, phase.intervals, strict=True):
            parent = before.intervals[row]
            if min(own.high, parent.high) <= max(own.low, parent.low):
                logging.warning(
                    "expert %d of cuts %s, for quantiles %g to %g of p(sigma), starts from expert %d of the phase"
                    " before, which never saw these noise levels: it has %g to %g",
                    expert, phase.cuts, own.low, own.high, before.expert_ids[row], parent.low, parent.high,
                )  # fmt: skip
