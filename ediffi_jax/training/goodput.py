"""What a run's time went to, over all its restarts: the share spent in steps is its goodput.

Every process that trains leaves `workdir/goodput/<n>.json`, rewritten while it runs: seconds by activity and the
steps it went through. Steps that a later process took again are time lost; what lies between two processes is
counted apart, for whether the machines waited meanwhile or were given back is not ours to know.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from ediffi_jax import stores
from ediffi_jax.training import claims
from ediffi_jax.training.chrono import ACTIVITIES, Chrono
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.observers import Observer, clock_time
from ediffi_jax.training.storage import writing

FOLDER = "goodput"
EVERY = 10.0  # seconds between two writes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One process's part of a run.

    Attributes:
        begun, ended: Unix time of its start and of its last word.
        first_step, last_step: the checkpoint it went on from, and the last step it logged.
        seconds: by activity.
    """

    begun: float
    ended: float
    first_step: int
    last_step: int
    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """A run over all its processes, in seconds.

    Attributes:
        processes: how many.
        seconds: by activity, of which `step` and `data` are those whose steps stayed, and `lost` the others.
        between: while no process ran, or ran without a last word.
    """

    processes: int
    seconds: Mapping[str, float]
    between: float

    @property
    def goodput(self) -> float:
        """The share of steps that stayed in the time that processes ran."""
        return self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)

    def text(self) -> str:
        """A line for people."""
        total = max(sum(self.seconds.values()), 1e-9)
        shares = ", ".join(f"{name} {value / total:.1%}" for name, value in self.seconds.items() if name != "step")
        starts = f"{self.processes} start{'s' * (self.processes > 1)}"
        return (
            f"goodput {self.goodput:.1%} of {clock_time(total)} in steps that stayed; {shares};"
            f" {starts}, {clock_time(self.between)} between them"
        )


def summarize(sessions: Sequence[Session]) -> Summary:
    """Adds up sessions, in the order of their time."""
    seconds = dict.fromkeys((*ACTIVITIES, "lost"), 0.0)
    for index, session in enumerate(sessions):
        for name in ACTIVITIES:
            seconds[name] += session.seconds.get(name, 0.0)
        if index + 1 < len(sessions):
            taken = session.last_step - session.first_step
            again = min(max(0, session.last_step - sessions[index + 1].first_step), taken)
            for name in ("step", "data") if again else ():
                part = session.seconds.get(name, 0.0) * again / taken
                seconds[name] -= part
                seconds["lost"] += part
    gaps = zip(sessions, sessions[1:], strict=False)
    between = sum(max(0.0, later.begun - earlier.ended) for earlier, later in gaps)
    return Summary(processes=len(sessions), seconds=seconds, between=between)


def read(workdir: epath.Path) -> list[Session]:
    """The sessions of a workdir; one that a kill cut short while it was rewritten is left out."""
    found = []
    for number in claims.numbers(workdir / FOLDER):
        try:
            found.append(Session(**json.loads(claims.place(workdir / FOLDER, number).read_text())))
        except (ValueError, TypeError):
            continue
    return sorted(found, key=lambda session: session.begun)


def report(workdir: str) -> str:
    """The summary of a workdir, for people. Raises ConfigError if nothing has trained there."""
    sessions = read(stores.at(workdir))
    if not sessions:
        raise ConfigError(f"--goodput: nothing has trained in {workdir}; expected the workdir of a run")
    return summarize(sessions).text()


def shares(chrono: Chrono) -> dict[str, float]:
    """Of this process's time: the share of each activity, as metrics."""
    seconds = chrono.seconds()
    total = max(sum(seconds.values()), 1e-9)
    return {f"goodput/{name}": value / total for name, value in seconds.items()}


class Goodput(Observer):
    """Keeps this process's session, and prints the run's summary at the end."""

    def __init__(self, workdir: epath.Path, step: int, chrono: Chrono) -> None:
        self._workdir, self._chrono, self._first, self._last = workdir, chrono, step, step
        self._begun, self._written = time.time() - sum(chrono.seconds().values()), 0.0
        with writing(workdir):
            self._number = (claims.numbers(workdir / FOLDER) or [0])[-1] + 1
            claims.create(workdir / FOLDER, self._number, self._text())

    def tick(self, step: int) -> None:
        """Notes the step."""
        self._last = step

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Rewrites the session, if it has been a while."""
        if time.monotonic() - self._written > EVERY:
            self._store()

    def close(self) -> None:
        """Writes it a last time and prints the summary."""
        self._store()
        print(summarize(read(self._workdir)).text(), flush=True)

    def _store(self) -> None:
        self._written = time.monotonic()
        with writing(self._workdir):
            claims.place(self._workdir / FOLDER, self._number).write_text(self._text())

    def _text(self) -> str:
        now = time.time()
        seconds = {name: round(value, 3) for name, value in self._chrono.seconds().items()}
        steps = {"first_step": self._first, "last_step": self._last}
        return json.dumps({"begun": round(self._begun, 3), "ended": round(now, 3), **steps, "seconds": seconds})
