"""SIGTERM and Ctrl-C as a request: the loop saves, and the process exits with the code that asks for a restart.

All processes of a run must save the same step. JAX's preemption service, which `jax.distributed.initialize`
starts, sees to that: it catches SIGTERM in each process, tells all of them, and agrees on a step that none has
passed. It has to be left its handler of SIGTERM.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, the first signal only sets a mark; a second one does what it does without us.

    With several processes a signal to any of them stops all.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._several = False
        self._asked = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._several = jax.process_count() > 1
        for number in (signal.SIGINT,) if self._several else SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def now(self) -> bool:
        """Whether to stop; with several processes, which must ask equally often, all are told at the same time."""
        if not self._several:
            return self._signalled
        self._asked += 1  # the service tells at one number only, so that none may be left out
        return multihost_utils.reached_preemption_sync_point(self._asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        self._restore()
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
