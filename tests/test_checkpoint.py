"""Checkpoints: exact round trips, other meshes, damage, and leaves that do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_fakes import Net, make_adamw, make_objective, make_state, same

from ediffi_jax.training import checkpoint
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.errors import CheckpointError
from ediffi_jax.training.mesh import make_mesh, state_shardings
from ediffi_jax.training.saving import Checkpoints
from ediffi_jax.training.schedule import Phase

TWO = Phase(steps=10, cuts=(0.5,))
POSITION = Position(
    step=4, images=123, phase=1, phase_step=2, cuts=(0.5,), expert_ids=(0, 1), encoders="none", config={"seed": 0}
)


def at(step: int) -> Position:
    return dataclasses.replace(POSITION, step=step)


@pytest.fixture(scope="module")
def state():
    return make_state(make_objective(Net(channels=32)), make_adamw(), TWO)


def abstract(state, mesh=None):
    mesh = mesh or make_mesh({"expert": 1, "data": 1, "fsdp": 1}, 1, jax.devices()[:1])
    shardings = state_shardings(mesh, state)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def saved(tmp_path: Path, state, steps=(4,), keep: int = 5) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in steps:
        checkpoints.save(state, at(step))
    checkpoints.wait()
    return checkpoints


def test_comes_back_bit_for_bit_with_its_position(tmp_path: Path, state) -> None:
    checkpoints = saved(tmp_path, state)
    restored, position = checkpoints.restore_newest(lambda position: abstract(state))
    assert same(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert position == POSITION


def test_saved_on_eight_devices_restored_on_two_and_one(tmp_path: Path, state) -> None:
    eight = make_mesh({"expert": 2, "data": 2, "fsdp": 2}, 2)
    checkpoints = saved(tmp_path, jax.device_put(state, state_shardings(eight, state)))
    two = make_mesh({"expert": 1, "data": 1, "fsdp": 2}, 2, jax.devices()[:2])
    for mesh in (two, None):
        restored, _ = checkpoints.restore_newest(lambda position, mesh=mesh: abstract(state, mesh))
        assert same(restored, state)
    assert len(jax.tree.leaves(restored)[-1].sharding.device_set) == 1
    plain = checkpoint.load_tree(checkpoint.newest(tmp_path))
    assert same(plain, checkpoint.as_dict(state))
    assert len(plain["params"]["last"]["bias"].sharding.device_set) == 1


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path: Path, state) -> None:
    moving = jax.tree.map(jnp.copy, state)
    expected = jax.tree.map(np.array, state)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(moving, POSITION)
    for _ in range(20):
        moving = advance(moving)
    jax.block_until_ready(moving)
    checkpoints.wait()
    restored, _ = checkpoints.restore_newest(lambda position: abstract(state))
    assert same(restored, expected)


def test_keeps_the_last_k_and_removes_what_a_kill_left(tmp_path: Path, state) -> None:
    small = {"w": jnp.ones((1, 2))}
    checkpoints = saved(tmp_path, small, steps=(1, 2, 3, 10), keep=2)
    assert checkpoints.steps() == [3, 10]
    left = tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp-1"
    left.mkdir()
    assert Checkpoints(tmp_path, 2).steps() == [3, 10]
    assert not left.exists()


def test_a_step_saved_again_is_there_at_every_moment(tmp_path: Path, monkeypatch) -> None:
    first, second = {"w": jnp.zeros((1, 2))}, {"w": jnp.ones((1, 2))}
    checkpoints = saved(tmp_path, first, keep=1)
    path = checkpoint.newest(tmp_path)

    def killed(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_replace", killed)
        checkpoints.save(second, dataclasses.replace(POSITION, phase=2))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
    assert same(checkpoint.load_tree(path), first)
    again = Checkpoints(tmp_path, 1)
    assert [file.name for file in again.folder.iterdir()] == ["4"]
    assert same(checkpoint.load_tree(path), second)
    assert checkpoint.read_position(path).phase == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_bytes(file: Path) -> None:
    file.write_bytes(bytes(byte ^ 0x55 for byte in file.read_bytes()))


def empty(*names: str) -> Callable[[Path], None]:
    """Files without a byte, as a machine that lost power leaves them."""
    return lambda path: [file.write_bytes(b"") for name in names for file in path.glob(name) if file.is_file()]


def set_metadata(**changes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "_CHECKPOINT_METADATA"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def damage_by_deletion(path: Path) -> None:
    shutil.rmtree(path / "state")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "metadata cut": lambda path: cut(path / "_CHECKPOINT_METADATA"),
    "metadata changed": lambda path: change_bytes(path / "_CHECKPOINT_METADATA"),
    "metadata gone": lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
    "position null": set_metadata(custom_metadata=None),
    "position a list": set_metadata(custom_metadata=[1]),
    "position of other types": set_metadata(custom_metadata={**dataclasses.asdict(POSITION), "cuts": 3}),
    "position without format": set_metadata(custom_metadata={"step": 8}),
    "tree cut": lambda path: cut(path / "state" / "_METADATA"),
    "tree null": lambda path: (path / "state" / "_METADATA").write_text("null"),
    "tree gone": lambda path: (path / "state" / "_METADATA").unlink(),
    "shardings changed": lambda path: change_bytes(path / "state" / "_sharding"),
    "types cut": lambda path: cut(path / "state" / "array_metadatas" / "process_0"),
    "types changed": lambda path: change_bytes(path / "state" / "array_metadatas" / "process_0"),
    "index cut": lambda path: cut(path / "state" / "manifest.ocdbt"),
    "index changed": lambda path: change_bytes(path / "state" / "manifest.ocdbt"),
    "arrays cut": lambda path: [cut(file) for file in path.rglob("d/*") if file.is_file()],
    "arrays changed": lambda path: [change_bytes(file) for file in path.rglob("d/*") if file.is_file()],
    "arrays gone": lambda path: [file.unlink() for file in path.rglob("d/*") if file.is_file()],
    "metadata empty": empty("_CHECKPOINT_METADATA"),
    "tree empty": empty("state/_METADATA"),
    "types empty": empty("state/array_metadatas/process_0"),
    "index empty": empty("state/manifest.ocdbt"),
    "index of a process empty": empty("state/ocdbt.process_0/manifest.ocdbt", "state/d/*"),
    "arrays empty": empty("state/ocdbt.process_0/d/*"),
    "every file empty": empty("**/*"),
    "arrays' folder gone": lambda path: shutil.rmtree(path / "state" / "ocdbt.process_0"),
    "index's folder gone": lambda path: shutil.rmtree(path / "state" / "d"),
    "state gone": damage_by_deletion,
    "a file in its place": lambda path: (shutil.rmtree(path), path.write_text("")),
    "an empty folder": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path: Path, state, name: str, caplog) -> None:
    damage = DAMAGES[name]
    checkpoints = saved(tmp_path, state, steps=(4, 8))
    damage(tmp_path / "checkpoints" / "8")
    with caplog.at_level("WARNING"):
        restored, position = checkpoints.restore_newest(lambda position: abstract(state))
    assert position.step == 4
    assert same(restored, state)
    assert any("checkpoints/8 is damaged" in message for message in caplog.messages)
    plain, position = checkpoint.load_newest(tmp_path)
    assert position.step == 4
    assert same(plain, checkpoint.as_dict(state))


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, TypeError, AttributeError, RuntimeError])
def test_a_mistake_of_ours_is_not_taken_for_damage(tmp_path: Path, state, kind: type) -> None:
    checkpoints = saved(tmp_path, state, steps=(4, 8))

    def target(position: Position):
        raise kind("a model that cannot be built")

    with pytest.raises(kind, match="a model that cannot be built"):
        checkpoints.restore_newest(target)


def test_all_damaged_is_an_error_and_none_is_not(tmp_path: Path, state) -> None:
    checkpoints = saved(tmp_path / "a", state)
    damage_by_deletion(tmp_path / "a" / "checkpoints" / "4")
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged: 4"):
        checkpoints.restore_newest(lambda position: abstract(state))
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged: 4"):
        checkpoint.load_newest(tmp_path / "a")
    assert Checkpoints(tmp_path / "b").restore_newest(lambda position: abstract(state)) is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.newest(tmp_path / "b")


def test_leaves_that_do_not_fit_are_named_with_both_shapes(tmp_path: Path, state) -> None:
    checkpoints = saved(tmp_path, state)
    target = abstract(state)
    leaf = target.params["last"]["bias"]
    wider = jax.ShapeDtypeStruct((2, 5), leaf.dtype, sharding=leaf.sharding)
    cases = {
        r"no leaf params/extra; the model expects shape \(2, 3\)": {**target.params, "extra": leaf},
        r"has leaf params/last/bias of shape \(2, 3\); the model has none": {
            **target.params,
            "last": {"kernel": target.params["last"]["kernel"]},
        },
        r"leaf params/last/bias has shape \(2, 3\); the model expects \(2, 5\)": {
            **target.params,
            "last": {**target.params["last"], "bias": wider},
        },
    }
    for message, params in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoints.restore_newest(lambda position, params=params: target.replace(params=params))
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        Checkpoints(tmp_path / "file")


def test_a_later_format_is_refused() -> None:
    with pytest.raises(CheckpointError, match="format 99"):
        Position.from_json({**dataclasses.asdict(POSITION), "format": 99})
