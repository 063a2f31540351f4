"""The quick start in miniature: interrupted, it goes on; at the end there is a report that stands alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ediffi_jax.evaluation import quickstart
from ediffi_jax.evaluation.steps import Step
from ediffi_jax.training import config_files

ROOT = Path(__file__).resolve().parent.parent


def by_name(size: quickstart.Size) -> dict[str, Step]:
    return {step.name: step for step in quickstart.plan(Path("runs/q"), size)}


@pytest.mark.parametrize("size", [quickstart.FULL, quickstart.TINY])
def test_single_model_and_experts_see_equally_many_images(size: quickstart.Size) -> None:
    steps = by_name(size)
    experts, single = steps["branch"].command, steps["branch_single"].command
    number = len(quickstart.PARENTS)
    assert f"--steps={size.expert_steps}" in experts and f"--steps={number * size.expert_steps}" in single
    assert number == len(quickstart.CUTS) + 1


def test_cuts_are_those_of_the_recipe() -> None:
    phases = config_files.load("configs/scenes.py:stage=base").phases
    assert tuple(phases[-1]["cuts"]) == quickstart.CUTS
    assert tuple(phases[-1]["parents"]) == quickstart.PARENTS


@pytest.mark.parametrize("stage", ["base", "sr64", "sr256"])
def test_the_quick_recipe_differs_from_the_full_one_in_size_only(stage: str) -> None:
    full = config_files.load(f"configs/scenes.py:stage={stage}")
    quick = config_files.load(f"configs/scenes.py:stage={stage},quick")
    for key in ("noise", "sigma_data", "conditioning", "aug", "encoders"):
        assert quick[key] == full[key]
    assert quick.model.name == full.model.name and quick.data.resolution == full.data.resolution
    assert sum(phase["steps"] for phase in quick.phases) < sum(phase["steps"] for phase in full.phases)


def test_commands_are_what_a_user_can_type() -> None:
    for step in by_name(quickstart.FULL).values():
        assert step.command or step.action
        if step.command:
            assert re.match(r"python -m launch\.(train|branch|export|sample) --", step.command_line)


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.quickstart", "--tiny", f"--out={folder}"]
    environment = {**os.environ, "XLA_FLAGS": ""}  # one device: emulated ones would divide the tiny batches
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def interrupt(process: subprocess.Popen, sign: Path) -> str:
    """Ctrl-C once there is a file; what was printed."""
    deadline = time.monotonic() + 300
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130, output[-3000:]
    assert "the same command goes on" in output and "Traceback" not in output
    return output


@pytest.mark.slow
def test_interrupted_twice_it_goes_on(tmp_path: Path) -> None:
    """The beginning of the next test: in the first training, and in what follows it."""
    folder = tmp_path / "run"
    interrupt(start(folder), folder / "base" / "config.json")
    assert not (folder / "done" / "base.json").exists()
    output = interrupt(start(folder), folder / "done" / "base.json")
    assert "Render scenes and captions: done before" in output
    assert not (folder / "report.html").exists()


@pytest.mark.pod  # five minutes, most of them compiling
@pytest.mark.slow
def test_interrupted_it_goes_on_and_ends_in_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupt(start(folder), folder / "base" / "config.json")
    second = start(folder)
    output, _ = second.communicate(timeout=800)
    assert second.returncode == 0, output[-3000:]
    assert "Render scenes and captions: done before" in output
    check_report(folder)

    third = start(folder)
    output, _ = third.communicate(timeout=100)
    assert third.returncode == 0 and output.count("done before") == len(by_name(quickstart.TINY))


def check_report(folder: Path) -> None:
    """Pictures, comparison and record of a finished tiny run."""
    size = quickstart.TINY
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)
    prompts = (folder / "prompts.txt").read_text().splitlines()
    assert len(prompts) == size.prompts and all(prompt in page for prompt in prompts)
    pictures = sorted((folder / "samples").glob("[0-9]*.png"))
    assert [Image.open(path).size for path in pictures] == [(256, 256)] * size.prompts
    stored = np.load(folder / "comparison.npz")
    for name in ("base", "single", "experts"):
        assert stored[name].shape == (size.quantiles, size.images)
        assert np.isfinite(stored[name]).all()
    steps = by_name(size)
    for name in steps:
        if name == "report":
            continue
        record = json.loads((folder / "done" / f"{name}.json").read_text())
        assert record["title"] in page and record["seconds"] > 0
    assert (folder / "loss.png").exists()
