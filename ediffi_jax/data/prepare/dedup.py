"""Duplicates among all records, found in buckets that fit one task each.

Records are ranked: more pixels first, then by a hash of the id. One is dropped if a record of better rank has
the same bytes, or a hash near by and colours near by. So what is kept does not depend on the order in which
records are compared, nor on how they were cut into units; of a chain of near duplicates its best is kept.

Hashes that differ in at most d of 64 bits agree in one of d + 1 bands at least: only records that agree in a
band meet. A bucket is some values of one band.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from ediffi_jax.data.prepare import hashing

BUCKETS = 64  # of each band
EXACT, NEAR = 0, 1  # what a verdict is about

ENTRY = np.dtype(
    [
        ("sha", "<u8", 2),
        ("phash", "<u8"),
        ("colours", "u1", 12),
        ("pixels", "<i8"),
        ("tie", "<u8"),
        ("unit", "<i4"),
        ("row", "<i4"),
    ]
)
VERDICT = np.dtype([("unit", "<i4"), ("row", "<i4"), ("kind", "<i4"), ("twin_unit", "<i4"), ("twin_row", "<i4")])

Bucket = tuple[int, int]  # (band, or -1 for bytes; which values of it)


def tie(id: str) -> int:
    """Ranks records of equal size."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def buckets(entries: np.ndarray, exact: bool, distance: int) -> Iterator[tuple[Bucket, np.ndarray]]:
    """Entries [n] of `ENTRY` in every bucket where they may meet a duplicate."""
    keys = [(-1, entries["sha"][:, 0])] if exact else []
    keys += [(index, hashing.band(entries["phash"], index, distance + 1)) for index in range(distance + 1)]
    for index, values in keys:
        places = values % BUCKETS
        for place in np.unique(places):
            yield (index, int(place)), entries[places == place]


def duplicates(bucket: Bucket, entries: np.ndarray, distance: int) -> np.ndarray:
    """The entries of a bucket to drop, as `VERDICT`: each with the best of those it is a duplicate of."""
    index, _ = bucket
    entries = entries[np.lexsort((entries["row"], entries["unit"], entries["tie"], -entries["pixels"]))]
    found = _same(entries, entries["sha"], EXACT) if index < 0 else _near(entries, index, distance)
    return np.array(found, VERDICT)


def _same(entries: np.ndarray, keys: np.ndarray, kind: int) -> list[tuple[int, ...]]:
    """Entries with the key of a better one."""
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    twins = first[group.ravel()]  # of the first, in the order of rank, with the same key
    return [_verdict(entries, place, twins[place], kind) for place in np.flatnonzero(twins != np.arange(len(entries)))]


def _near(entries: np.ndarray, index: int, distance: int) -> list[tuple[int, ...]]:
    """Entries near a better one that agrees with them in this band."""
    values = hashing.band(entries["phash"], index, distance + 1)
    order = np.argsort(values, kind="stable")
    found = []
    for group in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
        # Thousands may look exactly alike (empty pictures): only the best of each look is compared with the others.
        colours = entries["colours"][group].astype(int)
        looks = np.column_stack([entries["phash"][group], colours.astype(np.uint64)])
        _, first, look = np.unique(looks, axis=0, return_index=True, return_inverse=True)
        twins = first[look.ravel()]
        for place, member in enumerate(group):
            if twins[place] != place:
                found.append(_verdict(entries, member, group[twins[place]], NEAR))
                continue
            better = np.flatnonzero(twins[:place] == np.arange(place))
            close = hashing.differing_bits(entries["phash"][group[better]], entries["phash"][member]) <= distance
            apart = np.abs(colours[better] - colours[place]).max(axis=1, initial=0)
            better = better[close & (apart <= hashing.COLOUR_DISTANCE)]
            if len(better):
                found.append(_verdict(entries, member, group[better[0]], NEAR))
    return found


def _verdict(entries: np.ndarray, place: int, twin: int, kind: int) -> tuple[int, ...]:
    one, other = entries[place], entries[twin]
    return int(one["unit"]), int(one["row"]), kind, int(other["unit"]), int(other["row"])


def repeated(ids: np.ndarray) -> np.ndarray:
    """Of rows (id's hash, unit, row) [n, 3] those whose id an earlier row has, by (unit, row): (unit, row) [m, 2]."""
    ids = ids[np.lexsort((ids[:, 2], ids[:, 1]))]
    _, first, group = np.unique(ids[:, 0], return_index=True, return_inverse=True)
    later = first[group] != np.arange(len(ids))
    return ids[later, 1:]
