"""The first checkpoint ever written still loads, samples and trains on: tests/fixtures/checkpoint_v1.py made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ediffi_jax as ed
from ediffi_jax.data.batches import Assembled, SyntheticAssembler
from ediffi_jax.training import checkpoint, config_files, loop

# What version 0.1.0 made of it: the losses of both experts at step 6, and the mean of one image's channels.
LOSSES = (1.0708864, 1.2148094)
MEANS = (143.797, 123.641, 132.922)


@pytest.fixture
def copy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workdir named by a relative path, as on a command line."""
    shutil.copytree(root / "tests" / "fixtures", tmp_path / "tests" / "fixtures")
    monkeypatch.chdir(tmp_path)
    return Path("tests/fixtures/checkpoint_v1")


def test_it_samples(copy: Path) -> None:
    cascade = ed.load(copy)
    assert cascade.stages[0].spec.cuts == (0.5,)
    (image,) = cascade.sample("a red circle", seed=3, progress=False)
    np.testing.assert_allclose(image.mean((0, 1)), MEANS, atol=1.0)  # in steps of 1/255, rounded


def pictures_of_that_time(self: SyntheticAssembler, start: int) -> Assembled:
    """One draw for the whole batch; now every picture is drawn from its own position."""
    rng = np.random.default_rng((self.seed, start, 0))
    shapes = self.sizes.shapes().items()
    batch = {name: rng.integers(256, size=(*self.layout.shape, *shape), dtype=np.uint8) for name, shape in shapes}
    return batch, [f"picture number {number}" for number in rng.integers(1000, size=self.layout.images)], []


def test_it_trains_on(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyntheticAssembler, "__call__", pictures_of_that_time)
    config = config_files.read_workdir(copy)
    config_files.override(config, ["phases.1.steps=3"])
    assert loop.train(config, copy) == loop.FINISHED
    (row,) = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert row["step"] == 6
    np.testing.assert_allclose([row["loss/0"], row["loss/1"]], LOSSES, atol=1e-4)
    assert checkpoint.newest(copy).name == "6"
