"""Several processes: two real ones share a run and stop together; what each holds; flags that are incomplete."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from training_fakes import Net, small_config

from ediffi_jax import models
from ediffi_jax.data.batches import Layout, Part
from ediffi_jax.data.scenes.builder import ScenesConfig, prepare
from ediffi_jax.training import checkpoint, config_files, distributed, loop
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.mesh import part_of

RECIPE = """
import sys
sys.path.insert(0, {tests!r})
from test_distributed import two_phases
from training_fakes import Net
from ediffi_jax import models

def get_config(arguments):
    models.build = lambda config: Net(channels=8)  # compiles quickly
    return two_phases({data!r}, steps=10_000)
"""


def two_phases(data: str, steps: int):
    """Real pictures, so that every process can be found to see its own part; experts on devices of their own."""
    config = small_config()
    config.data.update({"name": "scenes", "dir": data, "num_scenes": 64, "source_resolution": 64})
    config.phases = (config.phases[0], {"steps": steps, "cuts": (0.5,), "parents": (0, 0)})
    config.mesh.expert = -1
    config.update({"eval_every": 6, "save_every": 0})
    return config


def start_two(recipe: Path, workdir: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}
    common = [f"--config={recipe}", f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    command = [sys.executable, "-u", "-m", "launch.train", "--distributed", *common]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, f"--process_id={i}"], env=environment, **pipes) for i in (0, 1)]


def losses(workdir: Path) -> dict[int, list[float]]:
    """step -> every loss measured there, in a fixed order."""
    found: dict[int, list[float]] = {}
    for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        named = sorted(key for key in row if key.startswith(("loss/", "grad_norm/", "held_out")))
        found.setdefault(row["step"], []).extend(row[key] for key in named)
    return found


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_at_the_same_step(tmp_path: Path, monkeypatch) -> None:
    """SIGTERM to the second only. Then one process with both devices goes on, and another did it all alone."""
    data = tmp_path / "data"
    prepare(data, ScenesConfig(resolution=64, num_scenes=64))
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(tests=str(Path(__file__).parent), data=str(data)))
    processes = start_two(recipe, tmp_path / "two")
    try:
        for line in processes[0].stdout:
            if "step 12/" in line:
                break
        processes[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [loop.RESTART] * 2, ends
    path = checkpoint.newest(tmp_path / "two")
    position = checkpoint.read_position(path)
    assert int(path.name) == position.step > 12 and (position.phase, position.phase_step) == (1, position.step - 4)
    both = losses(tmp_path / "two")
    assert max(both) == position.step

    devices = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)
    monkeypatch.setattr(models, "build", lambda config: Net(channels=8))
    assert loop.train(two_phases(str(data), steps=8), tmp_path / "one") == loop.FINISHED
    one = losses(tmp_path / "one")
    assert len(one[12]) == 2 * (2 + 1 + 16)
    for step in range(1, 13):
        np.testing.assert_allclose(both[step][: len(one[step])], one[step], rtol=1e-4)
    config = config_files.read_workdir(tmp_path / "two")
    config.phases[1]["steps"] = position.phase_step + 1
    assert loop.train(config, tmp_path / "two") == loop.FINISHED
    assert checkpoint.newest(tmp_path / "two").name == str(position.step + 1)


@pytest.mark.parametrize(
    ("own", "experts", "rows"),
    [
        ([[1, 1, 1, 1]], [0], [0, 1, 2, 3]),
        ([[0, 0, 1, 1]], [0], [2, 3]),
        ([[0, 0], [0, 0], [1, 1], [0, 0]], [2], [0, 1]),
        ([[0, 1], [0, 1]], [0, 1], [1]),
        ([[0, 0, 0, 0], [0, 0, 1, 1]], [1], [2, 3]),
        ([[1, 1, 0, 0, 0, 0, 1, 1]], [0], [0, 1, 6, 7]),  # a host of v5e:2x4, along a ring through the torus
        ([[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]], [0, 2], [0, 2]),
    ],
)
def test_the_part_of_a_batch_that_a_process_holds(own: list, experts: list, rows: list) -> None:
    """Exactly the images on its devices."""
    own = np.array(own, bool)
    parts = part_of(own)
    assert parts == (Part(count=own.shape[0], held=tuple(experts)), Part(count=own.shape[1], held=tuple(rows)))
    size = (2 * own.shape[0], 3 * own.shape[1])
    layout = Layout(num_experts=size[0], batch_size=size[1], expert_part=parts[0], image_part=parts[1])
    order = 100 + np.arange(size[0] * size[1]).reshape(size)
    where = np.repeat(np.repeat(own, 2, axis=0), 3, axis=1)
    assert layout.positions(100) == order[where].tolist()
    assert layout.shape[0] * layout.shape[1] == where.sum()


@pytest.mark.parametrize("own", [[[1, 0], [0, 1]], [[1, 1], [1, 0]], [[1, 1, 0], [0, 1, 1]]])
def test_devices_that_are_no_grid(own: list) -> None:
    with pytest.raises(ValueError):
        part_of(np.array(own, bool))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", None, None), "--num_processes and --process_id missing; expected all three or none, such as --coord"),
        ((None, 2, 0), "--coordinator missing"),
        (("host", 2, 0), "--coordinator=host; expected HOST:PORT"),
        (("host:port", 2, 0), "--coordinator=host:port; expected HOST:PORT"),
        (("a:1", 2, 2), "--process_id=2 with --num_processes=2; expected 0 to 1"),
        (("a:1", 0, 0), "--num_processes=0; expected 1 or more"),
    ],
)
def test_incomplete_flags(given: tuple, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        distributed.connect(*given)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_machine_where_nobody_is_found(monkeypatch) -> None:
    def initialize(*args: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match=r"did not find each other \(coordinator_address .*say it: --coordinator=") as caught:
        distributed.connect()
    assert "\n" not in str(caught.value)
