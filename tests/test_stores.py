"""Runs in a bucket: real processes against a server that speaks Cloud Storage's API, and then stops speaking."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import gcsfs
import pytest
from gcs_server import Store, serving
from test_launch_train import RECIPE, finish, start, wait_for_step
from training_fakes import same

from ediffi_jax import pictures, release, stores
from ediffi_jax.release import commits
from ediffi_jax.training import checkpoint, lines
from ediffi_jax.training.observers import Files

RUN = "gs://bucket/run"


@pytest.fixture
def store(monkeypatch) -> Iterator[Store]:
    """An empty store, in this process's environment and in those that it starts."""
    with serving() as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield store


@pytest.fixture
def recipe(tmp_path) -> Path:
    text = RECIPE.format(tests=str(Path(__file__).parent)).replace("save_every = 7", "save_every = 3")
    path = tmp_path / "small.py"
    path.write_text(text.replace('"steps": 60', '"steps": 12').replace('"steps": 30', '"steps": 6'))
    return path


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_and_stopped_and_ends_like_one_on_a_disk(store, recipe, tmp_path) -> None:
    whole, words = tmp_path / "whole", [f"--config={recipe}", f"--workdir={RUN}"]
    code, _, err = finish(start("train", f"--config={recipe}", f"--workdir={whole}"))
    assert code == 0, err

    process = start("train", *words)
    wait_for_step(process, 8)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    process = start("train", f"--workdir={RUN}")  # the config comes from the bucket
    wait_for_step(process, 10)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 42, err
    code, out, err = finish(start("train", *words))
    assert code == 0 and "3 starts" in out, err
    assert store.refused == []

    assert same(*(checkpoint.load_tree(checkpoint.newest(workdir)) for workdir in (whole, RUN)))
    told, alone = lines.read(RUN), lines.read(whole)
    assert [line["step"] for line in told] == list(range(1, 19))
    assert [line["loss/0"] for line in told] == [line["loss/0"] for line in alone]
    assert not list(tmp_path.glob("gs:*")) and store.names("bucket/run/tensorboard/events.out.tfevents.")

    branched = start("branch", f"--workdir={RUN}", "--to=gs://bucket/three", "--cuts=0.2,0.5", "--parents=0,0,1", "--steps=1")
    code, _, err = finish(branched)
    assert code == 0, err
    assert checkpoint.read_position(checkpoint.newest("gs://bucket/three")).cuts == (0.2, 0.5)
