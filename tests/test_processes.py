"""Real processes: two and four train as one does; a run moves between meshes, devices and processes.

The reference is one process with eight devices, undisturbed. What may differ is the order of summation: losses and
gradient norms within 1e-4 of their size, parameters within 1e-5 (they move by about 1e-3 a step).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from training_fakes import Net, small_config

from ediffi_jax import models
from ediffi_jax.data.scenes.builder import ScenesConfig, prepare
from ediffi_jax.training import checkpoint, config_files, loop, records
from ediffi_jax.training.observers import Observer

RECIPE = """
import sys
sys.path.insert(0, {tests!r})
import test_processes
from ediffi_jax.training import mesh

def get_config(arguments):
    test_processes.small_network()
    if arguments == "torus":
        mesh.arrange = test_processes.as_on_a_torus
    return test_processes.four_experts({data!r})
"""
CHANNELS = 32  # their product is large enough to be cut along fsdp


def small_network() -> None:
    """Compiles quickly."""
    models.build = lambda config: Net(channels=CHANNELS)


def as_on_a_torus(devices: list, sizes: tuple) -> np.ndarray:
    """Every second place to each of two processes, as no order of `jax.devices()` gives."""
    return np.array(devices).reshape(2, -1).T.reshape(sizes)


def four_experts(data: str, steps: int = 10_000):
    """Real pictures, so that every process can be found to see its own part."""
    config = small_config()
    config.data.update({"name": "scenes", "dir": data, "num_scenes": 64, "source_resolution": 64, "record_ids": True})
    config.phases = (config.phases[0], {"steps": steps, "cuts": (0.25, 0.5, 0.75), "parents": (0, 0, 0, 0)})
    config.mesh.update({"expert": 2, "data": 2, "fsdp": 2})
    config.update({"eval_every": 6, "save_every": 0})
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, ScenesConfig(resolution=64, num_scenes=64))
    return str(folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, data: str) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(RECIPE.format(tests=str(Path(__file__).parent), data=data))
    return path


@pytest.fixture(autouse=True)
def _quick_to_compile(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(models, "build", lambda config: Net(channels=CHANNELS))
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def start(processes: int, devices: int, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.local", f"--processes={processes}", f"--devices={devices}", "--", *words]
    quick = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **quick}, **pipes)


def end(process: subprocess.Popen) -> tuple[int, str]:
    try:
        return process.wait(timeout=300), process.stderr.read()
    finally:
        for _ in range(2):  # the second one kills what is left
            process.terminate()


def losses(workdir: Path) -> dict[int, list[float]]:
    """step -> every loss measured there, in a fixed order."""
    found: dict[int, list[float]] = {}
    for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        named = sorted(key for key in row if key.startswith(("loss/", "grad_norm/", "held_out")))
        found.setdefault(row["step"], []).extend(row[key] for key in named)
    return found


def check_same(workdir: Path, reference: Path) -> None:
    """Losses of all steps, records of all steps, and the state at the end."""
    now, then = losses(workdir), losses(reference)
    assert now.keys() == then.keys()
    for step, values in then.items():
        np.testing.assert_allclose(now[step], values, rtol=1e-4, err_msg=f"step {step}")
    assert records.read(workdir) == records.read(reference)
    ends = [checkpoint.load_tree(checkpoint.newest(folder)) for folder in (workdir, reference)]
    for part in ("params", "ema"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *[tree[part] for tree in ends])


class StopAfter(Observer):
    """Asks for a stop, by a real signal, while the given step is under way."""

    def __init__(self, step: int) -> None:
        self.step = step

    def tick(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_four_processes_train_as_one(recipe: Path, data: str, tmp_path: Path) -> None:
    """Data parallel over all, then an expert in each."""
    changes = ("mesh.expert=-1", "mesh.data=-1", "mesh.fsdp=1", "eval_every=0")
    words = (f"--config={recipe}", f"--workdir={tmp_path / 'four'}", "--steps=4")
    code, errors = end(start(4, 1, *words, *(f"--config.{change}" for change in changes)))
    assert code == loop.FINISHED, errors
    config = four_experts(data, steps=4)
    config.eval_every = 0
    assert loop.train(config, tmp_path / "one") == loop.FINISHED
    check_same(tmp_path / "four", tmp_path / "one")


@pytest.mark.slow
def test_a_run_moves_between_meshes_devices_and_processes(recipe: Path, data: str, tmp_path: Path, monkeypatch) -> None:
    """8 devices -> 2 processes of 2 each, parameters cut across them -> 4 devices; stopped by SIGTERM each time."""
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    make = loop.make_observers
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_observers", lambda *run: [*make(*run), StopAfter(3)])
        assert loop.train(four_experts(data), moved) == loop.RESTART

    mesh = ("--config.mesh.expert=2", "--config.mesh.data=-1", "--config.mesh.fsdp=2")
    process = start(2, 2, f"--config={recipe}:torus", f"--workdir={moved}", *mesh)
    second = int(re.search(r"\[1\] pid (\d+)", process.stderr.readline() + process.stderr.readline())[1])
    for line in process.stdout:
        if "step 12/" in line:
            break
    os.kill(second, signal.SIGTERM)
    code, errors = end(process)
    assert code == loop.RESTART, errors
    assert all(f"[{index}] ended with exit code 42" in errors for index in (0, 1))
    path = checkpoint.newest(moved)
    position = checkpoint.read_position(path)
    assert int(path.name) == position.step >= 12 and (position.phase, position.phase_step) == (1, position.step - 4)

    config = config_files.read_workdir(moved)
    config.phases[1]["steps"] = position.phase_step + 2
    config.mesh.update({"expert": 4, "data": -1, "fsdp": 1})
    with monkeypatch.context() as patch:
        devices = jax.devices()[:4]
        patch.setattr(jax, "devices", lambda *args: devices)
        assert loop.train(config, moved) == loop.FINISHED

    assert loop.train(four_experts(data, steps=position.phase_step + 2), whole) == loop.FINISHED
    check_same(moved, whole)
    (here,), (both,) = (json.loads(next((run / "records").glob(part)).read_text())["4"]
                        for run, part in ((moved, "000000004-*.0.json"), (whole, "000000001-*.0.json")))  # fmt: skip
    assert here == [both[row] for row in (0, 1, 4, 5)]  # process 0 had every second device of the mesh
    seen = records.read(moved)
    assert list(seen) == list(range(1, position.step + 3))
    times = Counter(record for step in seen.values() for record in step)
    images = 4 * 8 + (position.step - 2) * 4 * 8
    assert sum(times.values()) == images
    assert set(times.values()) <= {images // 64, -(-images // 64)} and len(times) == 64  # whole epochs and a last one
