"""Several processes: what part of a batch each holds; flags that are incomplete. Real ones: tests/test_processes.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from ediffi_jax.data.batches import Layout, Part
from ediffi_jax.training import distributed
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.mesh import part_of


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
    def initialize(*args: object, **options: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    message = r"did not find each other \(coordinator_address .*say it: --coordinator="
    with pytest.raises(ConfigError, match=message) as caught:
        distributed.connect()
    assert "\n" not in str(caught.value)


def alone(coordinator: str, process_id: int) -> tuple[int, str]:
    """A process of its own, one of two of which the other never comes."""
    code = f"from ediffi_jax.training import distributed; distributed.connect({coordinator!r}, 2, {process_id}, wait=3)"
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ended = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120)
    return ended.returncode, ended.stderr


def test_peers_that_do_not_come_ask_for_a_restart_and_a_wrong_address_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cases = [(f"127.0.0.1:{port}", 0), (f"127.0.0.1:{port + 1}", 1), (f"127.0.0.2.invalid:{port + 2}", 0)]
    with ThreadPoolExecutor() as pool:
        late, left, wrong = pool.map(lambda case: alone(*case), cases)
    line = "error: --distributed: the other processes did not come (waited 3 s); another start may find them"
    for code, err in (late, left):
        assert code == 42 and [text for text in err.splitlines() if text.startswith("error")] == [line]
    assert wrong[0] == 2 and f"--coordinator=127.0.0.2.invalid:{port + 2} does not lead to this machine" in wrong[1]
    assert "Traceback" not in wrong[1] and "Check failure" not in wrong[1]
