"""Where records come from: an input is cut into units, each read by one task of the pipeline.

    tfds:NAME[/CONFIG][:VERSION]   a TFDS image-caption data set, or the folder of a prepared one    builders.py
    LIST.csv .tsv .jsonl .parquet  pictures by path, or inside the Parquet, with captions            lists.py
    DIR, or DIR/000*.tar           WebDataset tars, as img2dataset writes them                       tars.py
    DIR                            pictures with .txt or .json files beside them                     folder.py

A unit's identity covers names, sizes and times of what it reads. Units are cut where a name's hash says so,
not by counting, so that a file that is added changes one unit and not all that follow.
"""

from __future__ import annotations

import dataclasses
import importlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from ediffi_jax import stores
from ediffi_jax.data.prepare.captions import texts
from ediffi_jax.data.prepare.reasons import PrepareError, Rejection
from ediffi_jax.data.prepare.settings import Settings, digest

UNIT_RECORDS = 256  # on average, at most four times as many
LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
KINDS = ("folder", "lists", "tars", "builders")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A record as it is found.

    Attributes:
        id: by which it is known.
        source: where it is, for whoever looks for it.
        encoded: the picture's bytes.
        name: of the picture's file, for its extension.
        captions: as written.
        clip, aesthetic: scores, None if there are none.
        problem: why it cannot be taken, if that is known already.
    """

    id: str
    source: str
    encoded: bytes = b""
    name: str = ""
    captions: tuple[str, ...] = ()
    clip: float | None = None
    aesthetic: float | None = None
    problem: Rejection | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """What one task reads.

    Attributes:
        kind: of `KINDS`, the module that reads it.
        identity: of its contents, as far as a listing shows them.
        spec: what that module needs; plain types.
    """

    kind: str
    identity: str
    spec: Mapping[str, Any]


def list_units(location: str, settings: Settings, *, data_dir: str = "", split: str = "train") -> list[Unit]:
    """The units of an input, in an order of their own.

    Args:
        location: see the module.
        settings: for the names of columns.
        data_dir, split: of a TFDS data set.

    Raises:
        PrepareError: nothing there, or nothing that can be read.
        StoreError: a store failed, or its client is not installed.
    """
    if location.startswith("tfds:"):
        return _module("builders").units_of_builder(location.removeprefix("tfds:"), split, data_dir)
    path = stores.at(location).expanduser()
    with stores.reaching(path):
        return _units_at(path, location, settings, split)


def _units_at(path: epath.Path, location: str, settings: Settings, split: str) -> list[Unit]:
    if "*" in path.name or "?" in path.name:
        files = sorted(path.parent.glob(path.name))
        if files and all(file.suffix == ".tar" for file in files):
            return _module("tars").units(files)
        raise PrepareError(f"--input={location} names {'other files than' if files else 'no'} tars")
    if not path.exists():
        raise PrepareError(f"--input={location} does not exist; expected a folder, tars, a list, or tfds:NAME")
    if not path.is_dir():
        if path.suffix == ".tar":
            return _module("tars").units([path])
        if path.suffix in LISTS:
            return _module("lists").units(path, settings)
        expected = ", ".join((*LISTS, ".tar"))
        raise PrepareError(f"--input={location} is a {path.suffix or 'file'}; expected one of {expected}")
    if (path / "dataset_info.json").exists():
        return _module("builders").units_of_folder(path, split)
    if tars := sorted(path.glob("*.tar")):
        return _module("tars").units(tars)
    return _module("folder").units(path)


def read(unit: Unit, settings: Settings) -> Iterator[Item]:
    """The records of a unit, in their order; what cannot be read comes as items with a problem."""
    return _module(unit.kind).read(unit.spec, settings)


def _module(kind: str) -> Any:
    return importlib.import_module(f"{__package__}.{kind}")


def cut(entries: Iterable[Any], name: Callable[[Any], str]) -> Iterator[list[Any]]:
    """Cuts a sorted sequence after the entries whose names' hashes say so."""
    part: list[Any] = []
    for entry in entries:
        part.append(entry)
        hashed = zlib.crc32(name(entry).encode("utf-8", "surrogateescape"))
        if hashed % UNIT_RECORDS == 0 or len(part) == 4 * UNIT_RECORDS:
            yield part
            part = []
    if part:
        yield part


def make_unit(kind: str, spec: Mapping[str, Any], seen: Any) -> Unit:
    """A unit whose identity covers its spec and what else was `seen` of it."""
    return Unit(kind=kind, identity=digest([kind, spec, seen]), spec=spec)


def stamp(path: epath.Path) -> list[Any]:
    """Size and time of a file, by which a change is noticed."""
    stat = path.stat()
    return [stat.length, repr(stat.mtime)]


def meta_fields(meta: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Captions and scores out of a record's JSON or columns. Raises Rejection."""
    return {
        "captions": texts(meta, settings.caption_key),
        "clip": number(meta, settings.clip_key),
        "aesthetic": number(meta, settings.aesthetic_key),
    }


def number(meta: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """The first of these entries that holds a number."""
    for name in names:
        try:
            value = float(meta[name])
        except (KeyError, TypeError, ValueError):
            continue
        if value == value:
            return value
    return None
