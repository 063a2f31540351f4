"""Speed and waiting, on a clock that stands still while the loop compiles, evaluates, samples or saves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import jax


class Chrono:
    """Speed and remaining time, with evaluation and saving left out."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begins a new interval."""
        self._start = self._clock()
        self._paused = 0.0
        self._waited = 0.0
        self._images = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        start = self._clock()
        yield
        self._paused += self._clock() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts, as waiting for data."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    def count(self, images: int) -> None:
        """Adds images trained on."""
        self._images += images

    def measure(self) -> dict[str, float]:
        """Images per second in all and per device, and the share of time spent waiting for data.

        Empty if nothing was counted: the interval held only a first step, which compiled.
        """
        if not self._images:
            return {}
        elapsed = max(self._clock() - self._start - self._paused, 1e-9)
        rate = self._images / elapsed
        per_device = rate / jax.device_count()
        return {"images_per_s": rate, "images_per_s_per_device": per_device, "data_wait": self._waited / elapsed}
