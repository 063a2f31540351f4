"""A run from start to end in one process: phases, resume to the bit, logs, previews, profiles, and NaN."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from training_fakes import Net, make_adamw, make_batch, make_objective, make_state, same, small_config

from ediffi_jax import models
from ediffi_jax.errors import UserError
from ediffi_jax.experts import Ensemble
from ediffi_jax.training import branching, checkpoint, config_files, loop, observers, saving
from ediffi_jax.training.chrono import Chrono
from ediffi_jax.training.errors import ConfigError, TrainingError
from ediffi_jax.training.evaluate import BINS, make_quantile_loss
from ediffi_jax.training.mesh import make_mesh
from ediffi_jax.training.observers import Files, Observer, clock_time
from ediffi_jax.training.preview import grid
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.signals import StopRequest


@pytest.fixture(scope="module", autouse=True)
def small_and_alone():
    """Two convolutions instead of a U-Net, on one device: these tests are about the loop, and compile quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", lambda config: Net(channels=8))
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *args: devices)
        yield


def newest(workdir: Path) -> dict:
    return checkpoint.load_tree(checkpoint.newest(workdir))


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of two phases with everything switched on."""
    workdir = tmp_path_factory.mktemp("finished")
    config = small_config()
    config.update({"eval_every": 4, "sample_every": 4, "profile": "2:3", "keep": 9})
    config.sampler.update({"name": "euler", "steps": 2, "guidance": 0.0})
    assert loop.train(config, workdir) == loop.FINISHED
    return workdir


class StopAfter(Observer):
    """Asks for a stop, by a real signal, while the given step is under way."""

    def __init__(self, step: int) -> None:
        self.step = step

    def tick(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_stopped_anywhere_it_goes_on_to_the_bit(finished: Path, tmp_path: Path, monkeypatch, stop: int) -> None:
    """Within a phase, at its last step (before the branch), and within the second."""
    config = small_config()
    make = loop.make_observers
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_observers", lambda *args: [*make(*args), StopAfter(stop)])
        assert loop.train(config, tmp_path) == loop.RESTART
    assert checkpoint.newest(tmp_path).name == str(stop)
    assert loop.train(config_files.read_workdir(tmp_path), tmp_path) == loop.FINISHED
    assert same(newest(tmp_path), newest(finished))
    losses = {row["step"]: row["loss/0"] for row in rows(finished) if "loss/0" in row}
    assert {row["step"]: row["loss/0"] for row in rows(tmp_path) if "loss/0" in row} == losses


def test_a_batch_that_does_not_fit_leaves_the_workdir_free(tmp_path: Path) -> None:
    config = small_config()
    config.accumulate = 7
    with pytest.raises(UserError, match="is not a multiple of .*accumulate=7"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_steps_a_call_are_the_same_run(finished: Path, tmp_path: Path, monkeypatch) -> None:
    """Phases of 4 and 4 steps in calls of 3, 1 and 2, 2 steps; stopped in the second phase and gone on with."""
    config = small_config()
    config.update({"steps_per_call": 3, "log_every": 3, "eval_every": 0, "save_every": 0, "sample_every": 0, "profile": ""})
    make = loop.make_observers
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_observers", lambda *args: [*make(*args), StopAfter(6)])
        assert loop.train(config, tmp_path) == loop.RESTART
    assert checkpoint.newest(tmp_path).name == "6"
    assert loop.train(config, tmp_path) == loop.FINISHED
    for x, y in zip(jax.tree.leaves(newest(tmp_path)), jax.tree.leaves(newest(finished)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    one_by_one = {row["step"]: row["loss/1"] for row in rows(finished) if "loss/1" in row}
    meant = {6: np.mean([one_by_one[5], one_by_one[6]]), 8: np.mean([one_by_one[7], one_by_one[8]])}
    assert {row["step"]: row["loss/1"] for row in rows(tmp_path) if "loss/1" in row} == pytest.approx(meant, rel=1e-4)


def test_a_finished_run_has_nothing_left_to_do(finished: Path) -> None:
    before = newest(finished)
    assert loop.train(config_files.read_workdir(finished), finished) == loop.FINISHED
    assert same(newest(finished), before)


def test_what_a_run_leaves_behind(finished: Path) -> None:
    logged = rows(finished)
    steps = [row["step"] for row in logged if "loss/0" in row]
    assert steps == list(range(1, 9))
    assert [row["step"] for row in logged if "images_per_s" in row] == [2, 3, 4, 6, 7, 8]  # not those that compiled
    last = [row for row in logged if "images_per_s" in row][-1]
    assert last["images"] == 4 * 8 + 4 * 2 * 8
    assert {"loss/0", "loss/1", "grad_norm/1", "data_wait", "eta_s"} <= set(last)
    assert last["eta_s"] == 0
    held_out = [row for row in logged if "held_out/0" in row]
    assert [row["step"] for row in held_out] == [4, 8]
    assert len([key for key in held_out[1] if key.startswith("held_out_bins/1/")]) == BINS
    assert Image.open(finished / "samples" / "samples_0000008.png").mode == "RGB"
    assert list((finished / "tensorboard").glob("events.out.tfevents*"))
    assert list((finished / "profile").rglob("*.xplane.pb"))
    position = checkpoint.read_position(checkpoint.newest(finished))
    assert (position.step, position.phase, position.phase_step, position.images) == (8, 1, 4, 96)
    assert position.cuts == (0.5,) and position.expert_ids == (0, 1)


def test_a_last_phase_without_steps_leaves_its_branching(finished: Path, tmp_path: Path, monkeypatch) -> None:
    config = small_config()
    branching_only = {"steps": 0, "cuts": (0.5,), "parents": (0, 0)}
    config.phases = (config.phases[0], branching_only)
    config.keep = 1
    assert loop.train(config, tmp_path) == loop.FINISHED
    path = checkpoint.newest(tmp_path)
    position = checkpoint.read_position(path)
    assert (path.name, position.phase, position.phase_step, position.cuts) == ("4", 1, 0, (0.5,))
    before = checkpoint.load_tree(finished / "checkpoints" / "4")["ema"]
    assert same(newest(tmp_path)["ema"], jax.tree.map(lambda leaf: np.asarray(leaf)[[0, 0]], before))
    assert [file.name for file in path.parent.iterdir()] == ["4"]
    with monkeypatch.context() as patch:
        patch.setattr(saving.Checkpoints, "save", None)  # nothing is left to save
        assert loop.train(config, tmp_path) == loop.FINISHED
    config.phases = (*config.phases[:1], ConfigDict(branching_only | {"steps": 4}))
    assert loop.train(config, tmp_path) == loop.FINISHED
    assert same(newest(tmp_path), newest(finished))


def test_branching_by_hand_copies_parents_and_goes_on(finished: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    branching.branch_workdir(str(finished), str(new), cuts=(0.25, 0.5), parents=(0, 0, 1), steps=1)
    old, state = newest(finished), newest(new)
    for name in ("params", "ema", "opt_state"):
        assert same(state[name], jax.tree.map(lambda leaf: np.asarray(leaf)[[0, 0, 1]], old[name]))
    config = config_files.read_workdir(new)
    assert [phase["steps"] for phase in config.phases] == [4, 4, 1]
    assert loop.train(config, new) == loop.FINISHED
    position = checkpoint.read_position(checkpoint.newest(new))
    assert (position.step, position.images) == (9, 96 + 3 * 8)
    alone = tmp_path / "alone"
    branching.branch_workdir(str(finished), str(alone), cuts=(0.25, 0.5), parents=(0, 0, 1), steps=1, expert=2)
    assert same(newest(alone)["ema"], jax.tree.map(lambda leaf: np.asarray(leaf)[[1]], old["ema"]))
    assert checkpoint.read_position(checkpoint.newest(alone)).expert_ids == (2,)


def test_a_stranger_as_parent_is_warned_of_once(finished: Path, tmp_path: Path, caplog) -> None:
    new = tmp_path / "new"
    with caplog.at_level("WARNING", logger="absl"):
        branching.branch_workdir(str(finished), str(new), cuts=(0.25, 0.5), parents=(0, 1, 1), steps=0)
    assert [message for message in caplog.messages if "never saw" in message] == [
        "expert 1 of cuts (0.25, 0.5), for quantiles 0.25 to 0.5 of p(sigma), starts from expert 1 of the phase before,"
        " which never saw these noise levels: it has 0.5 to 1"
    ]
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        assert loop.train(config_files.read_workdir(new), new) == loop.FINISHED
    assert not [message for message in caplog.messages if "never saw" in message]
    config = small_config()
    config.phases = tuple(ConfigDict({**phase, "steps": 0}) for phase in config_files.read_workdir(new).phases)
    with caplog.at_level("WARNING", logger="absl"):
        assert loop.train(config, tmp_path / "whole") == loop.FINISHED
    assert len([message for message in caplog.messages if "never saw" in message]) == 1


@pytest.mark.parametrize(
    ("cuts", "parents", "message"),
    [
        ((0.5, 0.2), (0, 0, 0), "increasing"),
        ((0.5,), (0,), "1 parents for 2 experts"),
        ((0.5,), (0, 2), "parent 2 does not exist; expected 0 to 1"),
    ],
)
def test_branchings_that_cannot_be(finished: Path, tmp_path: Path, cuts, parents, message: str) -> None:
    with pytest.raises(UserError) as caught:
        branching.branch_workdir(str(finished), str(tmp_path / "new"), cuts=cuts, parents=parents)
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="already holds a run"):
        branching.branch_workdir(str(finished), str(finished), cuts=(0.5,), parents=(0, 0))


def test_divergence_names_step_expert_and_last_good_checkpoint(tmp_path: Path) -> None:
    config = small_config()
    config.phases = ({"steps": 20, "cuts": (0.5,), "parents": ()},)
    config.optimizer.update({"lr": 1e30, "clip": 0.0})
    config.save_every = 1
    with pytest.raises(TrainingError) as caught:
        loop.train(config, tmp_path)
    good = checkpoint.committed_steps(tmp_path / "checkpoints")
    message = str(caught.value)
    assert f"at step {good[-1] + 1};" in message
    assert "of expert 0 became" in message or "of expert 1 became" in message
    assert f"the last good checkpoint is {tmp_path}/checkpoints/{good[-1]}" in message
    assert "\n" not in message
    kept = checkpoint.load_tree(tmp_path / "checkpoints" / str(good[0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept["params"]))


def test_another_config_encoder_or_start(finished: Path, tmp_path: Path) -> None:
    config = config_files.read_workdir(finished)
    config.optimizer.lr = 0.5
    with pytest.raises(ConfigError, match="config.optimizer.lr is 0.001 there and 0.5 here"):
        loop.train(config, finished)
    config = small_config()
    config.phases = ({"steps": 0, "cuts": (0.5,), "parents": ()},)
    config.init_from = str(finished)
    assert loop.train(config, tmp_path) == loop.FINISHED
    assert same(newest(tmp_path)["params"], newest(finished)["ema"])


def test_super_resolution_end_to_end(tmp_path: Path) -> None:
    config = small_config()
    config.stage = "sr16"
    config.data.update({"resolution": 16, "low_resolution": 8, "crop": 8})
    config.phases = ({"steps": 2, "cuts": (), "parents": ()},)
    config.aug.update({"max_level": 0.2, "level": 0.1})
    config.sampler.update({"name": "euler", "steps": 2, "guidance": 0.0})
    config.update({"sample_every": 2, "eval_every": 2, "save_every": 0})
    assert loop.train(config, tmp_path) == loop.FINISHED
    assert (tmp_path / "samples" / "samples_0000002.png").exists()


def test_held_out_loss_of_a_network_at_birth_is_the_closed_form() -> None:
    """F = 0: E[loss] = lambda ((1 - c_skip)^2 E[x0^2] + c_skip^2 sigma^2), averaged over each bin of quantiles."""
    objective = make_objective(Net(zero=True))
    phase = Phase(steps=1, cuts=(0.5,))
    state = make_state(objective, make_adamw(), phase)
    batches = [make_batch(1, size=16, seed=i) for i in range(4)]
    mesh = make_mesh({"data": 1}, 1, jax.devices()[:1])
    curve = make_quantile_loss(objective=objective, phase=phase, mesh=mesh, batches=batches, seed=0)
    measured = curve(state.ema, {})
    assert measured.shape == (2, BINS)
    assert np.array_equal(measured, curve(state.ema, {}))
    power = np.mean([(batch["image"] / 127.5 - 1) ** 2 for batch in batches])
    q = (np.arange(2 * BINS * 50) + 0.5) / (2 * BINS * 50)
    sigma = np.asarray(Ensemble().noise.quantile(q), np.float64)
    skip = 0.25 / (sigma**2 + 0.25)
    loss = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * ((1 - skip) ** 2 * power + skip**2 * sigma**2)
    np.testing.assert_allclose(measured, loss.reshape(2, BINS, 50).mean(-1), rtol=0.06)


def test_speed_counts_steps_and_waiting_alone() -> None:
    now = [0.0]
    chrono = Chrono(clock=lambda: now[0])
    for activity, seconds in (("start", 7.0), ("step", 4.0), ("data", 1.0), ("save", 1000.0), ("step", 0.0)):
        chrono.turn(activity)
        now[0] += seconds
    chrono.count(100)
    measured = chrono.measure()
    assert measured["images_per_s"] == pytest.approx(20.0)
    assert measured["data_wait"] == pytest.approx(0.2)
    nothing = dict.fromkeys(("compile", "evaluate", "sample"), 0)
    assert chrono.seconds() == {"start": 7, "data": 1, "step": 4, "save": 1000, **nothing}
    assert clock_time(3723) == "1:02:03"


def test_metrics_after_the_checkpoint_are_dropped_and_a_torn_line_too(tmp_path: Path, monkeypatch) -> None:
    from etils import epath

    files = Files(epath.Path(tmp_path), 0)
    for step in (1, 2, 3):
        files.write(step, {"loss/0": step / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # killed before the shorter file is in its place
            Files(epath.Path(tmp_path), 1)
    Files(epath.Path(tmp_path), 2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_second_signal_is_not_held_back() -> None:
    with StopRequest() as stop:
        assert not stop.now()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.now()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)


def test_grid_places_pictures_row_by_row() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    canvas = grid(images)
    assert canvas.shape == (2 * 17 - 1, 3 * 17 - 1, 3)
    assert (canvas[0, 0, 0], canvas[0, 17, 0], canvas[17, 0, 0], canvas[20, 40, 0]) == (0, 1, 3, 255)


def test_wandb_is_asked_for_only_if_it_is_there(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    config = small_config()
    config.wandb = "project"
    with pytest.raises(ConfigError, match=r"needs wandb: pip install '.*\[wandb\]'"):
        loop.train(config, tmp_path)


def test_a_terminal_gets_a_progress_bar(monkeypatch, capsys) -> None:
    monkeypatch.setattr(observers, "_terminal", lambda: True)
    console = observers.Console(total=10, initial=2, name="base")
    for step in range(3, 11):
        console.tick(step)
    console.write(10, {"loss/0": 0.25, "images_per_s": 31.0, "eta_s": 0.0})
    console.write(10, {"held_out/0": 0.125})
    console.close()
    captured = capsys.readouterr()
    assert "10/10" in captured.err and "loss 0.2500, 31 images/s" in captured.err
    assert "held-out loss 0.1250" in captured.out
