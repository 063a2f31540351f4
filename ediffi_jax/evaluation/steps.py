"""A list of steps that goes on where it stopped: each is a command or a function, done once, and timed.

A step that finished leaves `done/<name>.json` in the folder, written last: it is not run again. A command
that was stopped half-way is started again and is expected to resume by itself, as `launch.train` does.

    Ctrl-C or SIGTERM ──▶ SIGTERM to the running command ──▶ it saves and exits ──▶ Interrupted
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from ediffi_jax.errors import UserError

WANTS_RESTART = 42  # exit code of a verb that saved its state and asks to be started again
MAX_RESTARTS = 3


class StepError(UserError):
    """A step failed, or the folder belongs to a run with other settings."""


class Interrupted(Exception):
    """The run was stopped from outside; everything up to the last save is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step: `command` as an argument list, or a Python function `action` where there is no command.

    `settings` is what the result of an action depends on: a finished step is only taken over if it is unchanged.
    `makes` is a folder that a half-finished start leaves unusable: it is removed before the next one.
    """

    name: str
    title: str
    command: Sequence[str] = ()
    action: Callable[[], None] | None = None
    settings: str = ""
    makes: Path | None = None

    @property
    def identity(self) -> str:
        return " ".join(self.command) or self.settings

    @property
    def command_line(self) -> str:
        """The command as a user types it; "" for a function."""
        return " ".join(("python", *self.command[1:])) if self.command else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """What is remembered of a finished step: its own seconds, over all its starts."""

    name: str
    title: str
    identity: str
    seconds: float


def finished(folder: Path, steps: Sequence[Step]) -> list[Finished]:
    """The steps that are done in `folder`, in their order.

    Raises:
        StepError: a step was done there with other settings.
    """
    records = []
    for step in steps:
        path = _marker(folder, step)
        if not path.exists():
            continue
        record = Finished(**json.loads(path.read_text(encoding="utf-8")))
        if record.identity != step.identity:
            raise StepError(
                f"{folder} holds a run with other settings (step {step.name!r}); remove it or choose another folder"
            )
        records.append(record)
    return records


def run_steps(folder: Path, steps: Sequence[Step], *, say: Callable[[str], None] = print) -> list[Finished]:
    """Runs the steps that are not done yet.

    Raises:
        StepError: a command failed, or the folder belongs to a run with other settings.
        Interrupted: Ctrl-C or SIGTERM; calling again continues.
    """
    (folder / "done").mkdir(parents=True, exist_ok=True)
    known = {record.name for record in finished(folder, steps)}
    for number, step in enumerate(steps, start=1):
        if step.name in known:
            say(f"[{number}/{len(steps)}] {step.title}: done before")
            continue
        say(f"[{number}/{len(steps)}] {step.title}")
        with _timed(folder, step):
            with _signals_as_interrupt():
                _run(step)
    return finished(folder, steps)


def _marker(folder: Path, step: Step) -> Path:
    return folder / "done" / f"{step.name}.json"


@contextlib.contextmanager
def _timed(folder: Path, step: Step) -> Iterator[None]:
    """Adds the seconds of this start to those of earlier ones; writes the marker once the step is through."""
    spent = folder / "done" / f"{step.name}.seconds"
    before = float(spent.read_text()) if spent.exists() else 0.0
    start = time.monotonic()
    try:
        yield
    finally:
        spent.write_text(repr(before + time.monotonic() - start))
    record = Finished(name=step.name, title=step.title, identity=step.identity, seconds=float(spent.read_text()))
    _marker(folder, step).write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM and a closed terminal raise KeyboardInterrupt, and any of them leave as `Interrupted`."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(step: Step) -> None:
    if step.makes is not None:
        shutil.rmtree(step.makes, ignore_errors=True)
    if step.action is not None:
        step.action()
        return
    for _ in range(1 + MAX_RESTARTS):
        code = _call(step.command)
        if code != WANTS_RESTART:
            break
    if code != 0:
        raise StepError(f"step {step.name!r} ended with exit code {code}: {' '.join(step.command)}")


def _call(command: Sequence[str], patience: float = 120.0) -> int:
    """Runs a command; on Ctrl-C asks it to save and stop, and waits for that at most `patience` seconds."""

    # In a process group of its own the command does not get the terminal's Ctrl-C, only our one SIGTERM.
    process = subprocess.Popen(list(command), process_group=0)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(timeout=patience)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # too slow, or Ctrl-C a second time
            process.kill()
            process.wait()
        raise
