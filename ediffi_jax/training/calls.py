"""What the loop does next: the batches of one or several steps, and the program that takes them all.

    steps_per_call = 1     a program a step
    steps_per_call = n     a program of n steps, for when a step is so short that starting it counts; calls end at
                           multiples of n, and where the phase does
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.mesh import put_batch, put_batches
from ediffi_jax.training.nonfinite import Rollbacks
from ediffi_jax.training.run import Run
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState
from ediffi_jax.training.step import Metrics, make_train_step, make_train_steps


@dataclasses.dataclass(frozen=True)
class Call:
    """One or several steps.

    Attributes:
        batches: on the host, one a step.
        positions: where the run stands after each step.
        images: trained on in all of them.
    """

    batches: list[dict[str, np.ndarray]]
    positions: list[Position]
    images: int

    def each(self, metrics: Metrics) -> list[Metrics]:
        """The metrics of every step; those of several steps come stacked."""
        if len(self.batches) == 1:
            return [metrics]
        return [{name: rows[i] for name, rows in metrics.items()} for i in range(len(self.batches))]


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
        self._batches: Iterator[dict[str, np.ndarray]] | None = None
        self._compiled: set[int] = set()

    def draw(self, position: Position) -> Call:
        """The next call from a position; batches that a roll-back passes over are left out."""
        batches, positions = [], []
        for _ in range(min(self._every - position.step % self._every, self._phase.steps - position.phase_step)):
            start = self._rollbacks.past(position.images)
            if self._batches is None or start != position.images:
                self._batches = self._run.batches(self._phase, start)
            batches.append(next(self._batches))
            position = dataclasses.replace(
                position, step=position.step + 1, phase_step=position.phase_step + 1, images=start + self._images
            )
            positions.append(position)
        return Call(batches, positions, len(batches) * self._images)

    def run(self, call: Call, state: TrainState, frozen: PyTree) -> tuple[TrainState, Metrics]:
        """Takes the steps; the state passed in is gone afterwards."""
        if len(call.batches) == 1:
            return self._step(state, put_batch(call.batches[0], self._mesh), frozen)
        return self._steps(state, put_batches(call.batches, self._mesh), frozen)

    def compiled(self, call: Call) -> bool:
        """Whether a call of so many steps was noted before, and so needs no compilation."""
        return len(call.batches) in self._compiled

    def note_compiled(self, call: Call) -> None:
        """Remembers that calls of so many steps are compiled."""
        self._compiled.add(len(call.batches))
