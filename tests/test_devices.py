"""Cores as devices: how many, when they are taken, and when what somebody said stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ediffi_jax import devices

PROGRAM = """
import jax
from ediffi_jax import devices
{before}
found = devices.use_cores()
assert found == devices.default_devices()
print(len(found), len(jax.devices()), len(devices.affordable(found, size=2**29)))
"""


def counts(before: str = "", **environment: str) -> list[int]:
    """Devices taken, all devices, and those taken for half a GiB of parameters, in a process of six cores."""
    known = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC")}
    program = PROGRAM.format(before=f"devices._cores = lambda: 6\n{before}")
    done = subprocess.run([sys.executable, "-c", program], env={**known, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "before", "expected"),
    [
        ({}, "", [4, 4, 2]),  # a power of two; two replicas of half a GiB are allowed
        ({"JAX_NUM_CPU_DEVICES": "3"}, "", [3, 3, 1]),
        ({"JAX_NUM_CPU_DEVICES": "1"}, "", [1, 1, 1]),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, "", [1, 8, 1]),  # emulated for some test
        ({}, "jax.devices()", [1, 1, 1]),  # too late
    ],
)
def test_cores_become_devices_unless_somebody_said_how_many(
    environment: dict[str, str], before: str, expected: list[int]
) -> None:
    assert counts(before, **environment) == expected


def test_no_more_cores_than_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NPROC", raising=False)
    here = devices._cores()
    assert here == len(os.sched_getaffinity(0))
    for said, expected in (("1", 1), (str(here + 1), here), ("", here), ("many", here), ("0", here)):
        monkeypatch.setenv("NPROC", said)
        assert devices._cores() == expected


@pytest.mark.slow
def test_the_verb_takes_the_cores(tmp_path: Path) -> None:
    """Of a real `launch.sample` without emulated devices, four pictures on one core and on four."""
    known = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    prompt = "--prompt=a red circle left of a blue square"
    fixture = Path(__file__).parent / "fixtures" / "release_v1" / "release"
    for count in ("1", "4"):
        command = [sys.executable, "-m", "launch.sample", f"--cascade={fixture}", prompt, "--num=4"]
        done = subprocess.run(
            [*command, f"--out={tmp_path / count}"],
            env={**known, "JAX_NUM_CPU_DEVICES": count},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, four = (
        [np.asarray(Image.open(path)).astype(int) for path in sorted((tmp_path / count).glob("*.png"))]
        for count in ("1", "4")
    )
    assert len(one) == len(four) >= 4
    assert max(np.abs(a - b).max() for a, b in zip(one, four, strict=True)) <= 1
