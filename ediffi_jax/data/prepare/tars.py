"""WebDataset tars as img2dataset writes them: `000000012.jpg .txt .json` in a row, a Parquet of metadata beside.

A tar that ends in the middle gives what is before the cut. What is missing is named from the Parquet, if there
is one; else the cut is one item.
"""

from __future__ import annotations

import dataclasses
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow
import pyarrow.parquet as pq
from etils import epath

from ediffi_jax import stores
from ediffi_jax.data.prepare import captions, decode
from ediffi_jax.data.prepare.reasons import Rejection
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import Item, Unit, make_unit, meta_fields, stamp

END = bytes(512)  # a block of zeros, with which a tar ends
PIECES = (".txt", ".json")


def units(paths: list[epath.Path]) -> list[Unit]:
    """One unit for each tar."""
    made = []
    for path in paths:
        beside = path.with_suffix(".parquet")
        listed = os.fspath(beside) if beside.exists() else ""
        spec = {"tar": os.fspath(path), "parquet": listed}
        made.append(make_unit("tars", spec, [stamp(path), stamp(beside) if listed else None]))
    return made


def read(spec: Mapping[str, Any], settings: Settings) -> Iterator[Item]:
    """An item for each sample in the tar, then one for each that the Parquet lists and the tar lacks."""
    path = stores.at(spec["tar"])
    listed, flaw = _listed(spec["parquet"])
    if flaw:
        yield Item(id=f"{path.name}#parquet", source=spec["parquet"], problem=Rejection("caption_unreadable", flaw))
    seen, cut = set(), ""
    samples = _samples(path)
    while True:
        try:
            with stores.reaching(path):  # a store that fails is no damage of the tar's
                key, pieces = next(samples)
        except StopIteration:
            break
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            cut = str(error) or type(error).__name__
            break
        seen.add(key)
        yield _item(path.name, key, pieces, listed.get(key, {}), settings)
    for key, row in listed.items():
        if key not in seen:
            status = row.get("status") or "success"
            lost = ("tar_cut", cut) if cut else ("image_missing", "listed, and not in the tar")
            failed = ("not_downloaded", str(row.get("error_message") or status))
            reason, detail = lost if status == "success" else failed
            yield Item(id=key, source=f"{path.name}/{key}", problem=Rejection(reason, detail))
    if cut:
        yield Item(id=f"{path.name}#end", source=path.name, problem=Rejection("tar_cut", cut))


def _listed(parquet: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Rows of img2dataset's Parquet by key, and what is wrong with it."""
    if not parquet:
        return {}, ""
    try:
        with stores.reaching(parquet), stores.at(parquet).open("rb") as file:
            rows = pq.read_table(file).to_pylist()
        return {str(row["key"]): row for row in rows if row.get("key") is not None}, ""
    except (OSError, pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        return {}, f"{type(error).__name__}: {error}"


def _samples(path: epath.Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {suffix: bytes}) of neighbours in the tar; a sample that a cut runs through is not given.

    Raises what `tarfile` raises, and EOFError for a tar without its end.
    """
    with path.open("rb") as file:
        current, pieces = "", {}
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, base = os.path.split(member.name)
                stem, dot, suffix = base.partition(".")
                key = os.path.join(folder, stem)
                if key != current and pieces:
                    yield current, pieces
                    pieces = {}
                current = key
                data = tar.extractfile(member).read()
                if len(data) < member.size:
                    raise EOFError(f"{member.name} has {len(data)} of {member.size} bytes")
                pieces[(dot + suffix).lower()] = data
        file.seek(tar.offset)
        if file.read(len(END)) != END:  # tarfile takes both for an end: no header at all, and a broken one
            raise EOFError("no header and no end where one of them should be")
        if pieces:
            yield current, pieces


def _item(tar: str, key: str, pieces: Mapping[str, bytes], row: Mapping[str, Any], settings: Settings) -> Item:
    suffix = next((suffix for suffix in pieces if suffix in decode.EXTENSIONS), "")
    item = Item(id=key, source=f"{tar}/{key}{suffix}", encoded=pieces.get(suffix, b""), name=key + suffix)
    try:
        if not suffix:
            others = [name for name in pieces if name not in PIECES]
            raise Rejection("image_missing", f"the sample has {', '.join(others) or 'no picture'}")
        meta = captions.from_json(pieces[".json"]) if ".json" in pieces else {}
        fields = meta_fields({**row, **meta}, settings)
        if ".txt" in pieces:
            text = captions.decode(pieces[".txt"])
            fields["captions"] = (text,) if text.strip() else fields["captions"]
        return dataclasses.replace(item, **fields)
    except Rejection as rejection:
        return dataclasses.replace(item, problem=rejection)
