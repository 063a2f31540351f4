"""SIGTERM and Ctrl-C as a request: the loop saves, and the process exits with the code that asks for a restart."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, the first signal only sets a mark; a second one does what it does without us."""

    def __init__(self) -> None:
        self._signalled = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def at(self, step: int) -> bool:
        """Whether to stop after `step`; with several processes all answer alike at the same step."""
        if jax.process_count() == 1:
            return self._signalled
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
