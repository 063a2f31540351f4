"""What every kind of input gives: all records, each bad one under its reason, nothing dropped in silence."""

from __future__ import annotations

import collections
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_inputs import TinyCaptions, encoded, pairs, photo, settings, tar, write

from ediffi_jax.data.prepare import exclusion, sources
from ediffi_jax.data.prepare.reasons import PrepareError
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import Item


def items(location: Path | str, given: Settings | None = None, **where: str) -> list[Item]:
    given = given or settings()
    units = sources.list_units(str(location), given, **where)
    return [item for unit in units for item in sources.read(unit, given)]


def problems(found: list[Item]) -> dict[str, int]:
    return dict(collections.Counter(item.problem.reason for item in found if item.problem))


def test_a_folder_with_captions_beside(tmp_path: Path) -> None:
    about = json.dumps({"caption": "from json", "similarity": 0.25, "AESTHETIC_SCORE": 6})
    files = {
        "a.jpg": encoded(photo(0)), "a.txt": "\ufeffone\n\ntwo\n", "sub/b.PNG": encoded(photo(1), "PNG"),
        "sub/b.json": about, "c.webp": encoded(photo(2), "WEBP"), "d.jpg": b"", "d.txt": b"caf\xe9",
        "e.txt": "alone", "f.jpg": encoded(photo(3)), "f.png": encoded(photo(3), "PNG"), "f.json": "{no json",
        "notes.pdf": b"pdf", ".hidden/x.jpg": b"", ".DS_Store": b"",
    }  # fmt: skip
    found = {item.source: item for item in items(write(tmp_path, files))}
    assert len(found) == 8  # all but the hidden ones, captions with their pictures
    assert found["a.jpg"].captions == ("one", "two") and found["a.jpg"].id == "a"
    b = found["sub/b.PNG"]
    assert (b.id, b.captions, b.clip, b.aesthetic) == ("sub/b", ("from json",), 0.25, 6.0)
    assert found["c.webp"].captions == () and found["c.webp"].problem is None
    assert found["f.jpg"].id == found["f.png"].id and found["f.jpg"].encoded
    reasons = {name: item.problem.reason for name, item in found.items() if item.problem}
    assert reasons == {
        "d.jpg": "caption_not_utf8", "e.txt": "image_missing", "f.jpg": "caption_unreadable",
        "f.png": "caption_unreadable", "notes.pdf": "other_file",
    }  # fmt: skip


def test_one_more_file_changes_one_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UNIT_RECORDS", 16)
    write(tmp_path, {f"{number:04d}.jpg": b"x" for number in range(400)})
    before = sources.list_units(str(tmp_path), settings())
    assert before == sources.list_units(str(tmp_path), settings()) and len(before) > 10
    write(tmp_path, {"0200b.jpg": b"x"})
    after = sources.list_units(str(tmp_path), settings())
    old, new = ({unit.identity for unit in units} for units in (before, after))
    assert len(old - new) == 1 and 1 <= len(new - old) <= 2
    write(tmp_path, {"0200b.txt": "a caption"})
    assert len(new - {unit.identity for unit in sources.list_units(str(tmp_path), settings())}) == 1


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "bytes"])
def test_lists_of_paths_or_pictures(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "img", {f"{number}.jpg": encoded(photo(number)) for number in range(5)})
    rows = [{"image": f"img/{n}.jpg", "caption": f'a "{n}", quoted', "clip_score": n / 10} for n in range(5)]
    rows += [
        {"image": "img/none.jpg", "caption": "x", "clip_score": 0.0},
        {"image": None, "caption": "y", "clip_score": 1.0},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "bytes":
        path = tmp_path / "list.parquet"
        data = [
            {**row, "image": None if n > 4 else {"bytes": encoded(photo(n)), "path": None}}
            for n, row in enumerate(rows)
        ]
        pq.write_table(pa.Table.from_pylist(data), path, row_group_size=3)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    found = items(path)
    assert len(found) == 7 and problems(found) == {"image_missing": 2}
    fine = [item for item in found if not item.problem]
    assert [item.encoded for item in fine] == [encoded(photo(n)) for n in range(5)]
    assert [item.captions for item in fine] == [(f'a "{n}", quoted',) for n in range(5)]
    assert [item.clip for item in fine] == [n / 10 for n in range(5)] and len({item.id for item in found}) == 7


def test_a_list_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": encoded(photo(0)), "b.jpg": encoded(photo(1))})
    (tmp_path / "list.csv").write_bytes(b"file_name,text,id\na.jpg,caf\xe9,7\nb.jpg,fine,8\n")
    bad, fine = items(tmp_path / "list.csv")
    assert (bad.id, bad.problem.reason, fine.id, fine.captions) == ("7", "caption_not_utf8", "8", ("fine",))
    assert bad.encoded  # an exclusion list is made of all pictures


def downloaded(folder: Path, numbers: range, name: str = "00000") -> tuple[Path, list[str]]:
    """A tar of img2dataset's and the Parquet beside it, in which one download failed."""
    folder.mkdir(exist_ok=True)
    keys = [f"{number:09d}" for number in numbers]
    samples = {
        key: {
            ".jpg": encoded(photo(number)),
            ".json": json.dumps({"caption": f"json {number}", "key": key, "similarity": 0.3}),
            ".txt": f"text {number}",
        }
        for number, key in zip(numbers, keys, strict=True)
    }
    path = tar(folder / f"{name}.tar", samples)
    rows = [{"key": key, "caption": "c", "status": "success", "error_message": None} for key in keys]
    rows.append({"key": "999999999", "caption": "c", "status": "failed_to_download", "error_message": "HTTP 404"})
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path, keys


def test_tars_as_img2dataset_writes_them(tmp_path: Path) -> None:
    _, keys = downloaded(tmp_path, range(6))
    found = items(tmp_path)
    assert [item.id for item in found] == [*keys, "999999999"]
    assert found[2].captions == ("text 2",) and found[2].clip == 0.3 and found[2].encoded == encoded(photo(2))
    assert problems(found) == {"not_downloaded": 1} and found[-1].problem.detail == "HTTP 404"
    assert [item.id for item in items(tmp_path / "000*.tar")] == [item.id for item in found]


def test_a_tar_cut_anywhere_loses_nothing_in_silence(tmp_path: Path) -> None:
    path, keys = downloaded(tmp_path / "whole", range(6))
    data = path.read_bytes()
    for listed in (True, False):
        for cut in [*range(0, len(data), 1111), 512 * 9]:
            folder = tmp_path / f"{listed}-{cut}"
            folder.mkdir()
            (folder / "00000.tar").write_bytes(data[:cut])
            if listed:
                (folder / "00000.parquet").write_bytes(path.with_suffix(".parquet").read_bytes())
            found = items(folder)
            fine = [item.id for item in found if not item.problem]
            assert fine == keys[: len(fine)]
            assert all(len(item.captions[0]) > 4 and item.encoded for item in found if not item.problem)
            lost = [item for item in found if item.problem and item.problem.reason == "tar_cut"]
            ended = cut >= len(data) - 10240 + 512  # one block of zeros is an end
            assert bool(lost) == (not ended) or len(fine) == 6
            if listed and lost:
                assert [item.id for item in lost] == [*keys[len(fine) :], "00000.tar#end"]


def test_a_broken_header_in_a_tar_is_no_end(tmp_path: Path) -> None:
    path, keys = downloaded(tmp_path, range(6))
    data = bytearray(path.read_bytes())
    place = data.index(b"000000003.jpg")
    data[place : place + 512] = b"\x11" * 512
    path.write_bytes(data)
    found = items(tmp_path)
    assert [item.id for item in found if not item.problem] == keys[:2]  # the third may have had more to it
    assert problems(found) == {"tar_cut": 5, "not_downloaded": 1}


def test_samples_without_picture_or_with_an_unreadable_list(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"x": {".txt": "alone"}, "y": {".txt": "bad \xff".encode("latin-1"), ".png": b"p"}})
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    assert problems(items(tmp_path)) == {"image_missing": 1, "caption_not_utf8": 1, "caption_unreadable": 1}


def test_tfds_data_sets_of_the_shape_of_coco_captions(tmp_path: Path) -> None:
    found = items("tfds:tiny_captions", data_dir=str(tmp_path))
    assert sorted(item.id for item in found) == sorted(str(1000 + number) for number in range(40))
    for item in found:
        number = int(item.id) - 1000
        assert item.captions == tuple(f"caption {k} of {number}" for k in range(3))
        assert item.encoded == encoded(photo(number))
    folder = tmp_path / "tiny_captions" / str(TinyCaptions.VERSION)
    assert len(items(folder, split="val")) == 4
    assert {item.id for item in items(folder, settings(id_key="image/filename"))} == {f"{n:06d}.jpg" for n in range(40)}
    for location, split, message in (
        (folder, "vall", "no split 'vall'; did you mean 'val'"),
        ("tfds:no_such_captions", "train", "TFDS has no data set 'no_such_captions'"),
    ):
        with pytest.raises(PrepareError, match=message):
            items(location, split=split, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("nowhere", None, "does not exist; expected a folder"),
        ("empty/readme.md", "x", "no pictures in"),
        ("list.xlsx", "x", r"is a .xlsx; expected one of .csv"),
        ("list.csv", "a,b\n1,2\n", "has no column image or"),
        ("list.csv", "image,caption\n", "has no rows"),
        ("list.jsonl", '{"image": "a"}\n{oops\n', "line 2"),
        ("list.parquet", "no parquet", "cannot be read as parquet"),
        ("*.tar", None, "names no tars"),
    ],
)
def test_inputs_that_are_none_are_refused(tmp_path: Path, name: str, data: str | None, message: str) -> None:
    if data is not None:
        write(tmp_path, {name: data})
    with pytest.raises(PrepareError, match=message):
        items(tmp_path / name.split("/")[0])


def test_a_list_of_hashes_is_made_of_every_picture(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "val", {**pairs(range(4)), "odd.jpg": encoded(photo(9)), "odd.txt": b"\xff", "no.jpg": b"no"}
    )
    listed, failed = exclusion.write(str(folder), str(tmp_path / "lists" / "val.hashes"), settings())
    assert (listed, failed) == (5, 1)
    found = exclusion.load((str(tmp_path / "lists" / "val.hashes"),))
    assert len(found.shas) == len(found.phashes) == 5
    with pytest.raises(PrepareError, match="no picture in .* could be read"):
        exclusion.write(str(write(tmp_path / "none", {"a.jpg": b"x"})), str(tmp_path / "x"), settings())


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    from ediffi_jax.data.prepare.examine import examine

    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        Path(f"{folder}/caf\udce9.jpg").write_bytes(encoded(photo(0)))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    (unit,) = sources.list_units(str(folder), settings())
    (table,) = examine(unit, settings())
    assert table["source"].to_pylist() == ["caf\\udce9.jpg"] and table["reason"].to_pylist() == ["caption_missing"]
