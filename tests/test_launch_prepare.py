"""Whole preparations: what is told is what is there, killed or grown they end alike, and training reads the result."""

from __future__ import annotations

import collections
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from prepare_inputs import TinyCaptions, encoded, pairs, photo, rows, settings, write

from ediffi_jax import stores
from ediffi_jax.data import views
from ediffi_jax.data.loader import make_loader
from ediffi_jax.data.prepare import crops, sources
from ediffi_jax.data.prepare.reasons import PrepareError
from ediffi_jax.evaluation import preparation_report

TIMED = ("timing.json", "report.html")  # all other files are functions of input and settings


def prepare(location, out, given=None, **changes):
    where = {"data_dir": "", "split": "train", "keep_work": True, **changes}
    running = {"workers": 2, "say": lambda line: None}
    return preparation_report.prepare(str(location), str(out), given or settings(), running, **where)


def contents(folder: Path, work: bool = True) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED)
    named = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if work or not name.startswith(("work/", "complete.json"))}


def rejected(folder: Path) -> dict[str, list[str]]:
    found = collections.defaultdict(list)
    with (folder / "rejected.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["reason"]].append(row["source"])
    return {reason: sorted(names) for reason, names in found.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("photos"), pairs(range(60)))


@pytest.fixture(scope="module")
def prepared(photos: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "set"
    prepare(photos, folder)
    return folder


def test_records_are_the_pictures_with_their_captions(prepared: Path) -> None:
    held = rows(prepared, "validation")
    found = sorted([*rows(prepared), *held], key=lambda row: row["id"][2:])
    assert 2 <= len(held) <= 14 and len(found) == 60
    for number, row in enumerate(found):
        assert row["id"].decode() == f"{number % 3}/p{number:04d}"
        assert row["caption"].decode() == f"picture number {number}"
        picture = crops.square(views.decode(encoded(photo(number))), 32)
        assert np.abs(views.decode(row["image"]).astype(int) - picture).max() <= 4  # two JPEG decoders
    page = (prepared / "report.html").read_text(encoding="utf-8")
    assert "60 of 60 records taken" in page and page.count("<img") == 24
    assert json.loads((prepared / "timing.json").read_text())[0]["examined"] == 60


def test_prepared_again_nothing_is_touched(prepared: Path, photos: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert prepare(photos, prepared).examined == 0
    assert before == {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}


def test_input_that_grew_costs_what_was_added_and_ends_as_if_made_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "UNIT_RECORDS", 8)
    write(tmp_path / "in", pairs(range(40)))
    prepare(tmp_path / "in", tmp_path / "grown")
    first = contents(tmp_path / "grown")
    (added,) = write(tmp_path / "in", {"1/p0000b.jpg": encoded(photo(99)), "1/p0000b.txt": "new"}).glob("1/p0000b.jpg")
    grown = prepare(tmp_path / "in", tmp_path / "grown")
    assert 1 <= grown.examined < 33 and added.exists()
    prepare(tmp_path / "in", tmp_path / "fresh")
    assert contents(tmp_path / "grown") == contents(tmp_path / "fresh") != first
    # What is decided across records is decided anew without decoding anything, and can be taken back.
    assert prepare(tmp_path / "in", tmp_path / "grown", settings(duplicate_distance=0, shard_mb=0.02)).examined == 0
    assert len(list((tmp_path / "grown").glob("pairs_*-train*"))) > 2
    assert prepare(tmp_path / "in", tmp_path / "grown").examined == 0
    assert contents(tmp_path / "grown") == contents(tmp_path / "fresh")
    # Elsewhere and at another time the same pictures give the same data set.
    for path in (tmp_path / "in").rglob("*.*"):
        (tmp_path / "copy" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path.parent.name / path.name).write_bytes(path.read_bytes())
    prepare(tmp_path / "copy", tmp_path / "moved", keep_work=False)
    moved, fresh = (contents(tmp_path / name, work=False) for name in ("moved", "fresh"))
    about = {name: json.loads(found.pop("report.json")) for name, found in (("moved", moved), ("fresh", fresh))}
    assert moved == fresh and about["moved"].pop("input") != about["fresh"].pop("input")
    assert about["moved"] == about["fresh"]
    assert not list((tmp_path / "moved").rglob("*.parquet"))
    assert prepare(tmp_path / "copy", tmp_path / "moved", keep_work=False).examined == 0


def bad_folder(folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """Twenty good pairs, and of every damage some; what should be said of each file that is not taken."""
    photo_ = encoded(photo(200, 200, 160))
    files = {
        **pairs(range(20)),
        "cut.jpg": photo_[:3000], "zero.jpg": b"", "page.jpg": b"<html>",
        "broken.png": b"\x89PNG\r\n\x1a\n" + bytes(80) + b"IEND",
        "mute.jpg": encoded(photo(201)), "blank.jpg": encoded(photo(202)), "blank.txt": "https://x.y/z",
        "latin.jpg": encoded(photo(203)), "latin.txt": b"caf\xe9", "alone.txt": "a caption", "notes.pdf": b"x",
        "twin.jpg": encoded(photo(204)), "twin.png": encoded(photo(205), "PNG"), "twin.txt": "two of one name",
        "copy.jpg": encoded(photo(3)), "copy.txt": "the same bytes",
        "small.jpg": encoded(photo(206, 40, 31)), "small.txt": "too small",
        "near.jpg": encoded(photo(5, 60, 45)), "near.txt": "number five, smaller",
        "eval.jpg": encoded(photo(300)), "eval.txt": "a picture to judge by",
        "png.jpg": encoded(photo(207), "PNG"), "png.txt": "wrong extension",
    }  # fmt: skip
    for name in ("cut", "zero", "page", "broken"):
        files[f"{name}.txt"] = f"caption of {name}"
    expected = {
        "truncated": ["cut.jpg"], "empty_file": ["zero.jpg"], "not_an_image": ["page.jpg"],
        "unreadable": ["broken.png"],
        "caption_missing": ["blank.jpg", "mute.jpg"], "caption_not_utf8": ["latin.jpg"], "image_missing": ["alone.txt"],
        "other_file": ["notes.pdf"], "duplicate_id": ["twin.png"], "too_small": ["small.jpg"],
        "near_duplicate": ["near.jpg"], "evaluation": ["eval.jpg"], "mended": ["png.jpg"],
    }  # fmt: skip
    return write(folder, files), expected


def test_every_record_is_taken_or_told_under_its_reason(tmp_path: Path) -> None:
    folder, expected = bad_folder(tmp_path / "in")
    judged = write(tmp_path / "eval", {"judge.png": encoded(photo(300, 200, 150), "PNG")})
    where = {"data_dir": "", "split": "train"}
    told = preparation_report.make_hashes(str(judged), str(tmp_path / "eval.hashes"), settings(), **where)
    assert told == f"1 pictures listed in {tmp_path / 'eval.hashes'}"
    made = prepare(folder, tmp_path / "out", settings(exclude=(str(tmp_path / "eval.hashes"),)))
    found = rejected(tmp_path / "out")
    duplicate = found.pop("duplicate")  # which of two with the same bytes is kept is for their ids to say
    assert duplicate in (["copy.jpg"], ["0/p0003.jpg"])
    assert found == expected
    report = made.report
    # 20 pairs, one of them a copy's twin; twin.jpg and png.jpg
    assert report["taken"] == 22 and report["records"] == 22 + sum(report["rejected"].values())
    assert report["bad"] == 9 and report["mended"] == {"wrong_extension": 1}
    with (tmp_path / "out" / "rejected.csv").open() as file:
        (near,) = [row for row in csv.DictReader(file) if row["reason"] == "near_duplicate"]
    assert near["detail"] == "of 2/p0005.jpg"
    text = preparation_report.told(made)
    assert "22 of 36 records" in text and "1 near_duplicate" in text and "mended: 1 wrong_extension" in text

    with pytest.raises(PrepareError, match=r"9 of 36 records are damaged, more than --max_bad_fraction=0.2 allows"):
        prepare(folder, tmp_path / "strict", settings(max_bad_fraction=0.2))
    assert not (tmp_path / "strict" / "dataset_info.json").exists()
    assert rejected(tmp_path / "strict")["truncated"] == ["cut.jpg"]
    lenient = prepare(folder, tmp_path / "strict", settings(max_bad_fraction=0.3))
    assert lenient.examined == 0 and lenient.report["taken"] == 23  # eval.jpg is not excluded here


STAND_INS = """
from ediffi_jax.data.prepare import prepare, settings, shards  # as before a pipeline starts its threads
from etils import epy

def told(*_, **__):
    raise SystemExit("what other threads import now would be stand-ins")

epy.lazy_imports = told
shards.serializer(settings.Settings(resolution=8))
"""


def test_no_task_imports_what_would_change_the_imports_of_other_threads() -> None:
    subprocess.run([sys.executable, "-c", STAND_INS], check=True, timeout=100)


def start(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_killed_twice_it_ends_where_an_undisturbed_run_ends(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", pairs(range(1000), width=320, height=240))
    words = ["launch.prepare", f"--input={folder}", "--resolution=64", "--shard_mb=0.4", "--workers=1"]

    def killed_after(pattern: str, number: int) -> list[Path]:
        process = start(*words, f"--out={tmp_path / 'broken'}")
        while len(found := list((tmp_path / "broken").glob(pattern))) < number and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL, "it had ended before"
        return found

    looked = {path: path.stat().st_mtime_ns for path in killed_after("work/units/*.parquet", 2)}
    assert not (tmp_path / "broken" / "dataset_info.json").exists()
    written = {path: path.stat().st_mtime_ns for path in killed_after("pairs_*", 2) if not path.name.endswith(".tmp")}
    assert written and not (tmp_path / "broken" / "dataset_info.json").exists()
    code, out, err = finish(start(*words, f"--out={tmp_path / 'broken'}"))
    assert code == 0 and "1000 of 1000 records" in out, err
    for path, when in (looked | written).items():
        assert path.stat().st_mtime_ns == when, f"{path.name} was made again"
    prepare(
        folder,
        tmp_path / "whole",
        settings(resolution=64, min_side=64, shard_mb=0.4, validation=0.01, max_bad_fraction=0.1),
    )
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


RECIPE = """
import sys
sys.path.insert(0, {tests!r})
from training_fakes import small_config

def get_config(arguments):
    config = small_config()
    config.phases = ({{"steps": 2, "cuts": (), "parents": ()}},)
    return config
"""


def test_a_folder_is_prepared_and_trained_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "pairs"
    code, told, err = finish(start("launch.prepare", f"--input={photos}", f"--out={out}", "--resolution=32"))
    assert code == 0 and not err, err
    assert re.search(r"examine: \d+ of \d+ units, 60 records, [\d.]+ records/s, ETA 0:00:00", told)
    flags = re.search(r"train on it: (.*)", told)[1].split()
    assert flags == [f"--config.data.name={out}", "--config.data.source_resolution=32"]
    (tmp_path / "recipe.py").write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    words = [f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}", *flags]
    code, told, err = finish(start("launch.train", *words, "--config.data.resolution=16"))
    assert code == 0 and "step 2/2" in told, err


def test_a_tfds_data_set_with_all_its_captions_trains_on_all(tmp_path: Path) -> None:
    given = settings(captions="all")
    made = prepare("tfds:tiny_captions", tmp_path / "out", given, data_dir=str(tmp_path / "tfds"))
    assert made.report["taken"] == 40 and TinyCaptions.VERSION == "1.0.0"
    data = {"name": str(tmp_path / "out"), "resolution": 32, "source_resolution": 32, "clip_resolution": 0}
    loader = make_loader(data, split="train", seed=0, num_experts=1, batch_size=made.report["splits"]["train"])
    seen = collections.defaultdict(set)
    for epoch in range(8):
        for caption in loader.captions(epoch * loader.layout.images):
            word, number = re.fullmatch(r"caption (\d) of (\d+)", caption).groups()
            seen[number].add(word)
    assert len(seen) == made.report["splits"]["train"]
    assert np.mean([len(words) for words in seen.values()]) > 2.7
    held = make_loader(data, split="test", seed=0, num_experts=1, batch_size=2)
    assert all(caption.startswith("caption 0 of") for caption in held.captions(0))
    again = make_loader({**data, "captions": 3}, split="train", seed=0, num_experts=1, batch_size=4)
    assert again.captions(0) == again.captions(0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"location": "nowhere"}, "--input=nowhere does not exist"),
        ({"runner": "FlinkRuner"}, "--runner=FlinkRuner"),
        ({"given": settings(exclude=["nowhere"])}, "--exclude=nowhere cannot be read"),
    ],
)
def test_what_is_refused_leaves_no_folder(photos: Path, tmp_path: Path, words: dict, message: str) -> None:
    location, given, runner = words.get("location", photos), words.get("given", settings()), words.get("runner")
    running = {"runner": runner} if runner else {}
    with pytest.raises(PrepareError, match=message):
        where = {"data_dir": "", "split": "train", "keep_work": True}
        preparation_report.prepare(str(location), str(tmp_path / "set"), given, running, **where)
    assert not (tmp_path / "set").exists()


def test_a_store_that_falls_silent_is_no_damage_of_the_pictures(store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(stores.TIMEOUT_VARIABLE, "1")
    for file in write(tmp_path / "photos", pairs(range(6))).rglob("*.*"):
        store.put(f"bucket/photos/{file.relative_to(tmp_path / 'photos').as_posix()}", file.read_bytes())
    store.hangs = re.compile("p0003.*alt=media")
    with pytest.raises(stores.SilentStoreError, match="gs://bucket/photos: the store did not answer within 1 s"):
        prepare("gs://bucket/photos", tmp_path / "set")
    store.hangs = None
    assert prepare("gs://bucket/photos", tmp_path / "set").report["records"] == 6 and store.refused == []


def test_a_data_set_in_a_bucket_is_an_input(prepared: Path, store, tmp_path: Path) -> None:
    for file in (file for file in prepared.iterdir() if file.is_file()):
        store.put(f"bucket/set/{file.name}", file.read_bytes())
    made = prepare("gs://bucket/set", tmp_path / "again", split="validation")
    assert made.report["records"] == len(rows(prepared, "validation")) and store.refused == []
    assert not [name for name in store.sent if "-train.array_record" in name]


def test_to_an_object_store_and_trained_from_there(photos: Path, prepared: Path, bucket) -> None:
    out = "gs://bucket/sets/photos"
    prepare(photos, out)
    names = {name.removeprefix("/bucket/sets/photos/") for name in bucket.store}
    assert {"dataset_info.json", "features.json", "report.html"} <= names
    data = {"resolution": 32, "source_resolution": 32, "clip_resolution": 0}
    there, here = (
        make_loader({**data, "name": str(name)}, split="train", seed=0, num_experts=1, batch_size=8)
        for name in (out, prepared)
    )
    np.testing.assert_array_equal(there.batch(0)["image"], here.batch(0)["image"])
    bucket.read.clear()
    assert prepare(photos, out).examined == 0 and not any(name.endswith(".parquet") for name in bucket.read)


def test_on_a_runner_that_is_another_process(photos: Path, prepared: Path, tmp_path: Path) -> None:
    """Beam's job service speaks to pipelines as Flink's and Spark's do; tasks come back to this process (LOOPBACK)."""
    server = subprocess.Popen(
        [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port=0",
         f"--port_file={tmp_path / 'port'}", f"--pid_file={tmp_path / 'pid'}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "port").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        options = f"--job_endpoint=localhost:{(tmp_path / 'port').read_text().strip()} --environment_type=LOOPBACK"
        running = {"runner": "PortableRunner", "options": options, "say": lambda line: None}
        where = {"data_dir": "", "split": "train", "keep_work": True}
        preparation_report.prepare(str(photos), str(tmp_path / "out"), settings(), running, **where)
    finally:
        server.kill()
        server.wait()
    assert contents(tmp_path / "out") == contents(prepared)


def test_mistakes_end_in_one_line(photos: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset_info.json").write_text("{}")
    for out, given, message in (
        (prepared, settings(resolution=16, min_side=16), "resolution is 32 there and 16 here; expected the same"),
        (photos / "inside", None, "is inside --input"),
        (tmp_path / "file" / "x", None, "cannot be written: Not a directory"),
        (tmp_path / "other", None, "holds a data set that was made otherwise"),
        (tmp_path / "none", settings(min_side=1000), "no record of 60 is left to train on .too_small 60."),
    ):
        with pytest.raises(PrepareError, match=message):
            prepare(photos, out, given)
    with pytest.raises(PrepareError, match=r"--runner=FlinkRuner"):
        preparation_report.prepare(
            str(photos),
            str(tmp_path / "x"),
            settings(),
            {"runner": "FlinkRuner"},
            data_dir="",
            split="train",
            keep_work=True,
        )
    for words, message in (
        (["--out=x"], "flag --input=None: Flag --input must have a value other than None."),
        (["--input=nowhere", f"--out={tmp_path / 'o'}"], "--input=nowhere does not exist"),
        (["--input=x", "--out=y", "--resolutoin=64"], "unknown flag --resolutoin; did you mean 'resolution'"),
    ):
        code, out, err = finish(start("launch.prepare", *words))
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_a_damaged_unit_is_named(photos: Path, tmp_path: Path) -> None:
    prepare(photos, tmp_path / "out")
    for path in (tmp_path / "out" / "work" / "units").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PrepareError, match=r"is damaged .* remove it and run the same command again"):
        prepare(photos, tmp_path / "out", settings(duplicate_distance=2))
