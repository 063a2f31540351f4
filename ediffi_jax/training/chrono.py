"""What the loop is doing, how long it has done each thing, and how fast it trains.

    start ─▶ compile ─▶ (data ─▶ step) … evaluate, sample, save … ─▶ start of the next phase

The loop says what it turns to; the time up to the next turn counts as that. Speed is images over the time
of `data` and `step` alone. `turns` grows with every turn, by which `watchdog` sees that the loop is alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax

ACTIVITIES = ("start", "compile", "data", "step", "evaluate", "sample", "save")


class Chrono:
    """A clock that one thread turns and others may read.

    Attributes:
        activity: what the loop is doing, one of `ACTIVITIES`.
        turns: how often it turned to something.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._past = dict.fromkeys(ACTIVITIES, 0.0)
        self._since = clock()
        self.activity = "start"
        self.turns = 0
        self.restart()

    def turn(self, activity: str) -> None:
        """The loop turns to one of `ACTIVITIES`, or to the same anew."""
        now = self._clock()
        self._past[self.activity] += now - self._since
        self._since = now
        self.activity = activity
        self.turns += 1

    def seconds(self) -> dict[str, float]:
        """The time spent on each activity since the beginning."""
        return self._past | {self.activity: self._past[self.activity] + self._clock() - self._since}

    def restart(self) -> None:
        """Begins a new interval for `measure`."""
        self._start = self.seconds()
        self._images = 0

    def count(self, images: int) -> None:
        """Adds images trained on."""
        self._images += images

    def measure(self) -> dict[str, float]:
        """Images per second in all and per device, and the share of time spent waiting for data.

        Empty if nothing was counted: the interval held only a first step, which compiled.
        """
        if not self._images:
            return {}
        now = self.seconds()
        data, step = (now[name] - self._start[name] for name in ("data", "step"))
        elapsed = max(data + step, 1e-9)
        rate = self._images / elapsed
        per_device = rate / jax.device_count()
        return {"images_per_s": rate, "images_per_s_per_device": per_device, "data_wait": data / elapsed}
