"""Writing checkpoints, in the background, and the last `keep` of a workdir.

A checkpoint is complete when Orbax has written its metadata, the last thing it does; what a killed process
left half-written has another name and is removed. A step is saved anew (after a branch without training, or
over a damaged checkpoint) as `<step>.new`, which takes the old one's place when it is complete: at no moment
is there neither. In an object store, which cannot rename, it is saved as `<step>.<version>`, and the older one
is removed when it is complete (`release.commits`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from ediffi_jax import stores
from ediffi_jax.release import commits
from ediffi_jax.release.commits import committed, folder_of
from ediffi_jax.training import checkpoint
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.errors import CheckpointError
from ediffi_jax.training.state import TrainState
from ediffi_jax.training.storage import writing

TEMPORARY = "orbax-checkpoint-tmp"
REPLACEMENT = ".new"


class Checkpoints:
    """The checkpoints of one workdir, of which the last `keep` stay.

    Attributes:
        folder: where they are.
        last: the position last saved, and on disk, or restored.
    """

    def __init__(self, workdir: str | epath.Path, keep: int = 3) -> None:
        """Removes what a killed process left half-written.

        Raises:
            CheckpointError: the folder cannot be made or written.
        """
        self.folder = folder_of(workdir)
        self._remote = stores.is_remote(self.folder)
        self._keep = keep
        self._pending: Future[None] | None = None
        self._saving: Position | None = None
        logging.get_absl_logger().addFilter(_untold)
        self.last: Position | None = None
        try:
            if jax.process_index() == 0:
                self._tidy()
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written: {error}; expected a writable folder") from error
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints tidied")  # before anybody looks for the newest

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, oldest first."""
        return checkpoint.committed_steps(self.folder)

    def save(self, state: TrainState, position: Position) -> None:
        """Starts writing; returns once the arrays are copied, so the state may be donated.

        Raises:
            StorageError, RestartError: this save or the last could not be written.
        """
        self.wait()
        path = self.folder / str(position.step)
        with writing(path):
            if old := committed(self.folder).get(position.step):
                suffix = f".{commits.version(old)[1] + 1}" if self._remote else REPLACEMENT
                path = self.folder / f"{position.step}{suffix}"
            response = ocp.save_checkpointables_async(
                path, {"state": checkpoint.as_dict(state)}, overwrite=True, custom_metadata=dataclasses.asdict(position)
            )
        self._pending, self._saving = _awaited(response.result), position

    def check(self) -> None:
        """Waits for nothing, but raises as `wait` if the save in the background has failed already."""
        if self._pending is not None and self._pending.done() and self._pending.exception():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk, then removes the oldest beyond `keep`. Raises as `save`."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with writing(self.folder / str(self._saving.step)):
            pending.result()
            if jax.process_index() == 0:
                self._replace()
                for path in list(committed(self.folder).values())[: -self._keep or None]:
                    self._remove(path)
        self.last = self._saving

    def _tidy(self) -> None:
        """Removes what a killed process left half-written, and ends what it left half-replaced."""
        if not self._remote:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if TEMPORARY in path.name:
                    path.rmtree()
        self._replace()

    def _remove(self, path: epath.Path) -> None:
        """Removes a checkpoint; what cannot be removed is in nobody's way."""
        if self._remote:
            with contextlib.suppress(OSError):
                commits.remove(path)
        else:
            shutil.rmtree(path, ignore_errors=True)

    def _replace(self) -> None:
        """Puts complete replacements in the place of what they replace; in a store that is removing the rest."""
        if self._remote:
            whole = set(committed(self.folder).values())
            for path in commits.names(self.folder):
                if path not in whole:
                    commits.remove(path)
            return
        for path in self.folder.glob(f"*{REPLACEMENT}"):
            old = self.folder / path.name.removesuffix(REPLACEMENT)
            if old.exists():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            path.rename(old)

    def restore_newest(self, target: Callable[[Position], PyTree]) -> tuple[TrainState, Position] | None:
        """The newest readable checkpoint; damaged ones are named in the log and passed over.

        Args:
            target: from a position to the state expected there: leaves with shape, dtype and sharding.

        Returns:
            The state and its position, or None if there is no checkpoint yet.

        Raises:
            CheckpointError: all are damaged, or one does not fit the model.
        """

        def read(path: epath.Path) -> tuple[TrainState, Position]:
            position = checkpoint.read_position(path)
            return checkpoint.restore(path, target(position)), position

        restored = checkpoint.newest_readable(self.folder, read)
        self.last = None if restored is None else restored[1]
        return restored


def _awaited(result: Callable[[], None]) -> Future[None]:
    """What becomes of a save, which Orbax tells only to who waits for it."""
    future: Future[None] = Future()

    def wait() -> None:
        try:
            future.set_result(result())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=wait, name="save", daemon=True).start()
    return future


def _untold(record: Any) -> bool:
    """Drops what Orbax logs, with a traceback, of an exception that it then raises, and that we tell in one line."""
    return "_SignalingThread.run() raised" not in str(record.msg)
