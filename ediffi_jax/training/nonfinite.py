"""A loss that became NaN or infinite: stop, or roll back and leave out the data that led there.

`config.nonfinite="stop"`      the run ends with what, where and which expert; exit code 2
`config.nonfinite="rollback"`  the run ends with 42, after noting in `workdir/rollbacks/<n>.json` which images lie
                               between the last checkpoint and the end of the bad step. Every later start leaves
                               these out of the order of the data, for good: training goes from that checkpoint
                               straight to the image after them. After `config.rollbacks` at one checkpoint it ends
                               with 2: then it is not the data.

What differs after a roll-back is the data of the repeated steps alone: they draw the noise that they drew before
(a function of seed and step), and learn from later images. Where the process was killed makes no difference,
since what is left out is a range of the data order and not of steps.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Array, Bool, PyTree
from ml_collections import ConfigDict

from ediffi_jax.training import claims
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.errors import RestartError, TrainingError
from ediffi_jax.training.storage import writing

ADVICE = "Expected finite values: lower config.optimizer.lr or config.optimizer.clip, or check the data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """Images that are left out.

    Attributes:
        checkpoint: the step rolled back to, 0 for the beginning.
        step: the one that was not finite.
        start, end: the range of the data order from that checkpoint to the end of that step.
        cause: what was not finite.
    """

    checkpoint: int
    step: int
    start: int
    end: int
    cause: str


class Rollbacks:
    """The gaps of a workdir's data order, read when the process starts, and the policy."""

    def __init__(self, config: ConfigDict, workdir: epath.Path) -> None:
        """Raises StorageError or RestartError if the workdir cannot be read."""
        self._policy, self._most = config.nonfinite, config.rollbacks
        self._folder = workdir / "rollbacks"
        with writing(self._folder):
            self._numbers = claims.numbers(self._folder)
            self.gaps = [gap for number in self._numbers if (gap := _read(self._folder, number))]

    def past(self, images: int) -> int:
        """The first position of the data order, from `images` on, that is not left out."""
        for gap in sorted(self.gaps, key=lambda gap: gap.start):
            if gap.start <= images < gap.end:
                images = gap.end
        return images

    def refuse(self, what: str, bad: Position, good: Position | None, where: str) -> None:
        """Ends the process by the policy.

        Args:
            what: what became what, of which expert.
            bad: after the step at which it did.
            good: of the last checkpoint, None for the beginning.
            where: that checkpoint, as the user is told.

        Raises:
            TrainingError: to stop.
            RestartError: to be started again, with the gap noted.
        """
        line = f"{what} at step {bad.step}; {where}."
        if self._policy == "stop":
            raise TrainingError(f'{line} {ADVICE}, or let the run go on without it: config.nonfinite="rollback"')
        step, images = (good.step, good.images) if good else (0, 0)
        times = sum(gap.checkpoint == step for gap in self.gaps)
        if times >= self._most:
            raise TrainingError(f"{line} Rolled back to step {step} {times} times already (config.rollbacks). {ADVICE}")
        gap = Gap(checkpoint=step, step=bad.step, start=images, end=bad.images, cause=what)
        if jax.process_index() == 0:
            with writing(self._folder):
                claims.create(self._folder, (self._numbers or [0])[-1] + 1, json.dumps(dataclasses.asdict(gap)))
        raise RestartError(
            f"{line} Started again, the run goes on from step {step} without the images {gap.start} to {gap.end - 1} of"
            f" the data order (roll-back {times + 1} of {self._most} there)"
        )


def _read(folder: epath.Path, number: int) -> Gap | None:
    """A gap; None for one that a kill cut short, in which case the bad step comes again."""
    try:
        return Gap(**json.loads(claims.place(folder, number).read_text()))
    except (ValueError, TypeError) as error:
        logging.warning("%s is damaged (%s) and counts for nothing", claims.place(folder, number), error)
        return None


def first_bad(metrics: dict[str, np.ndarray]) -> tuple[str, int, float] | None:
    """Name, row and value of the first number in metrics [E] that is not finite, the loss first; None if all are."""
    for name in sorted(metrics, key=lambda name: name != "loss"):
        per_expert = metrics[name]
        bad = np.flatnonzero(~np.isfinite(per_expert))
        if bad.size:
            return name, int(bad[0]), float(per_expert[bad[0]])
    return None


def finite(params: PyTree) -> Bool[Array, "e"]:
    """Which experts' parameters, leaves [E, ...], are finite throughout."""
    leaves = [jnp.isfinite(leaf).all(tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(params)]
    return jnp.stack(leaves).all(0)
