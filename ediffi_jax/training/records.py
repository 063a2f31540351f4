"""Which records a run was trained on, step by step: the proof that none was skipped or seen twice.

    workdir/records/<first step>-<last step>.<process>.json    {"step": [[record, ...] of each expert, ...], ...}

With `config.data.record_ids` every process notes the records of its part of each batch, as the loader read them, and
writes a part file with each checkpoint: what is written is what the weights have seen. A run that starts again from
a checkpoint removes the parts after it. Records are numbers in the stored order of the train split; in a mixture those
of the second data set count on from the first's, and so on; synthetic pictures have their positions.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from ediffi_jax import stores
from ediffi_jax.training.errors import TrainingError
from ediffi_jax.training.observers import Observer

FOLDER = "records"


class Records(Observer):
    """Writes one process's part files."""

    def __init__(self, workdir: epath.Path, step: int) -> None:
        """Removes what belongs to steps after `step`, where the run starts."""
        self._folder = workdir / FOLDER
        self._steps: dict[int, list[list[int]]] = {}
        if jax.process_index() == 0:
            for first, path in _parts(self._folder):
                if first > step:
                    path.unlink()

    def drawn(self, step: int, record_ids: Int[np.ndarray, "e b"]) -> None:
        """Notes a step's records."""
        self._steps[step] = record_ids.tolist()

    def saved(self, step: int) -> None:
        """Writes those of the steps since the last time."""
        if not self._steps:
            return
        if not stores.is_remote(self._folder):
            self._folder.mkdir(exist_ok=True)  # a workdir that is gone is not made anew
        name = f"{min(self._steps):09d}-{max(self._steps):09d}.{jax.process_index()}.json"
        (self._folder / name).write_text(json.dumps(self._steps))
        self._steps = {}


def read(workdir: str | epath.Path) -> dict[int, list[int]]:
    """The records of each step, those of all processes and experts together, sorted.

    Raises:
        TrainingError: a part file that cannot be read.
    """
    found: dict[int, list[int]] = collections.defaultdict(list)
    for _, path in _parts(stores.at(workdir) / FOLDER):
        try:
            steps = json.loads(path.read_text())
            for step, experts in steps.items():
                found[int(step)] += [record for rows in experts for record in rows]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); expected what launch.train writes") from error
    return {step: sorted(found[step]) for step in sorted(found)}


def _parts(folder: epath.Path) -> Iterator[tuple[int, epath.Path]]:
    """(first step, file) of every part."""
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        if match := re.fullmatch(r"(\d+)-\d+\.\d+\.json", path.name):
            yield int(match[1]), path
