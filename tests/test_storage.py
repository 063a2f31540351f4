"""A workdir that fails while a run uses it: full, forbidden, gone, silent. The last good checkpoint stays whole."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from training_fakes import Net, small_config

from ediffi_jax import models
from ediffi_jax.training import checkpoint, loop, saving
from ediffi_jax.training.errors import RestartError, StorageError
from ediffi_jax.training.observers import Observer
from ediffi_jax.training.storage import writing


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    monkeypatch.setattr(models, "build", lambda config: Net(channels=32))
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)


class AtStep5(Observer):
    """Does something once the checkpoint of step 3, written in the background, is complete."""

    def __init__(self, workdir: Path, act: Callable[[], None]) -> None:
        self.checkpoint, self.act = workdir / "checkpoints" / "3", act

    def tick(self, step: int) -> None:
        if step == 5:
            while not self.checkpoint.exists():
                time.sleep(0.01)
            self.act()


def train(workdir: Path, monkeypatch, act: Callable[[], None]) -> None:
    """Ten steps, saved at 3, 6 and 9; `act` comes at step 5."""
    config = small_config()
    config.phases = ({"steps": 10, "cuts": (), "parents": ()},)
    make = loop.make_observers
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_observers", lambda *args: [*make(*args), AtStep5(workdir, act)])
        loop.train(config, workdir)


def check_whole(workdir: Path, step: int) -> None:
    """The newest checkpoint is that of `step`, readable, and the run goes on from it."""
    assert checkpoint.newest(workdir).name == str(step)
    state = checkpoint.load_tree(checkpoint.newest(workdir))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))
    config = small_config()
    config.phases = ({"steps": 10, "cuts": (), "parents": ()},)
    assert loop.train(config, workdir) == loop.FINISHED
    assert checkpoint.newest(workdir).name == "10"


@contextlib.contextmanager
def file_limit() -> Iterator[Callable[[], None]]:
    """A disk that takes no more than 20 kB of a file, which is less than a checkpoint's arrays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more(tmp_path: Path, monkeypatch) -> None:
    with file_limit() as limit, pytest.raises(StorageError) as caught:
        train(tmp_path, monkeypatch, limit)
    message = str(caught.value)
    assert f"{tmp_path}/checkpoints/6 cannot be written: " in message and os.strerror(errno.EFBIG) in message
    assert "\n" not in message and caught.value.exit_code == 2
    check_whole(tmp_path, 3)


def test_a_save_that_fails_in_the_background_is_noticed_at_the_next_logged_step(tmp_path: Path, monkeypatch) -> None:
    class Failing:
        def result(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Watch(Observer):
        def tick(self, step: int) -> None:
            time.sleep(0.2 if step == 51 else 0)
            steps.append(step)

    steps, make, config = [], loop.make_observers, small_config()
    config.phases = ({"steps": 100, "cuts": (), "parents": ()},)
    config.update({"save_every": 50, "log_every": 1, "eval_every": 0, "sample_every": 0})
    monkeypatch.setattr(saving.ocp, "save_checkpointables_async", lambda *args, **options: Failing())
    monkeypatch.setattr(loop, "make_observers", lambda *args: [*make(*args), Watch()])
    with pytest.raises(StorageError, match="checkpoints/50 cannot be written: .*No space left on device"):
        loop.train(config, tmp_path)
    assert steps[-1] == 51


def test_a_full_disk(tmp_path: Path, monkeypatch) -> None:
    """A real file system of one megabyte, where we may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        filler = disk / "filler"

        def fill() -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

        with pytest.raises(StorageError) as caught:
            train(disk / "run", monkeypatch, fill)
        message = str(caught.value)
        assert "cannot be written: " in message and os.strerror(errno.ENOSPC) in message and "\n" not in message
        filler.unlink()
        check_whole(disk / "run", 3)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_workdir_that_vanishes(tmp_path: Path, monkeypatch) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(StorageError) as caught:
        train(workdir, monkeypatch, lambda: shutil.rmtree(workdir))
    assert str(workdir) in str(caught.value) and "\n" not in str(caught.value)
    assert not (workdir / "checkpoints").exists() and not (workdir / "owner").exists()


def test_a_workdir_that_was_moved_comes_back(tmp_path: Path, monkeypatch) -> None:
    """As a mount that is lost for a while; nothing is written in its empty place."""
    workdir, away = tmp_path / "run", tmp_path / "away"
    with pytest.raises(StorageError):
        train(workdir, monkeypatch, lambda: workdir.rename(away))
    assert not workdir.exists()
    away.rename(workdir)
    check_whole(workdir, 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_workdir_that_may_no_longer_be_written(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run" / "checkpoints"
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            train(tmp_path / "run", monkeypatch, lambda: folder.chmod(0o500))
    finally:
        folder.chmod(0o700)
    check_whole(tmp_path / "run", 3)


def test_a_workdir_that_cannot_be_made(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory") as caught:
        train(tmp_path / "file" / "run", monkeypatch, lambda: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (OSError(errno.EROFS, "Read-only file system"), StorageError),
        (PermissionError(errno.EACCES, "Permission denied"), StorageError),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), StorageError),
        (ValueError("PERMISSION_DENIED: Error writing gs://bucket/x: HTTP response code: 403"), StorageError),
        (OSError(errno.EIO, "Input/output error"), RestartError),
        (OSError(errno.ESTALE, "Stale file handle"), RestartError),
        (TimeoutError("timed out"), RestartError),
        (ConnectionError("reset"), RestartError),
        (ValueError("DEADLINE_EXCEEDED: Error writing gs://bucket/x"), RestartError),
        (ValueError("UNAVAILABLE: Error writing\n gs://bucket/x"), RestartError),
        (ValueError("shapes (2,) and (3,) do not fit"), ValueError),
        (RuntimeError("a mistake of ours"), RuntimeError),
    ],
)
def test_what_a_restart_mends_and_what_it_does_not(error: Exception, kind: type) -> None:
    with pytest.raises(kind) as caught, writing("runs/base"):
        raise error
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    if kind in (StorageError, RestartError):
        assert str(caught.value).startswith("runs/base cannot be written: ")
        assert caught.value.exit_code == (2 if kind is StorageError else 42)
