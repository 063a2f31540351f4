"""What a preparation came to: counts under every reason, sizes, captions, a few pictures. The report's numbers."""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import heapq
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ediffi_jax.data.prepare import shards, tables
from ediffi_jax.data.prepare.reasons import BAD, REASONS
from ediffi_jax.data.prepare.shards import TRAIN, VALIDATION, Share

SIDES = (0, 64, 128, 256, 512, 768, 1024, 1536, 2048, 4096, 1 << 30)  # pixels of the shorter side
WORDS = (0, 1, 3, 6, 11, 21, 41, 81, 161, 1 << 30)
SAMPLES, EXAMPLES = 24, 5


@dataclasses.dataclass
class Summary:
    """Counts over all units; `add` takes them one after the other.

    Attributes:
        reasons: how many records ended under each, "" for those taken.
        mended: how many of the taken ones were mended in each way.
        sides, words: histograms of the taken ones over `SIDES` and `WORDS`.
        shares: what each unit gives to each split, if lots below `held_out_below` are held out.
        examples: for each reason the first few (source, detail).
        samples: (lot, unit, row) of the taken records with the lowest lots.
        contents: hash over ids, pictures and captions of the taken ones, in their order, unit by unit.
    """

    held_out_below: float
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    mended: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sides: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(SIDES) - 1, int))
    words: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(WORDS) - 1, int))
    picture_bytes: int = 0
    shares: dict[str, list[Share]] = dataclasses.field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    examples: dict[str, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    samples: list[tuple[float, str, int]] = dataclasses.field(default_factory=list)
    contents: Any = dataclasses.field(default_factory=lambda: hashlib.blake2b(digest_size=8))

    def add(self, key: str, verdicts: pa.Table) -> None:
        """Counts the verdicts of a unit in."""
        reasons = verdicts["reason"].to_pylist()
        self.reasons.update(reasons)
        for row, reason in enumerate(reasons):
            found = self.examples.setdefault(reason, []) if reason else None
            if found is not None and len(found) < EXAMPLES:
                found.append((verdicts["source"][row].as_py(), verdicts["detail"][row].as_py()))
        sizes = verdicts["picture_bytes"].to_numpy()
        for split, shares in self.shares.items():
            rows = shards.taken(verdicts, split, self.held_out_below)
            shares.append(Share(key=key, records=len(rows), picture_bytes=int(sizes[rows].sum())))
            self.picture_bytes += shares[-1].picture_bytes
        taken = verdicts.filter(pc.equal(verdicts["reason"], ""))
        self.contents.update(len(taken).to_bytes(8, "big"))
        for id, digest in zip(taken["id"].to_pylist(), taken["digest"].to_pylist(), strict=True):
            self.contents.update(id.encode() + b"\0" + digest)
        self.mended.update(name for names in taken["mended"].to_pylist() for name in names.split())
        sides = np.minimum(taken["width"].to_numpy(), taken["height"].to_numpy())
        self.sides += np.histogram(sides, SIDES)[0]
        self.words += np.histogram(taken["words"].to_numpy(), WORDS)[0]
        lots = [lot if reason == "" else None for lot, reason in zip(verdicts["lot"].to_pylist(), reasons, strict=True)]
        found = ((lot, key, row) for row, lot in enumerate(lots) if lot is not None)
        self.samples = heapq.nsmallest(SAMPLES, [*self.samples, *found])

    @property
    def records(self) -> int:
        """All that were found."""
        return self.reasons.total()

    @property
    def bad(self) -> int:
        """Those that were damaged."""
        return sum(self.reasons[reason] for reason in BAD)

    def split_records(self, split: str) -> int:
        """Records of a split."""
        return sum(share.records for share in self.shares[split])

    def to_json(self) -> dict[str, Any]:
        """A function of input and settings alone: equal preparations have equal ones."""
        rejected = {reason: self.reasons[reason] for reason in REASONS if self.reasons[reason]}
        return {
            "records": self.records,
            "taken": self.reasons[""],
            "rejected": rejected,
            "bad": self.bad,
            "mended": dict(sorted(self.mended.items())),
            "splits": {split: self.split_records(split) for split in self.shares},
            "picture_bytes": self.picture_bytes,
            "shorter_side_pixels": histogram(SIDES, self.sides),
            "caption_words": histogram(WORDS, self.words),
            "examples": {reason: self.examples[reason] for reason in rejected},
        }


def histogram(edges: tuple[int, ...], counts: np.ndarray) -> dict[str, int]:
    """Counts by their range, written as "64-127"."""
    names = [f"{low}-{high - 1}" if high < 1 << 30 else f"{low}-" for low, high in zip(edges, edges[1:], strict=False)]
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def summarise(keys: Iterable[str], chosen: str, validation: float) -> Summary:
    """Counts all units. Where a share of `validation` would be no picture at all, the lowest lot is held out."""
    keys = list(keys)
    summary = _over(keys, chosen, validation)
    if validation and summary.samples and not summary.split_records(VALIDATION):
        summary = _over(keys, chosen, np.nextafter(summary.samples[0][0], 1))
    return summary


def _over(keys: Iterable[str], chosen: str, held_out_below: float) -> Summary:
    summary = Summary(float(held_out_below))
    for key in keys:
        summary.add(key, tables.read(chosen, key))
    return summary


def rejected_lines(keys: Iterable[str], chosen: str) -> Iterator[str]:
    """CSV of all records that were not taken, or were mended, in the order of units."""
    yield _line("reason", "source", "id", "detail")
    for key in keys:
        table = tables.read(chosen, key, ["reason", "source", "id", "detail", "mended"])
        for row in table.to_pylist():
            if row["reason"]:
                yield _line(row["reason"], row["source"], row["id"], row["detail"])
            elif row["mended"]:
                yield _line("mended", row["source"], row["id"], row["mended"])


def _line(*cells: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
