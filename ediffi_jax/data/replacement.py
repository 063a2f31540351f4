"""Records that cannot be used while training: another takes the place, is told of, and too many end the run.

The record that takes a place is drawn from the same data set by (seed, position, attempt), so it is the same
whatever the processes, the workers and the restarts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from ediffi_jax.data.sources import Record, Source
from ediffi_jax.data.views import LoaderError

SEED = 0xBAD
ATTEMPTS = 16  # records tried for one place
ENOUGH = 1000  # images that a share is told from
TOLD = 20  # records told one by one; then every hundredth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced:
    """One record that could not be used.

    Attributes:
        data: name of its data set.
        number: of the record.
        id: as stored in the record; "" if there is none, or it could not be read.
        reason: why.
    """

    data: str
    number: int
    id: str
    reason: str

    def __str__(self) -> str:
        known = f" ({self.id})" if self.id else ""
        return f"record {self.number}{known} of {self.data!r}: {self.reason}"


def substitute(seed: int, position: int, attempt: int, size: int) -> int:
    """The number of the record tried next for a position."""
    return int(np.random.default_rng((SEED, seed, position, attempt)).integers(size))


def read_each(source: Source, numbers: Sequence[int]) -> list[Record | LoaderError]:
    """Records, read together; where one is damaged, each for itself, with an error in its place."""
    try:
        return list(source.read(numbers)) if len(numbers) else []
    except LoaderError as error:
        return [error] if len(numbers) == 1 else [read_each(source, [number])[0] for number in numbers]


class Account:
    """Counts the images of a loader and those that were replaced.

    Attributes:
        images: taken since the process started.
        replaced: records that could not be used for them.
    """

    def __init__(self, most: float) -> None:
        """Raises LoaderError unless `most`, the share that may be replaced, is in [0, 1]."""
        if not 0 <= most <= 1:
            raise LoaderError(f"data.max_bad_fraction is {most}; expected a share from 0 to 1")
        self._most = most
        self.images = self.replaced = 0

    def add(self, images: int, replaced: Sequence[Replaced]) -> None:
        """A batch. Raises LoaderError when more than the allowed share was replaced."""
        self.images += images
        for record in replaced:
            self.replaced += 1
            if self.replaced <= TOLD or self.replaced % 100 == 0:
                logging.warning("replaced, %d of %d images so far: %s", self.replaced, self.images, record)
        if replaced and self.replaced > self._most * max(self.images, ENOUGH):
            raise LoaderError(
                f"{self.replaced} of {self.images} images could not be used, more than config.data.max_bad_fraction="
                f"{self._most:g}; the last was {replaced[-1]}"
            )
