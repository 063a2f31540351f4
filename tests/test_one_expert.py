"""Config D both ways in miniature, by the verbs as docs/experts.md has them: one expert a run, and all together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_launch_train import run_here
from training_fakes import Net

from ediffi_jax import cascade, models, release
from ediffi_jax.training import checkpoint, config_files, loop

CUTS = (0.125, 0.998046875)  # E^3_0, M^C, E^9_511
RECIPE = """
import sys
sys.path.insert(0, {tests!r})
from training_fakes import small_config

def get_config(arguments):
    config = small_config()
    config.encoders = "scenes"
    config.phases = ({{"steps": 2, "cuts": (), "parents": ()}},)
    config.mesh.expert = -1
    return config
"""


@pytest.fixture(autouse=True)
def _quick_to_compile(monkeypatch):
    monkeypatch.setattr(models, "build", lambda config: Net(channels=config["channels"]))
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def verb(monkeypatch, capsys):
    """Runs a verb in this process on the first `devices`; returns its exit code and what it said of errors."""

    def run(name: str, *words: str, devices: int = 1) -> tuple[int, str]:
        with monkeypatch.context() as patch:
            some = jax.devices()[:devices]
            patch.setattr(jax, "devices", lambda *args: some)
            return run_here(name, list(words), monkeypatch, capsys)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    return path


def newest_ema(workdir: Path) -> dict:
    return checkpoint.load_tree(checkpoint.newest(workdir))["ema"]


@pytest.fixture
def shared(tmp_path: Path, recipe: Path, verb) -> Path:
    """The shared model, trained."""
    workdir = tmp_path / "shared"
    assert verb("train", f"--config={recipe}", f"--workdir={workdir}") == (loop.FINISHED, "")
    return workdir


def test_one_expert_a_run(tmp_path: Path, shared: Path, verb) -> None:
    """Taken out, each trained with steps, devices and a mesh of its own, stacked again; what cannot be is refused."""
    runs = [tmp_path / name for name in ("low", "middle", "high")]
    hardware = [("--config.mesh.fsdp=1", 1), ("--config.mesh.fsdp=2", 4), ("--config.batch_size=4", 2)]
    for index, (run, (change, devices)) in enumerate(zip(runs, hardware, strict=True)):
        words = [f"--workdir={shared}", f"--to={run}", f"--expert={index}", f"--steps={index + 1}", change]
        assert verb("branch", *words, f"--cuts={','.join(map(str, CUTS))}") == (loop.FINISHED, "")
        assert verb("train", f"--workdir={run}", devices=devices) == (loop.FINISHED, "")
        position = checkpoint.read_position(checkpoint.newest(run))
        assert (position.step, position.phase_step, position.expert_ids) == (2 + index + 1, index + 1, (index,))
        assert position.images == 2 * 8 + (index + 1) * (4 if index == 2 else 8)

    low, middle, high = runs
    out = tmp_path / "release"
    assert verb("export", f"--workdirs=base={high},{low},{middle}", f"--out={out}") == (loop.FINISHED, "")
    made = release.read_release(out)
    assert made.specs[0].cuts == CUTS and [run["step"] for run in made.trained["base"]] == [5, 3, 4]
    kernel = made.params[0]["second"]["kernel"]
    for row, run in enumerate(runs):
        np.testing.assert_array_equal(kernel[row], np.asarray(newest_ema(run)["second"]["kernel"])[0])
    assert len({leaf.tobytes() for leaf in kernel}) == 3
    assert cascade.load(out).sample("a red circle", seed=0, progress=False).shape == (1, 8, 8, 3)

    check_refused(tmp_path, shared, runs, verb)


def check_refused(tmp_path: Path, shared: Path, runs: list[Path], verb) -> None:
    """Every line that the user of docs/experts.md may see."""
    low, middle, high = runs
    again, wider = tmp_path / "again", tmp_path / "wider"
    cuts = f"--cuts={','.join(map(str, CUTS))}"
    assert verb("branch", f"--workdir={shared}", f"--to={again}", "--cuts=0.5", "--expert=0")[0] == 0
    branched = verb("branch", f"--workdir={shared}", f"--to={wider}", cuts, "--expert=1", "--config.model.channels=16")
    assert branched[0] == 0
    for words, message in [
        ([f"{low},{high}"], f"stage 'base': a gap of quantiles between 0.125 and 0.998046875, before {high}"),
        ([f"{low},{middle}"], "stage 'base': no expert for quantiles 0.998046875 to 1"),
        ([f"{low},{middle},{high},{again}"], "stage 'base': an overlap of quantiles between 0 and 0.125, before"),
        ([f"{low},{wider},{high}"], f"{low} and {wider} differ in model.channels: 8 and 16; expected one network"),
        ([f"{shared},{low}"], "an overlap of quantiles"),
    ]:
        code, err = verb("export", f"--workdirs=base={words[0]}", f"--out={tmp_path / 'no'}")
        assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1
        assert not (tmp_path / "no").exists()
    code, err = verb("branch", f"--workdir={shared}", f"--to={tmp_path / 'no'}", cuts, "--expert=3")
    assert code == 2 and "expert 3 does not exist; expected -1 (all) or 0 to 2" in err
    assert not (tmp_path / "no").exists()
    code, err = verb("sample", f"--cascade={low}", "--prompt=a", f"--out={tmp_path / 'no'}")
    assert code == 2 and "no expert for quantiles 0.125 to 1" in err and err.count("\n") == 1

    found = [release.read_workdir(run) for run in runs]
    strange = dataclasses.replace(found[1], fingerprint="0123")
    with pytest.raises(release.ReleaseError, match=f"different encoders: {found[0].fingerprint} and 0123") as caught:
        release.release_of_runs({"base": [found[0], strange, found[2]]})
    assert "\n" not in str(caught.value)


def test_all_together_from_one_slice_to_three(tmp_path: Path, recipe: Path, verb) -> None:
    """Fewer experts on one group of devices; branched, the whole recipe goes on with a group for each."""
    two, base = tmp_path / "two", tmp_path / "base"
    first = ({"steps": 2, "cuts": (), "parents": ()}, {"steps": 1, "cuts": (0.5,), "parents": (0, 0)})
    level2 = {"steps": 2, "cuts": (0.25, 0.75), "parents": (0, 1, 1)}
    levels = (level2, {"steps": 1, "cuts": CUTS, "parents": (0, 1, 2)})
    plain = (f"--config={recipe}", "--config.encoders=")
    assert verb("train", *plain, f"--workdir={two}", f"--config.phases={first}", devices=2) == (loop.FINISHED, "")
    words = ("--cuts=0.25,0.75", "--parents=0,1,1", "--steps=2")
    assert verb("branch", f"--workdir={two}", f"--to={base}", *words) == (loop.FINISHED, "")
    words = (*plain, f"--config.phases={(*first, *levels)}", "--config.mesh.fsdp=2")
    assert verb("train", f"--workdir={base}", *words, devices=6) == (loop.FINISHED, "")
    position = checkpoint.read_position(checkpoint.newest(base))
    assert (position.step, position.phase, position.expert_ids) == (6, 3, (0, 1, 2))
    assert position.images == (2 + 2 + 3 * 3) * 8
    rows = [json.loads(line) for line in (base / "metrics.jsonl").read_text().splitlines()]
    assert [sum(key.startswith("loss/") for key in row) for row in rows] == [3, 3, 3]
    cuts = [phase.get("cuts") for phase in config_files.read_workdir(base).phases]
    assert cuts == [(), (0.5,), (0.25, 0.75), CUTS]
