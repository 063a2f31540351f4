"""What a claim is, what measuring it gives, and the one rule by which numbers become a verdict.

    Claim.run(Study) ──▶ Result(findings, tables, pictures) ──▶ verdict(findings)

A finding is one number for each seed and, where the claim says something about it, the bound that it should pass.
The rule is the same for all claims and knows nothing of them: with a 95 % interval of the mean over seeds,

    holds      the whole interval lies on the claimed side of the bound
    fails      the whole interval lies on the other side
    open       the interval holds the bound

and a claim is reproduced if all its decisive findings hold, contradicted if all fail, in part if some hold, else open.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from ediffi_jax.reproduction.study import Study

CONFIDENCE = 0.95
REPRODUCED, IN_PART, OPEN, CONTRADICTED = "reproduced", "reproduced in part", "not decided", "contradicted"
HOLDS, FAILS, UNDECIDED = "holds", "fails", "open"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One measured number.

    Attributes:
        what: in words, with its unit.
        values: one for each seed.
        n: pictures (or whatever was counted) behind each value.
        above, below: what the claim says of it; at most one. Without either it is reported and decides nothing.
        share: it is a share in [0, 1] of n independent cases: its interval also takes the counting error.
        digits: decimals shown.
    """

    what: str
    values: tuple[float, ...]
    n: int
    above: float | None = None
    below: float | None = None
    share: bool = False
    digits: int = 3

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.what}: no values")
        if self.above is not None and self.below is not None:
            raise ValueError(f"{self.what}: above and below; expected at most one")

    @property
    def decisive(self) -> bool:
        """Whether the claim says something about it."""
        return self.above is not None or self.below is not None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); nan with one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean: Student's t over seeds, widened to Wilson's of all cases where it is a share.

        With one seed it is all numbers (of a share: Wilson's alone), so nothing else is ever decided by one seed.
        """
        low, high = -math.inf, math.inf
        if len(self.values) > 1:
            half = stats.t.ppf((1 + CONFIDENCE) / 2, len(self.values) - 1) * self.spread / math.sqrt(len(self.values))
            low, high = self.mean - half, self.mean + half
        if not self.share:
            return low, high
        w_low, w_high = _wilson(self.mean, self.n * len(self.values))
        if len(self.values) == 1:
            return w_low, w_high
        return max(0.0, min(low, w_low)), min(1.0, max(high, w_high))

    @property
    def outcome(self) -> str:
        """`HOLDS`, `FAILS` or `UNDECIDED`; "" if the claim says nothing about it."""
        if not self.decisive:
            return ""
        low, high = self.interval
        if self.above is not None:
            return HOLDS if low > self.above else FAILS if high < self.above else UNDECIDED
        return HOLDS if high < self.below else FAILS if low > self.below else UNDECIDED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers for readers; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot or pictures, as PNG inside the claim's folder."""

    file: str
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What measuring a claim gave.

    Attributes:
        findings: those that decide first.
        how: the set-up in a few sentences: models, data, sizes, solver.
        tables, pictures: for readers.
        remarks: what limits the finding, or explains one that does not reproduce.
    """

    findings: tuple[Finding, ...]
    how: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """By the rule at the top of this module."""
        return verdict(self.findings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper.

    Attributes:
        number: of the list in docs/reproduction.md.
        name: for `--claims`.
        title: a line.
        says: the claim in our words.
        source: where the paper makes it.
        run: measures it; goes on where an earlier call stopped.
    """

    number: int
    name: str
    title: str
    says: str
    source: str
    run: Callable[[Study], Result]


def verdict(findings: Sequence[Finding]) -> str:
    """By the rule at the top of this module.

    Raises:
        ValueError: no finding is decisive.
    """
    outcomes = [finding.outcome for finding in findings if finding.decisive]
    if not outcomes:
        raise ValueError("no finding decides; a claim must say what would contradict it")
    if all(outcome == HOLDS for outcome in outcomes):
        return REPRODUCED
    if all(outcome == FAILS for outcome in outcomes):
        return CONTRADICTED
    return IN_PART if HOLDS in outcomes else OPEN


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share of n cases."""
    z = stats.norm.ppf((1 + CONFIDENCE) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(max(share * (1 - share), 0.0) / n + z**2 / (4 * n**2))
    return middle - half, middle + half
