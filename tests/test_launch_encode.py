"""`launch.encode` as a process: killed and run again to the bit, and read in training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ediffi_jax.data.scenes.builder import ScenesConfig, prepare

NUMBER = 40

RECIPE = """
import sys
sys.path.insert(0, {tests!r})
from training_fakes import small_config

def get_config(arguments):
    config = small_config()
    config.encoders = "scenes"
    config.model.update({{"resolution": 16, "cross_attention_resolutions": (16,)}})
    config.data.update({{"name": "scenes", "dir": {data!r}, "num_scenes": {number}}})
    config.data.update({{"resolution": 16, "clip_resolution": 32, "captions": 2}})
    config.batch_size = 4
    config.phases = ({{"steps": 3, "cuts": (), "parents": ()}},)
    config.save_every = 3
    return config
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    prepare(folder / "data", ScenesConfig(resolution=64, num_scenes=NUMBER))
    path = folder / "small.py"
    path.write_text(RECIPE.format(tests=str(Path(__file__).parent), data=str(folder / "data"), number=NUMBER))
    return path


def start(verb: str, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", f"launch.{verb}", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_killed_and_run_again_it_writes_what_an_undisturbed_run_writes(recipe: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = (f"--config={recipe}", "--batch_size=8", "--shard_records=2", "--dtype=float32")
    undisturbed = start("encode", *words, f"--out={whole}")

    process = start("encode", *words, f"--out={broken}")
    written = (line for line in process.stdout if "written" in line)
    assert "train: shard 00003" in [next(written) for _ in range(4)][-1]
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    committed = sorted((broken / "train").glob("0*.json"))
    assert 4 <= len(committed) < NUMBER // 2
    times = {path: path.stat().st_mtime_ns for path in committed}

    code, out, err = finish(start("encode", *words, f"--out={broken}"))
    assert code == 0, err
    assert out.count("written") == NUMBER // 2 + 8 - len(committed)
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    code, out, err = finish(undisturbed)
    assert code == 0, err
    assert "train: forecast" in out and f"train with --config.data.embeddings={whole} --config.data.captions=2" in out
    assert files(whole) == files(broken)

    check_training(recipe, whole, tmp_path)


def check_training(recipe: Path, prepared: Path, folder: Path) -> None:
    """Trains live and from the embeddings, and compares every loss and gradient."""
    runs = [
        start("train", f"--config={recipe}", f"--workdir={folder / 'live'}"),
        start("train", f"--config={recipe}", f"--workdir={folder / 'ahead'}", f"--config.data.embeddings={prepared}"),
    ]
    for run in runs:
        code, _, err = finish(run)
        assert code == 0, err
    live, ahead = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("live", "ahead")
    )
    assert [line["step"] for line in live] == [line["step"] for line in ahead]
    for a, b in zip(live, ahead, strict=True):
        assert {key: a[key] for key in a if "loss" in key or "norm" in key} == pytest.approx(
            {key: b[key] for key in b if "loss" in key or "norm" in key}, rel=1e-4
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out is missing"),
        (["--out=x", "--encoders=scene"], "no bundled encoders are called 'scene'; did you mean 'scenes'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], message: str) -> None:
    code, _, err = finish(start("encode", *[word.replace("=x", f"={tmp_path / 'x'}") for word in words]))
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
