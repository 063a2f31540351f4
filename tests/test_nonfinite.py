"""A NaN that comes with the data: where it is told to stop, roll back, leave the images out, and give up."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from training_fakes import Net, same, small_config

from ediffi_jax import models
from ediffi_jax.data.batches import SyntheticAssembler
from ediffi_jax.training import checkpoint, config_files, loop, nonfinite, saving
from ediffi_jax.training.errors import ConfigError, RestartError, TrainingError
from ediffi_jax.training.nonfinite import Rollbacks

PER_STEP = 16  # two experts of eight images
make_batch = SyntheticAssembler.__call__


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    monkeypatch.setattr(models, "build", lambda config: Net(channels=8))
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)


@pytest.fixture
def drawn(monkeypatch):
    """Data with a NaN for the second expert in a batch that holds a position in `bad`; notes what was drawn."""

    def read(self, start: int):
        batch, captions, replaced = make_batch(self, start)
        image = batch["image"].astype(np.float32)
        if image.shape[0] > 1:  # training, and not the held-out pictures
            seen.append(start)
            if set(bad) & set(range(start, start + PER_STEP)):
                image[1, 0, 0, 0, 0] = np.nan
        return {**batch, "image": image}, captions, replaced

    bad: list[int] = []
    seen: list[int] = []
    monkeypatch.setattr(SyntheticAssembler, "__call__", read)
    return bad, seen


def config(**changes):
    made = small_config()
    made.phases = ({"steps": 12, "cuts": (0.5,), "parents": ()},)
    made.update({"save_every": 3, "log_every": 1, "nonfinite": "rollback", "rollbacks": 2, **changes})
    return made


def steps(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_stopping_says_step_expert_value_and_checkpoint(tmp_path: Path, drawn) -> None:
    drawn[0].append(4 * PER_STEP)  # the fifth step
    with pytest.raises(TrainingError) as caught:
        loop.train(config(nonfinite="stop"), tmp_path)
    assert str(caught.value).startswith(
        f"loss of expert 1 became nan at step 5; the last good checkpoint is {tmp_path}/checkpoints/3. Expected finite"
    )
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert not (tmp_path / "rollbacks").exists()


def test_rolled_back_it_ends_as_a_run_that_never_had_these_images(tmp_path: Path, drawn, monkeypatch) -> None:
    bad, _ = drawn
    bad.append(4 * PER_STEP + 3)
    with pytest.raises(RestartError) as caught:
        loop.train(config(log_every=4), tmp_path / "run")  # seen only at step 6, when the next checkpoint is due
    message = str(caught.value)
    assert caught.value.exit_code == 42 and "\n" not in message
    assert "loss of expert 1 became nan at step 5; the last good checkpoint is" in message
    assert message.endswith("from step 3 without the images 48 to 79 of the data order (roll-back 1 of 2 there)")
    gap = json.loads((tmp_path / "run" / "rollbacks" / "1.json").read_text())
    assert gap == {"checkpoint": 3, "step": 5, "start": 48, "end": 80, "cause": "loss of expert 1 became nan"}
    # Killed before the next checkpoint, it leaves the same images out once more.
    with monkeypatch.context() as patch:
        patch.setattr(saving.Checkpoints, "save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config(), tmp_path / "run")
    assert loop.train(config(), tmp_path / "run") == loop.FINISHED
    assert steps(tmp_path / "run") == list(range(4, 13))  # 1 to 3 were not logged one by one
    position = checkpoint.read_position(checkpoint.newest(tmp_path / "run"))
    assert (position.step, position.images) == (12, 14 * PER_STEP)

    # Another way to the same end: all checkpoints lost, from the beginning straight through the gap.
    (tmp_path / "again" / "rollbacks").mkdir(parents=True)
    (tmp_path / "again" / "rollbacks" / "1.json").write_text(json.dumps(gap))
    assert loop.train(config(), tmp_path / "again") == loop.FINISHED
    ends = [checkpoint.load_tree(checkpoint.newest(tmp_path / name)) for name in ("run", "again")]
    assert same(*ends)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ends[0]["params"]))


def test_it_gives_up_where_it_comes_again(tmp_path: Path, drawn) -> None:
    """Images that are all bad from some place on: not one batch, but what a run that diverges looks like."""
    drawn[0].extend(range(4 * PER_STEP, 1000))
    said = []
    for kind in (RestartError, RestartError, TrainingError):
        with pytest.raises(TrainingError) as caught:
            loop.train(config(), tmp_path)
        assert type(caught.value) is kind
        said.append(str(caught.value))
    assert "48 to 79" in said[0] and "48 to 95" in said[1]
    assert "Rolled back to step 3 2 times already (config.rollbacks). Expected finite values" in said[2]
    again = config_files.read_workdir(tmp_path)
    again.rollbacks = 3  # may be raised in the same workdir
    with pytest.raises(RestartError, match="roll-back 3 of 3"):
        loop.train(again, tmp_path)


def test_before_the_first_checkpoint_it_begins_anew(tmp_path: Path, drawn) -> None:
    bad, seen = drawn
    bad.append(PER_STEP)
    with pytest.raises(RestartError, match="none was saved. .* from step 0 without the images 0 to 31 "):
        loop.train(config(), tmp_path)
    seen.clear()
    assert loop.train(config(), tmp_path) == loop.FINISHED
    assert min(seen) == 2 * PER_STEP


@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A step can break the weights by numbers that are finite themselves: the next loss is too late to tell."""
    made = config(nonfinite="stop", save_every=1)
    made.optimizer.update({"lr": 1e39, "clip": 0.0})
    with pytest.raises(TrainingError, match="params of expert 0 became NaN or infinite at step 1; none was saved"):
        loop.train(made, tmp_path)
    assert checkpoint.committed_steps(tmp_path / "checkpoints") == []


def test_finite_tells_the_experts_apart() -> None:
    leaves = {"a": np.ones((3, 2, 2), np.float32), "b": np.ones((3,), np.float32)}
    assert nonfinite.finite(leaves).tolist() == [True, True, True]
    leaves["a"][1, 0, 1], leaves["b"][2] = np.inf, np.nan
    assert nonfinite.finite(leaves).tolist() == [True, False, False]


def test_gaps_join_and_a_damaged_note_counts_for_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "rollbacks"
    folder.mkdir()
    for number, (start, end) in enumerate(((48, 80), (48, 96), (96, 100), (200, 210)), 1):
        gap = nonfinite.Gap(checkpoint=3, step=5, start=start, end=end, cause="")
        (folder / f"{number}.json").write_text(json.dumps(vars(gap)))
    (folder / "5.json").write_text('{"checkpoint": 3, "st')
    rollbacks = Rollbacks(config(), epath.Path(tmp_path))
    assert [rollbacks.past(images) for images in (0, 47, 48, 80, 99, 100, 205)] == [0, 47, 100, 100, 100, 100, 210]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonfinite": "rolback"}, "config.nonfinite='rolback' is unknown; did you mean 'rollback'"),
        ({"rollbacks": 0}, "config.rollbacks=0; expected 1 or more"),
        ({"hang_minutes": -1.0}, "config.hang_minutes=-1.0; expected minutes, 0 for no end"),
    ],
)
def test_policies_that_cannot_be(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loop.train(config(**change), tmp_path)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())
