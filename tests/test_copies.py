"""What is read from a bucket through copies and written to it at the end, against a server that refuses the rest."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from test_launch_train import V1, run_here
from training_fakes import same

from ediffi_jax import cascade, copies, encoders, paint, pictures, release, samples, stores
from ediffi_jax.evaluation import inputs, picture_folder
from ediffi_jax.training import config as training_config
from ediffi_jax.training import frozen

WEIGHTS = "gs://bucket/weights"


FOLDER = Path(__file__).parent / "fixtures" / "release_v1" / "release"


@pytest.fixture(scope="module")
def made() -> release.Release:
    return release.read_release(FOLDER)


def put(store, folder: Path, prefix: str = "bucket/weights") -> None:
    for file in (file for file in folder.rglob("*") if file.is_file()):
        store.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def test_a_copy_is_kept_until_the_store_holds_something_else(store, monkeypatch) -> None:
    monkeypatch.setattr(copies, "BLOCK", 1000)
    contents = {"a.bin": os.urandom(2500), "deep/b.bin": os.urandom(1000), "empty": b"", "folder/": b""}
    for name, data in contents.items():
        store.put(f"bucket/weights/{name}", data)
    folder = copies.local(WEIGHTS)
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert found == {name: data for name, data in contents.items() if not name.endswith("/")}
    assert folder.name == "weights" and store.refused == []

    store.sent.clear()
    assert copies.local(f"{WEIGHTS}/") == folder and store.sent == []
    (folder / "deep/b.bin").unlink()  # a copy that was killed
    (folder / "a.bin.partial").write_bytes(b"half")
    assert copies.local(WEIGHTS) == folder and set(store.sent) == {"bucket/weights/deep/b.bin"}
    assert not list(folder.rglob("*.partial"))

    store.put("bucket/weights/a.bin", os.urandom(2500))  # of the same size
    again = copies.local(WEIGHTS)
    assert again != folder and (again / "a.bin").read_bytes() == store.objects["bucket/weights/a.bin"][1]
    assert (folder / "a.bin").read_bytes() == contents["a.bin"]
    assert copies.local(f"{WEIGHTS}/deep/b.bin").read_bytes() == contents["deep/b.bin"]
    assert copies.local("~/x") == Path("~/x").expanduser()


def test_what_changes_while_it_is_copied_is_not_used(store, monkeypatch, tmp_path) -> None:
    store.put("bucket/weights/a", b"old")
    copy = copies.Listing.copy

    def slow(self, *words):
        copy(self, *words)
        store.put("bucket/weights/a", b"new")

    monkeypatch.setattr(copies.Listing, "copy", slow)
    with pytest.raises(stores.StoreError, match="gs://bucket/weights changed while it was copied; start again"):
        copies.local(WEIGHTS)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_what_cannot_be_copied_is_one_line(store, monkeypatch) -> None:
    store.buckets = {"bucket"}
    monkeypatch.setenv(stores.TIMEOUT_VARIABLE, "1")

    def told(path: str) -> str:
        with pytest.raises(stores.StoreError) as caught:
            copies.local(path)
        assert "\n" not in str(caught.value)
        return f"{caught.value.exit_code} {caught.value}"

    assert told(WEIGHTS) == f"2 {WEIGHTS}: no such object, and none below it"
    assert told("gs://absent/a") == "2 gs://absent/a: no such object, and none below it"
    assert told("http://bucket/a") == "2 http://bucket/a is in no known kind of store; expected gs:// or s3://"
    store.put("bucket/up/../a", b"")
    assert "the name '../a' cannot be a file's" in told("gs://bucket/up")
    store.put("bucket/weights/a", b"data")
    with monkeypatch.context() as patch:

        def full(file: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        line = told(WEIGHTS)
        assert line.endswith("No space left on device; XDG_CACHE_HOME names another place")
    store.hangs = re.compile("alt=media")
    assert told(WEIGHTS) == f"42 {WEIGHTS}: the store did not answer within 1 s ({stores.TIMEOUT_VARIABLE})"
    store.hangs, store.forbids = None, True
    assert told(WEIGHTS).startswith(f"2 {WEIGHTS}: Forbidden")


def test_a_release_is_sent_with_its_marker_last_and_opened_from_there(store, made, monkeypatch, tmp_path) -> None:
    out = "gs://bucket/releases/mine"
    send = copies.send
    with monkeypatch.context() as patch:  # killed before the marker

        def cut(folder: Path, path: str, last: str) -> None:
            (folder / last).unlink()
            send(folder, path, last)

        patch.setattr(copies, "send", cut)
        release.write_release(out, made)
    with pytest.raises(release.ReleaseError, match="mine holds neither cascade.json nor a checkpoint"):
        release.find(out)
    assert release.write_release(out, made) == stores.at(out)
    newest = max((generation, name) for name, (generation, _) in store.objects.items())[1]
    assert newest == "bucket/releases/mine/cascade.json" and store.refused == []
    with pytest.raises(release.ReleaseError, match="gs://bucket/releases/mine is taken; expected a prefix without"):
        release.write_release(out, made)

    there = cascade.load(out)
    assert release.name_of(there.folder) == out and there.folder.name == "mine"
    assert there.encoders.fingerprint == encoders.load(made.encoders).fingerprint
    assert same(there.to_release().params, made.params)
    linked = release.read_release(there.save("gs://bucket/linked", copy_encoders=False))
    assert os.fspath(linked.encoders) == f"{out}/encoders" and not store.names("bucket/linked/encoders")
    with pytest.raises(release.ReleaseError, match="gs://bucket/no cannot refer to the encoders in .*release/encoders"):
        release.write_release("gs://bucket/no", made, copy_encoders=False)
    del store.objects["bucket/releases/mine/base.safetensors"]
    with pytest.raises(release.ReleaseError, match="gs://bucket/releases/mine/base.safetensors does not exist"):
        release.read_release(stores.at(out))


def test_a_run_with_encoders_of_a_bucket_becomes_a_release_with_them(store, made) -> None:
    put(store, Path(made.encoders))
    run = dataclasses.replace(release.read_workdir(V1), encoders=WEIGHTS)
    found = release.release_of_runs({"base": [run]})
    for name, copied in (("copied", True), ("linked", False)):
        release.write_release(f"gs://bucket/{name}", found, copy_encoders=copied)
        entry = release.read_release(f"gs://bucket/{name}").encoders
        assert os.fspath(entry) == (f"gs://bucket/{name}/encoders" if copied else WEIGHTS)
        assert bool(store.names(f"bucket/{name}/encoders/t5/model.safetensors")) == copied


def test_encoders_of_a_bucket_are_those_of_the_folder_and_nothing_else_is_copied(store, made) -> None:
    put(store, Path(made.encoders))
    store.put("bucket/weights/t5/pytorch_model.bin", b"the same once more")
    config = training_config.default()
    config.encoders = WEIGHTS
    assert frozen.open_encoders(config).fingerprint == encoders.load(made.encoders).fingerprint
    assert "bucket/weights/t5/pytorch_model.bin" not in store.sent
    store.sent.clear()
    assert not frozen.is_here(WEIGHTS) and encoders.load(WEIGHTS).params and store.sent == []


def test_prompts_styles_masks_and_canvases_of_a_bucket(store, tmp_path) -> None:
    photo = np.zeros((12, 12, 3), np.uint8)
    photo[:6] = 255, 0, 0
    pictures.write_png("gs://bucket/photo.png", photo)
    pictures.write_png(tmp_path / "photo.png", photo)
    stores.at("gs://bucket/prompts.txt").write_text("a red circle\n\ntwo green stars\n")
    assert samples.read_prompts([], "gs://bucket/prompts.txt") == ["a red circle", "two green stars"]
    both = "gs://bucket/photo.png", tmp_path / "photo.png"
    np.testing.assert_array_equal(*(pictures.read_style(place, 8) for place in both))
    for words in ("{}", "#ff0000@{}"):
        there, here = (paint.masks.read(words.format(place), 8) for place in both)
        np.testing.assert_array_equal(there[0], here[0])
        assert there[2] == here[2] and there[1] == words.format(both[0])


def test_weights_are_converted_from_a_bucket_into_it(store, tmp_path, monkeypatch, capsys) -> None:
    import torch

    torch.save({"linear.weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    put(store, tmp_path)
    words = [f"--input={WEIGHTS}", "--output=gs://bucket/converted"]
    assert run_here("convert", words, monkeypatch, capsys)[0] == 0
    found = encoders.files.open_folder(copies.local("gs://bucket/converted"))
    np.testing.assert_array_equal(found["linear.weight"].read(), np.arange(6).reshape(2, 3))
    code, err = run_here("convert", words, monkeypatch, capsys)
    assert code == 2 and err.endswith("error: gs://bucket/converted: exists already; name a folder that does not\n")


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("quickstart", ["--out=gs://bucket/out"]),
        ("studio", ["--cascade=gs://bucket/release", "--results=gs://bucket/out"]),
        ("train", ["--workdir=gs://bucket/run", "--config=gs://bucket/recipe.py"]),
        ("prepare", ["--input=tfds:coco_captions", "--data_dir=gs://bucket/tfds", "--out=x"]),
    ],
)
def test_flags_that_name_something_of_this_machine(verb: str, words: list[str], monkeypatch, capsys) -> None:
    code, err = run_here(verb, words, monkeypatch, capsys)
    flag = next(word for word in words if err.startswith(f"error: {word}: "))
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: {flag}: expected a path on this machine")
    assert (verb == "studio") == err.endswith("; launch.studio takes gs:// with --cascade\n")


def test_what_an_evaluation_is_given_may_be_in_a_bucket(store, made, tmp_path) -> None:
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(6)]
    captions = [{"id": i, "image_id": i, "caption": f"picture {i}"} for i in range(6)]
    stores.at("gs://bucket/coco.json").write_text(json.dumps({"images": images, "annotations": captions}))
    for i in range(6):
        pictures.write_png(f"gs://bucket/val/{i}.png", np.full((8, 8, 3), i, np.uint8))
    where = {"annotated": "gs://bucket/coco.json", "images": "gs://bucket/val"}
    asked = inputs.protocol("coco", 3, **where)
    assert [f"picture {asked.picture(i)[0, 0, 0]}" for i in range(3)] == list(asked.prompts)
    assert len({name for name in store.sent if name.startswith("bucket/val/")}) == 3  # no others are copied
    found = picture_folder.read("gs://bucket/val")
    assert len(found.files) == 6 and found.resolution == 8
    put(store, Path(made.encoders))
    assert inputs.clip(WEIGHTS).describe()["fingerprint"] == encoders.load(made.encoders).fingerprint
    for read in (inputs.clip, inputs.network):
        with pytest.raises(stores.StoreError, match="no such object, and none below it"):
            read(NONE)


NONE = "gs://bucket/none"
NOTHING = f"{NONE}: no such object, and none below it"


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("export", [f"--workdirs=base={NONE}", f"--encoders={NONE}", f"--out={NONE}"], f"{NONE} holds no checkpoint"),
        ("grid", [f"--cascade={NONE}", "--prompt=a", f"--out={NONE}/a.png"], f"{NONE} holds neither cascade.json"),
        ("sample", [f"--prompts_file={NONE}", f"--style={NONE}", f"--canvas={NONE}", f"--out={NONE}"], NOTHING),
        ("encode", ["--data=scenes", f"--encoders={NONE}", f"--out={NONE}"], NOTHING),
        ("evaluate", [f"--{name}={NONE}" for name in ("generated", "inception", "clip", "reference", "out")], NOTHING),
        ("evaluate", [f"--compare={NONE}", f"--out={NONE}"], f"no curve in {NONE}"),
        ("train", [f"--workdir={NONE}", "--config=configs/scenes.py:tiny", f"--config.encoders={NONE}"], NOTHING),
        ("train", [f"--workdir={NONE}", "--config=configs/scenes.py:tiny", "--config.data.dir=gs://bucket/scenes"],
         "config.data.dir='gs://bucket/scenes': scenes are rendered to this machine"),
        ("branch", [f"--workdir={NONE}", f"--to={NONE}", "--cuts=0.5"], f"no checkpoint in {NONE}/checkpoints"),
        ("prepare", [f"--input={NONE}", f"--out={NONE}"], f"--input={NONE} does not exist"),
        ("prepare", ["--input=x", f"--clip={NONE}", "--min_clip=0.1", f"--out={NONE}"], NOTHING),
    ],
)  # fmt: skip
def test_a_verb_asks_the_bucket_and_makes_nothing_when_nothing_is_there(
    verb: str, words: list[str], message: str, store, monkeypatch, capsys
) -> None:
    code, err = run_here(verb, words, monkeypatch, capsys)
    assert code == 2 and err.splitlines()[-1].startswith(f"error: {message}")
    assert sum(line.startswith("error") for line in err.splitlines()) == 1 and "Traceback" not in err
    assert store.names("") == [] and store.refused == []
