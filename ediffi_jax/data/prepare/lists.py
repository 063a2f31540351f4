"""A list of pictures with captions: CSV, TSV, JSON lines, or Parquet, which may hold the pictures themselves.

Paths are relative to the list's folder. In a Parquet column pictures are bytes, or {bytes, path} as Hugging
Face data sets have them.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow
import pyarrow.parquet as pq
from etils import epath

from ediffi_jax import errors, stores
from ediffi_jax.data.prepare.reasons import PrepareError, Rejection
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import Item, Unit, cut, make_unit, meta_fields, stamp

IMAGES = ("image", "image_path", "path", "filepath", "file_name", "filename", "file", "jpg", "png", "webp")
IDS = ("id", "key", "image_id", "uid")


def units(path: epath.Path, settings: Settings) -> list[Unit]:
    """Units of rows, or of a Parquet's row groups. Raises PrepareError for a list that cannot be read."""
    try:
        if path.suffix == ".parquet":
            with path.open("rb") as file:
                parquet = pq.ParquetFile(file)
                image = column(parquet.schema_arrow.names, settings.image_key, IMAGES, path)
                if not pyarrow.types.is_string(parquet.schema_arrow.field(image).type):
                    spec = {"list": os.fspath(path), "image": image}
                    groups = range(parquet.num_row_groups)
                    return [make_unit("lists", {**spec, "group": group}, stamp(path)) for group in groups]
                rows = [row for batch in parquet.iter_batches() for row in batch.to_pylist()]
        else:
            rows = list(_rows(path))
    except (OSError, ValueError, csv.Error, pyarrow.ArrowInvalid) as error:
        raise PrepareError(f"{os.fspath(path)!r} cannot be read as {path.suffix[1:]}: {error}") from error
    if not rows:
        raise PrepareError(f"{os.fspath(path)!r} has no rows")
    image = column(list(rows[0]), settings.image_key, IMAGES, path)
    made = []
    for part in cut(rows, lambda row: str(row.get(image))):
        part = [{name: value for name, value in row.items() if _plain(value)} for row in part]
        spec = {"list": os.fspath(path), "image": image, "rows": part}
        made.append(make_unit("lists", spec, [_seen(path.parent, row.get(image)) for row in part]))
    return made


def column(names: list[str], wanted: str, usual: tuple[str, ...], path: epath.Path) -> str:
    """The name of a column. Raises PrepareError if the wanted one, or all the usual ones, are missing."""
    found = next((name for name in ((wanted,) if wanted else usual) if name in names), None)
    if found is None:
        message = f"{os.fspath(path)!r} has no column {wanted or ' or '.join(usual)}{errors.nearest(wanted, names)}"
        raise PrepareError(f"{message} (--image_key)")
    return found


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, dict, type(None)))


def _seen(folder: epath.Path, name: Any) -> Any:
    try:
        return stamp(folder / str(name))
    except OSError:
        return None


def _rows(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Rows of text; bytes that are not UTF-8 come escaped, for `captions.check` to find."""
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no JSON object")
                yield row
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if path.suffix == ".tsv" else ",")
    for row in reader:
        yield {name: value for name, value in row.items() if name is not None}


def read(spec: Mapping[str, Any], settings: Settings) -> Iterator[Item]:
    """An item for each row."""
    path = stores.at(spec["list"])
    rows = spec.get("rows")
    first = 0
    if rows is None:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            first = sum(parquet.metadata.row_group(group).num_rows for group in range(spec["group"]))
            rows = parquet.read_row_group(spec["group"]).to_pylist()
    for number, row in enumerate(rows, first):
        image = row.get(spec["image"])
        named = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
        names = (settings.id_key,) if settings.id_key else IDS
        own = next((str(row[name]) for name in names if row.get(name) not in (None, "")), "")
        id = own or (os.path.splitext(named)[0] if named else f"{path.stem}-{number}")
        yield _item(path, id, named or "", image, row, settings)


def _item(path: epath.Path, id: str, named: str, image: Any, row: Mapping[str, Any], settings: Settings) -> Item:
    item = Item(id=id, source=named or f"{path.name} ({id})", name=named)
    try:
        held = image.get("bytes") if isinstance(image, dict) else image if isinstance(image, bytes) else None
        if held is None and not named:
            raise Rejection("image_missing", "the list names none")
        if held is None:
            with stores.reaching(path):  # a store that fails is no damage of the picture's
                held = (path.parent / named).read_bytes()
        item = dataclasses.replace(item, encoded=held)
        meta = {name: value for name, value in row.items() if value is not image}
        return dataclasses.replace(item, **meta_fields(meta, settings))
    except Rejection as rejection:
        return dataclasses.replace(item, problem=rejection)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        detail = getattr(error, "strerror", None) or str(error)
        return dataclasses.replace(item, problem=Rejection("image_missing", detail))
