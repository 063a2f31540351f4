"""The last step: taken records into the ArrayRecord files of a TFDS data set.

A file holds the records of neighbouring units, in their order: training shuffles by number, so files need not
be, and no picture is ever sent from one machine to another. `dataset_info.json`, written last, names the files.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds  # before there are threads: until it is imported, theirs get its lazy stand-ins

from ediffi_jax.data.folders import folder_at
from ediffi_jax.data.prepare import tables
from ediffi_jax.data.prepare.reasons import PrepareError
from ediffi_jax.data.prepare.settings import Settings

TRAIN, VALIDATION = "train", "validation"
VERSION = "1.0.0"
WRITING = "group_size:1"  # as TFDS does: each record can be read alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of the data set.

    Attributes:
        split: TRAIN or VALIDATION.
        name: of the file.
        units: keys of those whose records it holds.
        records: how many.
    """

    split: str
    name: str
    units: tuple[str, ...]
    records: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What a unit gives to one split."""

    key: str
    records: int
    picture_bytes: int


def dataset_name(fingerprint: str) -> str:
    """Other contents have another name, so files of two data sets in one folder are never taken for one another."""
    return f"pairs_{fingerprint}"


def plan(split: str, shares: Iterable[Share], fingerprint: str, shard_mb: float) -> list[Shard]:
    """The files of a split: units in order, a new file where one would become larger than `shard_mb`."""
    parts: list[list[Share]] = []
    size = 0
    for share in shares:
        if share.records:
            if not parts or size + share.picture_bytes > shard_mb * 1e6:
                parts.append([])
                size = 0
            parts[-1].append(share)
            size += share.picture_bytes
    return [
        Shard(
            split=split,
            name=f"{dataset_name(fingerprint)}-{split}.array_record-{index:05d}-of-{len(parts):05d}",
            units=tuple(share.key for share in part),
            records=sum(share.records for share in part),
        )
        for index, part in enumerate(parts)
    ]


def features(settings: Settings) -> Any:
    """What a record has."""
    side = settings.resolution
    every = {"captions": tfds.features.Sequence(tfds.features.Text())} if settings.captions == "all" else {}
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format=settings.format),
            "caption": tfds.features.Text(),
            **every,
            "id": tfds.features.Text(),
        }
    )


@functools.lru_cache(maxsize=4)
def serializer(settings: Settings) -> Any:
    """What makes the bytes of a record from a row."""
    made = features(settings)
    examples = tfds.core.example_serializer.ExampleSerializer(made.get_serialized_info())
    # A record's features are a map, which processes would write in orders of their own.
    return lambda row: examples.get_tf_example(made.encode_example(row)).SerializeToString(deterministic=True)


def write(shard: Shard, records: str, chosen: str, out: str, held_out_below: float, settings: Settings) -> str:
    """Writes one file; returns its name. Raises PrepareError if it cannot.

    Args:
        shard: which.
        records, chosen: folders of the units' tables and verdicts.
        out: folder of the data set.
        held_out_below: lots below are of the validation split.
        settings: of the preparation.
    """
    from array_record.python import array_record_module

    serialize = serializer(settings)

    def fill(path: Path) -> None:
        writer = array_record_module.ArrayRecordWriter(str(path), WRITING)
        count = 0
        for key in shard.units:
            for row in _rows(key, records, chosen, shard.split, held_out_below, settings):
                writer.write(serialize(row))
                count += 1
        writer.close()
        if count != shard.records:
            raise PrepareError(f"{shard.name} would have {count} records, not the {shard.records} planned")

    try:
        folder_at(out).write(shard.name, fill)
    except (OSError, RuntimeError) as error:
        raise PrepareError(f"{shard.name} cannot be written to {os.fspath(out)!r}: {error}") from error
    return shard.name


def taken(verdicts: Any, split: str, held_out_below: float) -> np.ndarray:
    """Rows of a table of verdicts that are of a split."""
    fine = np.array([reason == "" for reason in verdicts["reason"].to_pylist()], bool)
    held = verdicts["lot"].to_numpy() < held_out_below
    return np.flatnonzero(fine & (held if split == VALIDATION else ~held))


def _rows(
    key: str, records: str, chosen: str, split: str, held_out_below: float, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Records as `features` wants them; pictures as encoded bytes."""
    rows = taken(tables.read(chosen, key, ["reason", "lot"]), split, held_out_below)
    names = ["id", "caption", "picture", *(["captions"] if settings.captions == "all" else [])]
    first = 0
    for part in tables.parts(records, key, names):
        ours = rows[(rows >= first) & (rows < first + len(part))] - first
        first += len(part)
        for row in part.take(ours).to_pylist():
            row["image"] = io.BytesIO(row.pop("picture"))
            yield row


def describe(out: str, shards: Sequence[Shard], fingerprint: str, settings: Settings, description: str) -> None:
    """Writes features.json and then dataset_info.json, with which the data set is there. Raises PrepareError."""
    folder = folder_at(out)
    name = dataset_name(fingerprint)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=os.fspath(out), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, description=description, features=features(settings))
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(dataset_name=name, data_dir=os.fspath(out), filetype_suffix="array_record")
    splits = []
    for split in dict.fromkeys(shard.split for shard in shards):
        ours = [shard for shard in shards if shard.split == split]
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.records for shard in ours],
                num_bytes=sum(folder.size(shard.name) or 0 for shard in ours),
                filename_template=template.replace(split=split),
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            info.write_to_directory(temporary)
            for file in ("features.json", "dataset_info.json"):
                text = Path(temporary, file).read_bytes()
                folder.write(file, lambda path, text=text: path.write_bytes(text))
    except OSError as error:
        raise PrepareError(f"{os.fspath(out)!r} cannot be written: {error.strerror or error}") from error
