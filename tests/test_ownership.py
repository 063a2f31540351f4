"""One run at a time has a workdir: released, dead, alive, silent and overtaken owners, here and elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from etils import epath
from etils.epath import backend
from test_embeddings_remote import Bucket

from ediffi_jax.training import claims, ownership
from ediffi_jax.training.errors import StorageError, TrainingError

OWNER = """
import sys
from etils import epath
from ediffi_jax.training import ownership
with ownership.owned(epath.Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 0.05)
    monkeypatch.setattr(ownership, "SILENCE", 0.6)


def claimed(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "owner").iterdir())


def elsewhere(workdir: Path, number: int = 1, **told) -> Path:
    """The claim of a process on a machine that we cannot look into."""
    path = workdir / "owner" / f"{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "far", "pid": 7, "machine": "other", "started": "1", "since": 0.0, **told}))
    return path


def test_a_second_run_is_refused_in_one_line_and_a_killed_one_makes_way_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "mine\n"
        with pytest.raises(TrainingError) as caught, ownership.owned(epath.Path(tmp_path)):
            pytest.fail("two runs have one workdir")
        message = str(caught.value)
        assert f"host {os.uname().nodename}, process {process.pid}, since 20" in message and "\n" not in message
        assert f"kill {process.pid}" in message and caught.value.exit_code == 2
        assert claimed(tmp_path) == ["1.json"]
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has read its exit code: a zombie
        begun = time.monotonic()
        with ownership.owned(epath.Path(tmp_path)) as owner:
            assert time.monotonic() - begun < ownership.SILENCE
            owner.check()
            assert claimed(tmp_path) == ["2.json"]
    finally:
        process.kill()
        process.communicate()


def test_released_it_is_anybodys(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with ownership.owned(epath.Path(tmp_path)):
            assert claimed(tmp_path) == [f"{number}.json"]
    with pytest.raises(KeyError), ownership.owned(epath.Path(tmp_path)):
        raise KeyError("a run that fails")
    elsewhere(tmp_path, 9, released=True)
    with ownership.owned(epath.Path(tmp_path)):
        assert claimed(tmp_path) == ["10.json"]


def test_a_number_of_a_later_process_is_not_the_owner(tmp_path: Path) -> None:
    """The same process number on the same machine, but another start: a container that came up anew."""
    elsewhere(tmp_path, machine=ownership.machine(), pid=os.getpid(), started="1")
    begun = time.monotonic()
    with ownership.owned(epath.Path(tmp_path)):
        assert time.monotonic() - begun < ownership.SILENCE


@pytest.mark.parametrize("text", ["", '{"host": "far"', "[1]", None])
def test_a_silent_owner_elsewhere_is_waited_for(tmp_path: Path, text: str | None, capsys) -> None:
    """Whole, or cut short by a kill."""
    path = elsewhere(tmp_path)
    if text is not None:
        path.write_text(text)
    begun = time.monotonic()
    with ownership.owned(epath.Path(tmp_path)):
        assert time.monotonic() - begun >= ownership.SILENCE
    assert "waiting up to 1 s for a sign of life" in capsys.readouterr().err


def test_a_living_owner_elsewhere_is_seen_by_its_signs_whatever_its_clock_says(tmp_path: Path) -> None:
    path, done = elsewhere(tmp_path, alive=0.0), threading.Event()

    def live() -> None:
        for beat in range(1000):
            if done.wait(0.05):
                return
            elsewhere(tmp_path, alive=-beat)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(TrainingError, match="another run has .*: host far, process 7"):
            ownership.Ownership(epath.Path(tmp_path)).claim()
    finally:
        done.set()
        thread.join()
    assert path.exists()


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    elsewhere(tmp_path, 4, released=True)
    folder = epath.Path(tmp_path) / "owner"
    got: list[int] = []
    gate = threading.Barrier(8)

    def take(index: int) -> None:
        gate.wait()
        if claims.create(folder, 5, json.dumps({"index": index})):
            got.append(index)

    threads = [threading.Thread(target=take, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert json.loads((tmp_path / "owner" / "5.json").read_text()) == {"index": got[0]}


def test_one_that_was_overtaken_or_whose_workdir_is_gone_stops(tmp_path: Path) -> None:
    with ownership.owned(epath.Path(tmp_path)) as owner:
        owner.check()
        elsewhere(tmp_path, 2)
        with pytest.raises(TrainingError, match="another run took .* over while .* silent: claim 2 follows 1"):
            owner.check()
        for path in (tmp_path / "owner").iterdir():
            path.unlink()
        with pytest.raises(StorageError, match="is gone, or was emptied"):
            owner.check()
        (tmp_path / "owner").rmdir()
        time.sleep(3 * ownership.BEAT)
        assert not (tmp_path / "owner").exists()  # a sign of life does not make it anew
        with pytest.raises(StorageError, match="is gone"):
            owner.check()
    assert not (tmp_path / "owner").exists()


def test_it_gives_signs_of_life(tmp_path: Path) -> None:
    path = tmp_path / "owner" / "1.json"
    with ownership.owned(epath.Path(tmp_path)):
        seen: list[dict] = []
        while len(seen) < 2:
            time.sleep(0.02)
            told = ownership._parse(path.read_text())  # {} for one that is being rewritten
            seen += [told] if told and told not in seen else []
        assert seen[1]["alive"] > seen[0]["alive"] and seen[1]["since"] == seen[0]["since"]
    assert json.loads(path.read_text())["released"]


class Store(Bucket):
    """An object store that, as the real ones, makes an object on the condition that there is none."""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        super().pipe_file(path, value, **kwargs)


@pytest.fixture
def store(monkeypatch):
    Bucket.store, Bucket.pseudo_dirs = {}, [""]
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: Store())
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Store(), Store._strip_protocol(url)))


def test_in_an_object_store(store, capsys) -> None:
    """Nothing is renamed or appended to, and no folder made: the emulated store would refuse."""
    workdir = epath.Path("gs://bucket/run")
    with ownership.owned(workdir) as owner:
        owner.check()
        assert list(Bucket.store) == ["/bucket/run/owner/1.json"]
        with pytest.raises(TrainingError, match="another run has gs://bucket/run: host"):
            ownership.Ownership(workdir).claim()
    with ownership.owned(workdir) as owner:
        assert list(Bucket.store) == ["/bucket/run/owner/2.json"]
        assert not claims.create(workdir / "owner", 2, "another")
        assert claims.create(workdir / "owner", 3, "another")
        with pytest.raises(TrainingError, match="took gs://bucket/run over"):
            owner.check()
    begun = time.monotonic()
    with ownership.owned(workdir):  # "another" is a claim that nobody can read, and that stays silent
        assert time.monotonic() - begun >= ownership.SILENCE
        assert list(Bucket.store) == ["/bucket/run/owner/4.json"]
