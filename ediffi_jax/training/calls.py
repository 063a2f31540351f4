"""What the loop does next: the batches of one or several steps, already on their way to the devices, and the program
that takes them all.

    steps_per_call = 1     a program a step
    steps_per_call = n     a program of n steps, for when a step is so short that starting it counts; calls end at
                           multiples of n, and where the phase does
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from ediffi_jax.data.batches import RECORD_ID
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.mesh import put_batch, put_batches
from ediffi_jax.training.nonfinite import Rollbacks
from ediffi_jax.training.prefetch import Ahead
from ediffi_jax.training.run import Run
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState
from ediffi_jax.training.step import Metrics, make_train_step, make_train_steps


@dataclasses.dataclass(frozen=True)
class Call:
    """One or several steps.

    Attributes:
        positions: where the run stands after each step.
        images: trained on in all of them.
        record_ids: of each step's records, as far as they are this process's; empty unless they are noted.
    """

    positions: list[Position]
    images: int
    record_ids: list[Int[np.ndarray, "e b"]]

    def each(self, metrics: Metrics) -> list[Metrics]:
        """The metrics of every step; those of several steps come stacked."""
        if len(self.positions) == 1:
            return [metrics]
        return [{name: rows[i] for name, rows in metrics.items()} for i in range(len(self.positions))]


Placed = Mapping[str, jax.Array]


class Calls:
    """Draws and runs the calls of one phase."""

    def __init__(self, run: Run, phase: Phase, mesh: Mesh, rollbacks: Rollbacks) -> None:
        config = run.config
        self._run, self._phase, self._mesh, self._rollbacks = run, phase, mesh, rollbacks
        self._every = config.steps_per_call
        self._images = phase.num_experts * config.batch_size
        self._step = make_train_step(
            objective=run.objective,
            optimizer=run.optimizer,
            ema=config.ema,
            phase=phase,
            mesh=mesh,
            seed=config.seed,
            accumulate=config.accumulate,
        )
        self._steps = make_train_steps(self._step, mesh)
        self._loader = run.train_loader(phase)
        self._ahead: Ahead[tuple[Call, Placed]] | None = None
        self._compiled: set[int] = set()

    @property
    def replaced(self) -> int:
        """Records that this process could not use in this phase, and replaced."""
        return self._loader.account.replaced

    def draw(self, position: Position) -> tuple[Call, Placed]:
        """The next call, the first time from `position` on, and its batches on the devices."""
        self._ahead = self._ahead or Ahead(self._from(position))
        return next(self._ahead)

    def close(self) -> None:
        """Stops drawing ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def _from(self, position: Position) -> Generator[tuple[Call, Placed]]:
        """The calls from a position to the end of the phase; batches that a roll-back passes over are left out."""
        batches = None
        while position.phase_step < self._phase.steps:
            rows, positions = [], []
            for _ in range(min(self._every - position.step % self._every, self._phase.steps - position.phase_step)):
                start = self._rollbacks.past(position.images)
                if batches is None or start != position.images:
                    batches = self._loader.iterate(start)
                rows.append(next(batches))
                position = dataclasses.replace(
                    position, step=position.step + 1, phase_step=position.phase_step + 1, images=start + self._images
                )
                positions.append(position)
            noted = [batch.pop(RECORD_ID) for batch in rows if RECORD_ID in batch]
            placed = put_batch(rows[0], self._mesh) if len(rows) == 1 else put_batches(rows, self._mesh)
            yield Call(positions, len(rows) * self._images, noted), placed

    def run(self, call: Call, batches: Placed, state: TrainState, frozen: PyTree) -> tuple[TrainState, Metrics]:
        """Takes the steps; the state passed in is gone afterwards."""
        return (self._step if len(call.positions) == 1 else self._steps)(state, batches, frozen)

    def compiled(self, call: Call) -> bool:
        """Whether a call of so many steps was noted before, and so needs no compilation."""
        return len(call.positions) in self._compiled

    def note_compiled(self, call: Call) -> None:
        """Remembers that calls of so many steps are compiled."""
        self._compiled.add(len(call.positions))
