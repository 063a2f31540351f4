"""The second step, across records: repeated ids, evaluation pictures, duplicates. Tables in, verdicts out.

    units ──ids──▶ group ──▶ repeated ids ─┐
      └────────────────────────────────────┴─▶ the rest ──hashes──▶ group ──▶ duplicates ──▶ work/chosen/*.parquet

Pictures stay where they are; what is grouped is 60 bytes a record and band, many records to an element, as bytes:
arrays would be sent with their description each.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from ediffi_jax.data.prepare import dedup, exclusion, tables
from ediffi_jax.data.prepare.settings import Settings

ID_BUCKETS = 64
Numbered = tuple[int, str]  # a unit's place in the order of units, and its key


def choose(units: beam.PCollection[Numbered], *, records: str, out: str, settings: Settings) -> beam.PCollection[str]:
    """Decides over every record of all units.

    Args:
        units: (place, key) of the tables.
        records: folder of the tables.
        out: folder that gets the verdicts, by the same keys.
        settings: what counts as a duplicate, and what is excluded.

    Returns:
        The keys.
    """
    repeated = (
        units
        | "ids" >> beam.FlatMap(lambda unit: ids_of(*unit, records))
        | "same ids" >> beam.GroupByKey()
        | "repeated ids" >> beam.FlatMap(lambda group: repeated_in(*group))
    )
    named = units | "places" >> beam.Map(lambda unit: unit)
    rest = {"unit": named, "repeated": repeated} | "with their repeated ids" >> beam.CoGroupByKey()
    duplicates = (
        rest
        | "hashes" >> beam.FlatMap(lambda unit: hashes_of(*unit, records, settings))
        | "same buckets" >> beam.GroupByKey()
        | "duplicates" >> beam.FlatMap(lambda group: duplicates_in(*group, settings.duplicate_distance))
    )
    everything = {"unit": named, "repeated": repeated, "duplicates": duplicates}
    keys = beam.pvalue.AsDict(named)
    judged = beam.Map(lambda unit, units: judge(*unit, units, records, out, settings), keys)
    return everything | "with all" >> beam.CoGroupByKey() | "verdicts" >> judged


def ids_of(place: int, key: str, records: str) -> Iterator[tuple[int, bytes]]:
    """(bucket, (id's hash, unit, row) [n, 3] as uint64), of records that can be taken."""
    table = tables.read(records, key, ["id", "reason"])
    rows = np.flatnonzero([reason == "" for reason in table["reason"].to_pylist()])
    ids = table["id"].to_pylist()
    found = np.array([(dedup.tie(ids[row]), place, row) for row in rows], np.uint64).reshape(-1, 3)
    for bucket in np.unique(found[:, 0] % ID_BUCKETS):
        yield int(bucket), found[found[:, 0] % ID_BUCKETS == bucket].tobytes()


def repeated_in(bucket: int, parts: Iterable[bytes]) -> Iterator[tuple[int, list[int]]]:
    """(unit, its rows whose ids were there before)."""
    del bucket
    found = dedup.repeated(np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 3))
    for place in np.unique(found[:, 0]):
        yield int(place), [int(row) for row in found[found[:, 0] == place, 1]]


def _open_rows(table: pa.Table, repeated: Iterable[list[int]], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(rows with a new id, of those that could be taken; which of them are excluded)."""
    gone = {row for rows in repeated for row in rows}
    fine = (row for row, reason in enumerate(table["reason"].to_pylist()) if reason == "" and row not in gone)
    rows = np.fromiter(fine, int)
    taken = table.take(rows)
    listed = exclusion.load(settings.exclude)
    phashes = taken["phash"].to_numpy().astype(np.uint64)
    return rows, listed.covers(taken["sha256"].to_pylist(), phashes, settings.exclude_distance)


def hashes_of(
    place: int, found: Mapping[str, Any], records: str, settings: Settings
) -> Iterator[tuple[dedup.Bucket, bytes]]:
    """The buckets that a unit's records go to."""
    (key,) = found["unit"]
    table = tables.read(records, key, ["id", "reason", "sha256", "phash", "colours", "width", "height"])
    rows, excluded = _open_rows(table, found["repeated"], settings)
    rows = rows[~excluded]
    entries = np.zeros(len(rows), dedup.ENTRY)
    table = table.take(rows)
    entries["sha"] = np.array([np.frombuffer(sha, "<u8", 2) for sha in table["sha256"].to_pylist()]).reshape(-1, 2)
    entries["phash"] = table["phash"].to_numpy()
    entries["colours"] = np.array([np.frombuffer(c, "u1") for c in table["colours"].to_pylist()]).reshape(-1, 12)
    entries["pixels"] = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
    entries["tie"] = [dedup.tie(id) for id in table["id"].to_pylist()]
    entries["unit"], entries["row"] = place, rows
    for bucket, part in dedup.buckets(entries, settings.dedup_exact, settings.duplicate_distance):
        yield bucket, part.tobytes()


def duplicates_in(bucket: dedup.Bucket, parts: Iterable[bytes], distance: int) -> Iterator[tuple[int, bytes]]:
    """(unit, its verdicts)."""
    found = dedup.duplicates(bucket, np.frombuffer(b"".join(parts), dedup.ENTRY), distance)
    for place in np.unique(found["unit"]):
        yield int(place), found[found["unit"] == place].tobytes()


def judge(
    place: int, found: Mapping[str, Any], units: Mapping[int, str], records: str, out: str, settings: Settings
) -> str:
    """Writes the verdicts of a unit; returns its key."""
    (key,) = found["unit"]
    table = tables.read(records, key, [name for name in tables.RECORDS.names if name != "picture"])
    reasons, details = table["reason"].to_pylist(), table["detail"].to_pylist()
    open_rows, excluded = _open_rows(table, found["repeated"], settings)
    for rows in found["repeated"]:
        for row in rows:
            reasons[row] = "duplicate_id"
    for row in open_rows[excluded]:
        reasons[row] = "evaluation"
    best: dict[int, tuple[int, ...]] = {}
    for verdicts in found["duplicates"]:
        for _, row, kind, twin_unit, twin_row in np.frombuffer(verdicts, dedup.VERDICT).tolist():
            best[row] = min(best.get(row, (kind, twin_unit, twin_row)), (kind, twin_unit, twin_row))
    for row, (kind, twin_unit, twin_row) in best.items():
        reasons[row] = ("duplicate", "near_duplicate")[kind]
        details[row] = f"of {_sources(records, units[twin_unit])[twin_row]}"
    tables.write(out, key, tables.VERDICTS, [_verdicts(table, reasons, details)])
    return key


@functools.lru_cache(maxsize=64)
def _sources(records: str, key: str) -> list[str]:
    return tables.read(records, key, ["source"])["source"].to_pylist()


def _verdicts(table: pa.Table, reasons: Sequence[str], details: Sequence[str]) -> pa.Table:
    shas, captions = table["sha256"].to_pylist(), table["captions"].to_pylist()
    columns = {name: table[name] for name in ("id", "source", "mended", "width", "height", "picture_bytes")}
    columns |= {
        "reason": reasons,
        "detail": details,
        "digest": [_digest(sha, texts) if sha else None for sha, texts in zip(shas, captions, strict=True)],
        "lot": [lot(sha) if sha else None for sha in shas],
        "words": [len(texts[0].split()) if texts else None for texts in captions],
    }
    return pa.table({name: columns[name] for name in tables.VERDICTS.names}, schema=tables.VERDICTS)


def _digest(sha: bytes, captions: Sequence[str]) -> bytes:
    return hashlib.blake2b(sha + "\0".join(captions).encode(), digest_size=8).digest()


def lot(sha: bytes) -> float:
    """A number in [0, 1) from a picture's bytes: copies are on one side of the split, whatever their names."""
    return int.from_bytes(sha[-6:], "big") / 2**48
