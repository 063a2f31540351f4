"""Checkpoints: `workdir/checkpoints/<step>`, written by Orbax (v1 API) in the background.

Each holds one tree named `state` (step, params, ema, opt_state; every leaf with its leading expert axis)
and, as JSON in its metadata, everything else a restart needs: a `Position`. The data position is a plain
number of images, since the order of the data is a function of it, so another mesh, device count or
process count restores the same checkpoint. A checkpoint is complete when Orbax has written its metadata,
the last thing it does; what a killed process left half-written has another name and is removed.
A step is saved anew (after a branch without training, or over a damaged checkpoint) as `<step>.new`, which
takes the old one's place when it is complete: at no moment is there neither. In an object store, which cannot
rename, it is saved as `<step>.<version>`, and the older one is removed when it is complete (`release.commits`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import flax
import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from ediffi_jax import stores
from ediffi_jax.release import commits
from ediffi_jax.release.commits import committed, folder_of
from ediffi_jax.training.errors import CheckpointError, DamagedError
from ediffi_jax.training.state import TrainState
from ediffi_jax.training.storage import writing

FORMAT = 1
TEMPORARY = "orbax-checkpoint-tmp"
REPLACEMENT = ".new"
# What Orbax and TensorStore raise for a file that is missing, cut short or altered, found out by doing so to
# every file of a checkpoint. A flipped bit among the numbers themselves raises nothing: they have no checksum.
DAMAGE = (OSError, ValueError, KeyError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands, beside its arrays.

    Attributes:
        step: optimizer steps taken.
        images: position in the global data order, i.e. images consumed over all phases.
        phase: index of the phase the state belongs to.
        phase_step: steps taken within that phase.
        cuts: quantiles between the experts of the partition.
        expert_ids: which of the partition's experts are in the state, in order.
        encoders: fingerprint of the frozen encoders.
        config: the run's config as JSON data.
        format: version of this layout.
    """

    step: int
    images: int
    phase: int
    phase_step: int
    cuts: tuple[float, ...]
    expert_ids: tuple[int, ...]
    encoders: str
    config: dict[str, Any]
    format: int = FORMAT

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Position:
        """Inverse of `dataclasses.asdict` after a trip through JSON.

        Raises:
            CheckpointError: a later format.
            KeyError, ValueError: a field is missing, or is not what we write.
        """
        if not isinstance(data, dict) or not isinstance(data["format"], int):
            raise ValueError(f"its position is {str(data)[:80]!r}")
        if data["format"] > FORMAT:
            raise CheckpointError(f"checkpoint has format {data['format']}; this version reads up to {FORMAT}")
        fields = {field.name: data[field.name] for field in dataclasses.fields(cls)}
        if not isinstance(data["cuts"], list | tuple) or not isinstance(data["expert_ids"], list | tuple):
            raise ValueError(f"its cuts are {data['cuts']!r} and its experts {data['expert_ids']!r}")
        return cls(**{**fields, "cuts": tuple(data["cuts"]), "expert_ids": tuple(data["expert_ids"])})


def leaf_names(tree: PyTree) -> list[str]:
    """The name of every leaf, such as ``params/down_0/kernel``, in the tree's order."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def as_dict(state: PyTree) -> dict[str, Any]:
    """A state as nested dicts of arrays, the form in which it is stored."""
    flat = dict(zip(leaf_names(state), jax.tree.leaves(state), strict=True))
    return flax.traverse_util.unflatten_dict(flat, sep="/")


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
        return committed_steps(self.folder)

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
                path, {"state": as_dict(state)}, overwrite=True, custom_metadata=dataclasses.asdict(position)
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
            position = read_position(path)
            return restore(path, target(position)), position

        restored = newest_readable(self.folder, read)
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


def committed_steps(folder: str | epath.Path) -> list[int]:
    """Steps with a checkpoint in a `checkpoints` folder, oldest first."""
    return list(committed(folder))


def newest(workdir: str | epath.Path) -> epath.Path:
    """The path of a workdir's newest checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    folder = folder_of(workdir)
    found = committed(folder)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; expected a workdir that launch.train has written")
    return found[max(found)]


def load_newest(workdir: str | epath.Path) -> tuple[dict[str, Any], Position]:
    """The newest readable checkpoint as `load_tree` gives it; damaged ones are named in the log and passed over.

    Raises:
        CheckpointError: there is none, all are damaged, or one is of a later format.
    """
    folder = newest(workdir).parent
    return newest_readable(folder, lambda path: (load_tree(path), read_position(path)))


def newest_readable(folder: epath.Path, read: Callable[[epath.Path], Any]) -> Any:
    """What `read` makes of the newest checkpoint that it can read, None without any.

    Raises:
        CheckpointError: all are damaged.
    """
    found = committed(folder)
    for path in reversed(found.values()):
        try:
            return read(path)
        except DamagedError as error:
            logging.warning("%s; trying the one before it", error)
    if found:
        raise CheckpointError(f"every checkpoint in {folder} is damaged: {', '.join(map(str, found))}")
    return None


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    """Turns what damaged files raise into DamagedError; around nothing but reading, lest it hide our mistakes."""
    try:
        yield
    except TimeoutError:
        raise  # it may be whole
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedError(f"checkpoint {path} is damaged ({reason})") from error


def read_position(path: epath.Path) -> Position:
    """The position stored with a checkpoint.

    Raises:
        DamagedError: it cannot be read.
        CheckpointError: it is of a later format.
    """
    with _reading(path):
        return Position.from_json(ocp.checkpointables_metadata(path).custom_metadata)


def load_tree(path: epath.Path) -> dict[str, Any]:
    """A checkpoint's state as nested dicts on one device, whatever model and devices it was saved from.

    Raises:
        DamagedError: it cannot be read.
    """
    saved = stored_arrays(path)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved)
    return _load(path, abstract)


def stored_arrays(path: epath.Path) -> dict[str, Any]:
    """Shapes and dtypes of a checkpoint's state. Raises DamagedError if they cannot be read."""
    with _reading(path):
        saved = ocp.checkpointables_metadata(path).metadata.get("state")
        if saved is None:
            raise OSError("its arrays cannot be opened")
    return saved


def _load(path: epath.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    with _reading(path):
        return ocp.load_checkpointables(path, {"state": abstract})["state"]


def restore(path: epath.Path, target: PyTree) -> PyTree:
    """Loads a checkpoint into the structure of `target`, each leaf where the target's sharding says.

    Raises:
        CheckpointError: a leaf is missing, superfluous or of another shape.
        DamagedError: files missing, cut short or altered.
    """
    saved = stored_arrays(path)
    check_leaves(path, saved, as_dict(target))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), as_dict(target))
    leaves = flax.traverse_util.flatten_dict(_load(path, abstract), sep="/")
    return jax.tree.unflatten(jax.tree.structure(target), [leaves[name] for name in leaf_names(target)])


def check_leaves(path: epath.Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares two trees of arrays leaf by leaf.

    Raises:
        CheckpointError: naming the first leaf that differs and both shapes.
    """
    saved_leaves = flax.traverse_util.flatten_dict(saved, sep="/")
    for name, leaf in flax.traverse_util.flatten_dict(expected, sep="/").items():
        if name not in saved_leaves:
            raise CheckpointError(f"checkpoint {path} has no leaf {name}; the model expects shape {tuple(leaf.shape)}")
        found = tuple(saved_leaves.pop(name).shape)
        if found != tuple(leaf.shape):
            raise CheckpointError(
                f"checkpoint {path}: leaf {name} has shape {found}; the model expects {tuple(leaf.shape)}"
            )
    for name, leaf in saved_leaves.items():
        raise CheckpointError(f"checkpoint {path} has leaf {name} of shape {tuple(leaf.shape)}; the model has none")
