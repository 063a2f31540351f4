"""A process that hangs ends itself with 42, having said where; a slow or stopped one does not."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from ediffi_jax.training.chrono import ACTIVITIES, Chrono
from ediffi_jax.training.watchdog import PATIENCE, Watchdog

MINUTES = 0.4 / 60


class End:
    """In the place of `os._exit`."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.at = threading.Event()

    def __call__(self, code: int) -> None:
        self.code = code
        self.at.set()


def test_a_hung_step_is_named_with_all_stacks(capfd) -> None:
    chrono, end = Chrono(), End()
    chrono.turn("data")
    begun = time.monotonic()
    with Watchdog(chrono, MINUTES, end):
        assert end.at.wait(10)
    assert end.code == 42 and time.monotonic() - begun >= 0.4
    said = capfd.readouterr().err
    first, *stacks = said.splitlines()
    assert first.startswith("error: hung: 'data' has not ended for 0.00") and "config.hang_minutes" in first
    assert any("test_a_hung_step_is_named_with_all_stacks" in line for line in stacks)
    assert any("_watch" in line for line in stacks)


def test_what_takes_longer_than_a_step_is_given_longer(capfd) -> None:
    ends = {}
    with contextlib.ExitStack() as stack:
        for activity in PATIENCE:
            chrono, ends[activity] = Chrono(), End()
            chrono.turn(activity)
            stack.enter_context(Watchdog(chrono, MINUTES, ends[activity]))
        time.sleep(1.0)
    assert {activity for activity, end in ends.items() if end.code == 42} == {"data", "step"}
    assert set(PATIENCE) == set(ACTIVITIES)


def test_a_loop_that_turns_lives_and_none_is_watched_without_minutes() -> None:
    chrono, end = Chrono(), End()
    with Watchdog(chrono, MINUTES, end):
        for _ in range(10):
            chrono.turn("step")
            time.sleep(0.1)
    assert end.code is None
    threads = threading.active_count()
    with Watchdog(chrono, 0.0, end):
        assert threading.active_count() == threads


def test_time_in_which_the_watcher_did_not_run_does_not_count(monkeypatch) -> None:
    """As after SIGSTOP, or a laptop's sleep: the clock leaps once, and the loop goes on."""
    chrono, end, leap = Chrono(), End(), [0.0]
    real = time.monotonic
    monkeypatch.setattr(sys.modules["ediffi_jax.training.watchdog"].time, "monotonic", lambda: real() + leap[0])
    with Watchdog(chrono, 10 * MINUTES, end):
        chrono.turn("step")
        time.sleep(0.2)
        leap[0] = 1e6
        time.sleep(0.6)
    assert end.code is None
