"""A hung process ends itself, so that its scheduler starts it again: a collective whose peer is gone, a data
source or a store that never answers.

A thread watches whether the loop still turns from one thing to the next. If it does not for the time
allowed, the thread prints one line and what every Python thread is doing, and exits with 42. The loop itself
cannot: it is waiting inside a call that does not return. Each process watches itself; a collective that one
of them does not join hangs all, and all of them end.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from ediffi_jax.training.chrono import Chrono
from ediffi_jax.training.errors import RESTART

# Compiling, restoring, evaluating and saving take longer than a step does, and are given so much more.
PATIENCE = {"start": 4, "compile": 4, "evaluate": 4, "sample": 4, "save": 4, "data": 1, "step": 1}
POLL = 1.0  # seconds; more often where minutes are few


class Watchdog:
    """Watches while entered.

    A stopped process (Ctrl-Z, SIGSTOP) is not hung: time in which the watching thread did not run either does
    not count.
    """

    def __init__(self, chrono: Chrono, minutes: float, end: Callable[[int], None] = os._exit) -> None:
        """Args: chrono: of the loop; minutes: allowed for a step or a wait for data, 0 for no end; end: the process."""
        self._chrono, self._limit, self._end = chrono, 60 * minutes, end
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._limit > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def _watch(self) -> None:
        poll = min(POLL, self._limit / 10)
        turns, silent, before = -1, 0.0, time.monotonic()
        while not self._done.wait(poll):
            now = time.monotonic()
            silent += min(now - before, 2 * poll)
            before = now
            if turns != self._chrono.turns:
                turns, silent = self._chrono.turns, 0.0
            activity = self._chrono.activity
            if silent > self._limit * PATIENCE[activity]:
                report(activity, silent)
                self._end(RESTART)
                return


def report(activity: str, seconds: float) -> None:
    """One line that says what hung, then the stacks of all threads."""
    print(
        f"error: hung: {activity!r} has not ended for {seconds / 60:.3g} minutes (config.hang_minutes);"
        f" exit code {RESTART} asks for a restart from the last checkpoint; the stacks of all threads:",
        file=sys.stderr,
        flush=True,
    )
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
