"""What a checkpoint is, `workdir/checkpoints/<step>` in Orbax's v1 format, and reading it; `saving` writes it.

Each holds one tree named `state` (step, params, ema, opt_state; every leaf with its leading expert axis)
and, as JSON in its metadata, everything else a restart needs: a `Position`. The data position is a plain
number of images, since the order of the data is a function of it, so another mesh, device count or
process count restores the same checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
from absl import logging
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from ediffi_jax.release.commits import committed, folder_of
from ediffi_jax.training.errors import CheckpointError, DamagedError

FORMAT = 1
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
