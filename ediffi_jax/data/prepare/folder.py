"""A folder, with folders in it: `cat.jpg` with its caption in `cat.txt`, or in `cat.json` with its scores."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from ediffi_jax import copies, stores
from ediffi_jax.data.folders import is_remote
from ediffi_jax.data.prepare import captions, decode
from ediffi_jax.data.prepare.reasons import PrepareError, Rejection
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import Item, Unit, cut, make_unit, meta_fields

TEXTS = (".txt", ".json")


def units(root: epath.Path) -> list[Unit]:
    """Units of about as many stems each. Raises PrepareError if there is no picture at all."""
    stems: dict[str, dict[str, list[Any]]] = {}
    for name, seen in files(root):
        stem, suffix = os.path.splitext(name)
        stems.setdefault(stem, {})[suffix] = seen
    if not any(suffix.lower() in decode.EXTENSIONS for found in stems.values() for suffix in found):
        raise PrepareError(f"no pictures in {os.fspath(root)!r}; expected {', '.join(decode.EXTENSIONS)}, or tars")
    made = []
    for part in cut(sorted(stems.items()), lambda entry: entry[0]):
        spec = {"root": os.fspath(root), "stems": [[stem, sorted(found)] for stem, found in part]}
        made.append(make_unit("folder", spec, [sorted(found.items()) for _, found in part]))
    return made


def files(root: epath.Path) -> Iterator[tuple[str, list[Any]]]:
    """(path below root, [size, time or generation]) of every file whose path has no part that begins with a dot."""
    if is_remote(root):
        listing = copies.Listing.read(root, lambda name: not any(part.startswith(".") for part in name.split("/")))
        for name, seen in listing.objects.items():
            yield name, list(seen)
        return
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                full = os.path.join(folder, name)
                try:
                    stat = os.stat(full)
                    seen = [stat.st_size, stat.st_mtime_ns]
                except OSError:  # a link to nothing: its reading will say so
                    seen = [0, 0]
                yield PurePosixPath(os.path.relpath(full, root)).as_posix(), seen


def read(spec: Mapping[str, Any], settings: Settings) -> Iterator[Item]:
    """One item for each picture, and one for each file that belongs to none."""
    root = stores.at(spec["root"])
    for stem, suffixes in spec["stems"]:
        pictures = [suffix for suffix in suffixes if suffix.lower() in decode.EXTENSIONS]
        for suffix in suffixes:
            if suffix not in pictures and not (pictures and suffix in TEXTS):
                reason = "image_missing" if suffix in TEXTS else "other_file"
                yield Item(id=stem + suffix, source=stem + suffix, problem=Rejection(reason))
        for suffix in pictures:
            yield _item(root, stem, suffix, [suffix for suffix in TEXTS if suffix in suffixes], settings)


def _item(root: epath.Path, stem: str, suffix: str, beside: list[str], settings: Settings) -> Item:
    name = stem + suffix
    try:
        with stores.reaching(root):  # a store that fails is no damage of the picture's
            encoded = (root / name).read_bytes()
    except OSError as error:
        return Item(id=stem, source=name, problem=Rejection("image_missing", error.strerror or str(error)))
    item = Item(id=stem, source=name, encoded=encoded, name=name)
    try:
        fields: dict[str, Any] = {}
        if ".json" in beside:
            with stores.reaching(root):
                content = (root / f"{stem}.json").read_bytes()
            fields = meta_fields(captions.from_json(content), settings)
        if ".txt" in beside:
            with stores.reaching(root):
                content = (root / f"{stem}.txt").read_bytes()
            lines = captions.decode(content).splitlines()
            fields["captions"] = tuple(line for line in lines if line.strip()) or fields.get("captions", ())
        return dataclasses.replace(item, **fields)
    except Rejection as rejection:
        return dataclasses.replace(item, problem=rejection)
    except OSError as error:
        return dataclasses.replace(item, problem=Rejection("caption_unreadable", error.strerror or str(error)))
