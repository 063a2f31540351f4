"""The experts' schedules of the paper's Configs A to D (eDiff-I, Sec. 4), as phases of a run.

    level    0        1                2                        3                    ...  9
    Config D shared ─▶ E^1_0 | E^1_1 ─▶ E^2_0 | between | E^2_3 ─▶ E^3_0 | between | E^3_7 ─▶ ... E^3_0 | M^C | E^9_511

Level l halves the outermost intervals of p(sigma), so its nodes hold the mass 2^-l at either end; only these two are
grown, and one expert has everything between them. Each new expert starts from the old one with which it shares most
mass, at a tie from the one with more noise.

A tree is trained in either of two ways. *All together*: one run whose phases are the levels, every expert training in
every phase. *One expert a run*: the shared model, then from copies of it a chain of nodes for each extreme, and the
expert between them straight from the shared model.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from ediffi_jax.errors import nearest
from ediffi_jax.experts import Ensemble, node
from ediffi_jax.training.errors import ConfigError

RUNS = ("all", "shared", "low", "middle", "high")
Phases = tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """One stage's experts and for how long they train; steps are each expert's own, of the config's batch size.

    Attributes:
        shared: steps of the one model that all experts come from.
        low, high: levels of the nodes at least and at most noise; 0 for none at that end.
        together: steps of each level when all experts train in one run.
        each_node: steps of each node of a chain when an expert trains alone.
        between: steps of the expert that is no extreme, when it trains alone.
    """

    shared: int
    low: int = 0
    high: int = 0
    together: tuple[int, ...] = ()
    each_node: int = 0
    between: int = 0

    def cuts(self, level: int) -> tuple[float, ...]:
        """The quantiles between the experts of a level, those of the deepest for levels beyond it."""
        low, high = min(level, self.low), min(level, self.high)
        ends = ([node(low, 0).high] if low else []) + ([node(high, 2**high - 1).low] if high else [])
        return tuple(sorted(set(ends)))

    @property
    def depth(self) -> int:
        """The level of the final experts."""
        return max(self.low, self.high)

    @property
    def names(self) -> tuple[str, ...]:
        """What the final experts are called as runs, least noise first."""
        return {0: (), 1: ("low", "high"), 2: ("low", "middle", "high")}[len(self.cuts(self.depth))]

    def phases(self, run: str = "all") -> Phases:
        """The phases of one run.

        Args:
            run: "all" experts together, the "shared" model alone, or one expert by its name, the shared model first.

        Raises:
            ConfigError: an expert that this tree does not have.
        """
        shared = {"steps": self.shared, "cuts": (), "parents": ()}
        if run == "shared":
            return (shared,)
        if run == "all":
            return (shared, *self._together())
        if run not in self.names:
            choices = nearest(run, ("all", "shared", *self.names))
            raise ConfigError(f"config argument run={run!r}: no such expert{choices}")
        return (shared, *self._alone(self.names.index(run)))

    def _together(self) -> Phases:
        levels = itertools.pairwise(self.cuts(level) for level in range(self.depth + 1))
        return tuple(
            {"steps": steps, "cuts": cuts, "parents": parents(before, cuts)}
            for steps, (before, cuts) in zip(self.together, levels, strict=True)
        )

    def _alone(self, index: int) -> Phases:
        """One expert's phases."""
        final = self.cuts(self.depth)
        deepest = {0: self.low, len(final): self.high}.get(index, 0)
        if not deepest:
            return (_one(self.between, final, index),)
        chain = [self.cuts(level) for level in range(1, deepest + 1)]
        return tuple(_one(self.each_node, cuts, len(cuts) if index else 0) for cuts in chain)


def _one(steps: int, cuts: tuple[float, ...], expert: int) -> dict[str, Any]:
    """A phase of one expert alone: there is one to start from, so no parents are named."""
    return {"steps": steps, "cuts": cuts, "parents": (), "expert": expert}


def parents(before: tuple[float, ...], cuts: tuple[float, ...]) -> tuple[int, ...]:
    """For each expert of `cuts` the one of `before` that shares most mass with it, the noisier one at a tie."""
    old = Ensemble(cuts=before).intervals

    def nearest_of(low: float, high: float) -> int:
        shared = [min(high, interval.high) - max(low, interval.low) for interval in old]
        return max(range(len(old)), key=lambda i: (shared[i], i))

    return tuple(nearest_of(interval.low, interval.high) for interval in Ensemble(cuts=cuts).intervals)


# The rows of the paper's tables of iterations are not known, only: 500K shared, 40K to 190K a level, 1.9M in all for
# the base, 2M for SR256, 1.7M for SR1024. We read the sums as taken over all experts, give every configuration of a
# stage that same sum, so that they compare at equal training images, and share it out evenly:
BASE_SINGLE = Tree(shared=1_900_000)
BASE_C = Tree(shared=500_000, high=9, together=(70_000,) * 8 + (140_000,), each_node=100_000, between=500_000)
BASE_D = Tree(shared=500_000, low=3, high=9, together=(40_000,) * 8 + (160_000,), each_node=100_000, between=200_000)
SR256_SINGLE = Tree(shared=2_000_000)
SR256_TWO = Tree(shared=1_000_000, low=1, high=1, together=(500_000,), each_node=500_000)
SR1024_SINGLE = Tree(shared=1_700_000)
