"""What lives as long as a training process, from its first phase to its last, and how it is closed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax

from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.chrono import Chrono
from ediffi_jax.training.config_files import to_json
from ediffi_jax.training.goodput import Goodput
from ediffi_jax.training.nonfinite import Rollbacks
from ediffi_jax.training.observers import Console, Files, Observer, TensorBoard, Wandb
from ediffi_jax.training.ownership import Ownership
from ediffi_jax.training.records import Records
from ediffi_jax.training.run import Run
from ediffi_jax.training.saving import Checkpoints
from ediffi_jax.training.signals import StopRequest


def make_observers(run: Run, position: Position, chrono: Chrono) -> list[Observer]:
    """In the first process console, files, account of the time, TensorBoard, if asked for W&B; in all the records."""
    observers: list[Observer] = [Records(run.workdir, position.step)] if run.config.data.record_ids else []
    if jax.process_index() > 0:
        return observers
    total = sum(phase.steps for phase in run.phases)
    observers += [
        Console(total, position.step, run.config.stage),
        Files(run.workdir, position.step),
        Goodput(run.workdir, position.step, chrono),
        TensorBoard(run.workdir, position.step),
    ]
    if run.config.wandb:
        observers.append(Wandb(run.config.wandb, run.workdir, to_json(run.config)))
    return observers

@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """What lives as long as the process."""

    checkpoints: Checkpoints
    observers: list[Observer]
    stop: StopRequest
    chrono: Chrono
    owner: Ownership
    rollbacks: Rollbacks

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Afterwards the last checkpoint is complete and the observers are closed."""
        with finally_(self.checkpoints.wait, *(observer.close for observer in self.observers)):
            yield


@contextlib.contextmanager
def finally_(*ends: Callable[[], None]) -> Iterator[None]:
    """Calls `ends` afterwards. An error before them is the one to tell, not what they raise because of it."""
    try:
        yield
    except BaseException:
        for end in ends:
            with contextlib.suppress(Exception):
                end()
        raise
    for end in ends:
        end()
