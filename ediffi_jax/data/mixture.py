"""Several data sets as one, in exact shares: which of them, and which of its records, stands where in the order.

    --config.data.name=data/photos:0.7,data/drawings:0.3

Weights become whole numbers p_1 .. p_K with sum W, and the data sets take turns in a pattern of length W that
repeats for ever. It is the schedule of the chairman assignment problem (Tijdeman 1980, Discrete Math. 32): after
any n images, data set k has given n p_k / W of them within 1 - 1/(2K - 2), which is the best bound there is. So in
every window of L images it has L p_k / W within twice that: within 1 for two data sets, less than 2 for more.
Each data set is shuffled for itself, epoch after epoch. Everything is a function of (seed, position).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import grain.python as grain
import numpy as np

from ediffi_jax.data.views import LoaderError

LONGEST = 100_000  # images after which the pattern of a mixture repeats, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One data set of a mixture.

    Attributes:
        name: of the data set.
        weight: relative to the others'.
    """

    name: str
    weight: Fraction = Fraction(1)


def parse(text: str) -> tuple[Share, ...]:
    """``NAME``, or ``NAME:WEIGHT,NAME:WEIGHT,...``.

    Raises:
        LoaderError: a weight that is missing, not a number or not positive, a name that is empty or comes twice.
    """
    if "," not in text:
        return (Share(name=text),)
    shares: list[Share] = []
    for part in text.split(","):
        name, _, number = part.strip().rpartition(":")
        weight = _number(number)
        told = ""
        if weight is None or weight <= 0:
            told = f"{part.strip()!r} has no weight above 0"
        elif not name or name in [share.name for share in shares]:
            told = f"{name!r} comes twice" if name else f"{part.strip()!r} has no name"
        if told:
            raise LoaderError(f"config.data.name={text!r}: {told}; expected NAME:0.7,NAME:0.3")
        shares.append(Share(name=name, weight=weight))
    return tuple(shares)


def _number(text: str) -> Fraction | None:
    """Exactly what is written, so that 0.1 is a tenth; None for what is no number."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


class Turns:
    """Whose turn it is at each position."""

    def __init__(self, weights: Sequence[Fraction]) -> None:
        """Raises LoaderError if the pattern would be longer than `LONGEST`."""
        whole = math.lcm(*(weight.denominator for weight in weights))
        counts = [int(weight * whole) for weight in weights]
        self.counts = tuple(count // math.gcd(*counts) for count in counts)
        self.period = sum(self.counts)
        if self.period > LONGEST:
            shown = ", ".join(str(float(weight)) for weight in weights)
            raise LoaderError(f"the weights {shown} repeat only after {self.period} images; expected fewer digits")
        self._which, self._before = _pattern(self.counts)

    def __call__(self, position: int) -> tuple[int, int]:
        """(which data set, how many images it has given before) at a position."""
        periods, place = divmod(position, self.period)
        which = int(self._which[place])
        return which, periods * self.counts[which] + int(self._before[place])


def _pattern(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """One period: of each place the data set, and how often it came before.

    A data set may come as soon as it is 1/(2K - 2) behind its share, and of those that may, the one comes that would
    first be 1 - 1/(2K - 2) behind.
    """
    period, slack = sum(counts), max(2 * len(counts) - 2, 1)
    which, before = np.zeros((2, period), np.int32)
    given = [0] * len(counts)

    def due(k: int) -> int:
        return -(-period * (slack * given[k] + slack - 1) // (slack * counts[k]))

    for place in range(period):
        ready = [k for k, count in enumerate(counts) if slack * ((place + 1) * count - given[k] * period) >= period]
        chosen = min(ready, key=due)
        which[place], before[place] = chosen, given[chosen]
        given[chosen] += 1
    return which, before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The record at each position of the global order.

    Attributes:
        sizes: records of each data set.
        weights: how often each comes.
        seed: of the shuffles, in [0, 2^32).
        shuffled: whether each epoch of a data set is a fresh permutation, or its stored order.
    """

    sizes: tuple[int, ...]
    weights: tuple[Fraction, ...]
    seed: int
    shuffled: bool

    @functools.cached_property
    def _turns(self) -> Turns:
        return Turns(self.weights)

    @functools.cached_property
    def _records(self) -> list[grain.MapDataset]:
        """Of each data set its endless order; a data set that stands alone is shuffled with the seed itself."""
        seeds = [self.seed, *np.random.SeedSequence((self.seed, 0x317)).generate_state(len(self.sizes) - 1)]
        orders = [grain.MapDataset.range(size) for size in self.sizes]
        if self.shuffled:
            orders = [order.seed(int(seed)).shuffle() for order, seed in zip(orders, seeds, strict=True)]
        return [order.repeat(None) for order in orders]

    def first(self, which: int) -> int:
        """How many records the data sets before this one have."""
        return sum(self.sizes[:which])

    def __call__(self, position: int) -> tuple[int, int]:
        """(which data set, number of its record)."""
        which, index = self._turns(position)
        return which, int(self._records[which][index])
