"""Runs in a bucket: real processes against a server that speaks Cloud Storage's API, and then stops speaking."""

from __future__ import annotations

import io
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from gcs_server import Store
from PIL import Image
from test_launch_train import RECIPE, V1, finish, start, wait_for_step
from training_fakes import same

from ediffi_jax import cascade, pictures, release, samples, stores
from ediffi_jax.release import commits
from ediffi_jax.training import checkpoint, config_files, lines, saving
from ediffi_jax.training import config as training_config
from ediffi_jax.training.errors import StorageError
from ediffi_jax.training.observers import Files

RUN = "gs://bucket/run"


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

    words = [f"--workdir={RUN}", "--to=gs://bucket/three", "--cuts=0.2,0.5", "--parents=0,0,1"]
    code, _, err = finish(start("branch", *words))
    assert code == 0, err
    assert checkpoint.read_position(checkpoint.newest("gs://bucket/three")).cuts == (0.2, 0.5)


def unfinished(store: Store) -> bool:
    """Whether a checkpoint is being written, or was left so by a kill."""
    with store.lock:
        names = {name.split("/")[3] for name in store.names("bucket/run/checkpoints/")}
        return any(f"bucket/run/checkpoints/{name}/{commits.MARKER}" not in store.objects for name in names)


@pytest.mark.pod
@pytest.mark.timeout(2400)  # 18 minutes on a machine that had five times as much to do as cores
def test_killed_at_twenty_random_moments_in_a_bucket(store, recipe, tmp_path) -> None:
    """Half of them while a checkpoint is being written; the other half at any step, up to 50 ms later."""
    whole = tmp_path / "whole"
    words = [f"--config={recipe}", "--config.phases.0.steps=80", "--steps=120"]
    assert finish(start("train", *words, f"--workdir={whole}"))[0] == 0
    random, left = np.random.default_rng(0), 0
    for kill in range(20):
        process = start("train", *words, f"--workdir={RUN}")
        if kill % 2:
            for wanted in (False, True):  # what the last kill left is removed first
                while process.poll() is None and unfinished(store) != wanted:
                    time.sleep(0.0005)
        else:
            saved = commits.committed(commits.folder_of(RUN))
            wait_for_step(process, max(saved, default=0) + int(random.integers(1, 9)))
            time.sleep(random.uniform(0, 0.05))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL, "it ended before it was killed"
        left += unfinished(store)
    assert left >= 5, "too few of the kills came while a checkpoint was being written"
    code, _, err = finish(start("train", *words, f"--workdir={RUN}"))
    assert code == 0, err
    assert same(*(checkpoint.load_tree(checkpoint.newest(workdir)) for workdir in (whole, RUN)))
    losses = [[(line["step"], line["loss/0"]) for line in lines.read(workdir)] for workdir in (whole, RUN)]
    assert [step for step, _ in losses[1]] == list(range(1, 201))
    assert losses[0] == losses[1] and store.refused == []


def test_a_step_saved_anew_has_a_higher_version_and_only_whole_ones_count(store) -> None:
    folder = commits.folder_of(RUN)
    for name, whole in (("3", True), ("6", True), ("6.1", True), ("6.2", False), ("9", False)):
        (folder / name / "state").write_text(name)
        if whole:
            (folder / name / commits.MARKER).write_text("")
    assert [path.name for path in commits.committed(folder).values()] == ["3", "6.1"]
    checkpoints = saving.Checkpoints(RUN)
    assert checkpoints.steps() == [3, 6]
    assert sorted({name.split("/")[3] for name in store.names("bucket/run/checkpoints")}) == ["3", "6.1"]


@pytest.mark.parametrize("place", ["bucket", "disk"])
def test_lines_after_the_checkpoint_are_dropped_and_the_rest_joined(store, tmp_path, monkeypatch, place) -> None:
    monkeypatch.setattr(lines, "FULL", 3)
    workdir = stores.at(RUN if place == "bucket" else tmp_path)
    for first, last, kept in ((0, 8, 5), (5, 7, 7)):
        files = Files(workdir, first)
        for step in range(first + 1, last + 1):
            files.write(step, {"loss/0": step / 3})
        files.close()
        assert [line["step"] for line in lines.read(workdir)] == list(range(1, last + 1))
        Files(workdir, kept)
        assert [line["step"] for line in lines.read(workdir)] == list(range(1, kept + 1))
    assert len(store.names("bucket/run/metrics/")) == (3 if place == "bucket" else 0)


def test_samples_go_into_a_bucket_whole_and_other_folders_are_refused(store) -> None:
    folder = pictures.make_folder("gs://bucket/pictures", remote=True)
    assert store.names("") == []
    pictures.write_bytes(folder / "a.png", b"png")
    assert store.objects["bucket/pictures/a.png"][1] == b"png"
    with pytest.raises(pictures.PictureError, match="is in an object store; expected a folder of this machine"):
        pictures.make_folder("gs://bucket/pictures")
    with pytest.raises(release.ReleaseError, match="gs://bucket/none holds neither cascade.json nor a checkpoint"):
        release.find("gs://bucket/none")


def test_a_run_in_a_bucket_is_sampled_from_like_its_copy_on_a_disk(store) -> None:
    for file in (path for path in V1.rglob("*") if path.is_file()):
        (stores.at(RUN) / file.relative_to(V1).as_posix()).write_bytes(file.read_bytes())
    (commits.folder_of(RUN) / "5" / commits.MARKER).write_text("")
    wishes = {"num": 2, "seed": 1, "steps": 2}
    remote = cascade.load(release.find(RUN))
    samples.write_samples("gs://bucket/out", remote, remote.request(["a red circle"], **wishes))
    assert [name.rpartition("/")[2] for name in store.names("bucket/out/")] == [
        "0000.png", "0001.png", "contact_sheet.png", "samples.jsonl",
    ]  # fmt: skip
    assert [line["file"] for line in samples.read_records("gs://bucket/out")] == ["0000.png", "0001.png"]
    expected = cascade.load(V1).sample(["a red circle"], **wishes, progress=False)
    found = Image.open(io.BytesIO(store.objects["bucket/out/0001.png"][1]))
    np.testing.assert_array_equal(np.asarray(found), expected[1])


def test_a_store_that_forbids_is_one_line_and_no_empty_run(store) -> None:
    store.forbids = True
    with pytest.raises(stores.StoreError, match="gs://bucket/run/config.json: Forbidden") as caught:
        config_files.read_workdir(RUN)
    assert caught.value.exit_code == 2
    with pytest.raises(StorageError, match="cannot be written: Forbidden"):
        config_files.write_workdir(RUN, training_config.default())


def test_a_store_that_accepts_and_never_answers_ends_a_start_with_one_line(store, monkeypatch) -> None:
    monkeypatch.setenv(stores.TIMEOUT_VARIABLE, "2")
    store.hangs = re.compile("")
    code, _, err = finish(start("train", f"--workdir={RUN}"))
    assert code == 42
    said = [line for line in err.splitlines() if line.startswith("error")]
    assert said == [f"error: {RUN}/config.json: the store did not answer within 2 s (EDIFFI_STORE_TIMEOUT)"]
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_store_that_falls_silent_while_saving_ends_the_run_with_one_line(store, recipe, monkeypatch) -> None:
    monkeypatch.setenv(stores.TIMEOUT_VARIABLE, "2")
    process = start("train", f"--config={recipe}", f"--workdir={RUN}")
    wait_for_step(process, 4)
    store.hangs, since = re.compile("checkpoints"), time.monotonic()
    code, _, err = finish(process)
    assert code == 42 and time.monotonic() - since < 60
    said = [line for line in err.splitlines() if line.startswith("error")]
    assert len(said) == 1 and "the store did not answer within 2 s" in said[0] and "Traceback" not in err
    store.hangs = None
    saved = commits.committed(commits.folder_of(RUN))
    assert all(checkpoint.read_position(path).step == step for step, path in saved.items())
