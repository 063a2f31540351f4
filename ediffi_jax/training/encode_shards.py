"""One shard of prepared embeddings, from records to rows; and a split's shards one after the other.

    records --phrasings, tokens, pictures--> Material --Embedder--> rows --> shard, committed when it is whole

Reading the next shard's records and tokenising them goes on beside the encoding of this one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from ediffi_jax.data import sources, views
from ediffi_jax.data.embedding_rows import SEQUENCES, digest
from ediffi_jax.data.embeddings import Store
from ediffi_jax.encoders import Encoders, Tokens
from ediffi_jax.training.embedder import Embedder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """What a shard is made from: per caption its record's digest and its tokens, per record its picture."""

    keys: list[bytes]
    tokens: Tokens
    pixels: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One split to be prepared.

    Attributes:
        source: its records.
        store: where its shards go.
        training: whether its scenes have phrasings.
        sizes: of the pictures that CLIP sees.
        encoders: that tokenise; their weights are not needed here.
    """

    source: sources.Source
    store: Store
    training: bool
    sizes: views.Views
    encoders: Encoders

    def gather(self, numbers: Sequence[int]) -> Material:
        """Reads the records of these numbers."""
        records = self.source.read(list(numbers))
        count, pictures = self.store.about.captions, self.store.about.rows.pictures
        texts = [
            (record if pictures else record.named()).phrasing(number, index) if self.training else record.caption
            for number, record in zip(numbers, records, strict=True)
            for index in range(count)
        ]
        pixels = None
        if pictures:
            pairs = zip(numbers, records, strict=True)
            pixels = np.stack([self._picture(number, record) for number, record in pairs])
        keys = [digest(record.caption, record.identity) for record in records for _ in range(count)]
        return Material(keys=keys, tokens=self.encoders.tokenize(texts), pixels=pixels)

    def _picture(self, number: int, record: sources.Record) -> views.Picture:
        """What CLIP sees; black if it cannot be used: training then takes another record and reads no row of this."""
        try:
            return views.shrink(self.sizes.read(record.encoded), self.sizes.clip)
        except views.LoaderError as error:
            logging.warning("record %d %s cannot be used: %s", number, record.id, error)
            return np.zeros((self.sizes.clip, self.sizes.clip, 3), np.uint8)


def rows_of(material: Material, embedder: Embedder) -> tuple[list[bytes], dict[str, Any]]:
    """The rows of a shard in their order, and what is noted of it: tokens, and the error of storing them."""
    rows: list[bytes] = [b""] * len(material.keys)
    each = len(material.keys) // len(material.pixels) if material.pixels is not None else 1
    seen = embedder.pictures(material.pixels) if material.pixels is not None else None
    tokens = dict.fromkeys(SEQUENCES, 0)
    errors = np.zeros((len(rows), len(SEQUENCES), 3))
    for number, arrays in embedder.captions(material.tokens):
        if seen is not None:
            arrays["clip_image"] = seen[number // each]
        rows[number] = embedder.rows.encode(material.keys[number], arrays)
        for index, name in enumerate(SEQUENCES):
            tokens[name] += len(arrays[name])
            errors[number, index] = arrays[f"{name}_error"]
    lost, held = errors[..., 0].sum(0), errors[..., 1].sum(0)
    worst = errors[..., 2].max(0)
    noted = {
        name: {"tokens": tokens[name], "lost": lost[i], "held": held[i], "worst": worst[i]}
        for i, name in enumerate(SEQUENCES)
    }
    return rows, noted


def run(part: Part, embedder: Embedder, shards: Sequence[int], say: Callable[[str], None]) -> None:
    """Makes the given shards of a split, one after the other."""
    about = part.store.about
    began, done = time.monotonic(), 0
    total = sum(len(about.shard(shard)) for shard in shards) * about.captions
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(part.gather, about.shard(shards[0])) if shards else None
        for index, shard in enumerate(shards):
            material = upcoming.result()
            if index + 1 < len(shards):
                upcoming = ahead.submit(part.gather, about.shard(shards[index + 1]))
            part.store.write(shard, *rows_of(material, embedder))
            done += len(material.keys)
            rate = done / (time.monotonic() - began)
            left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate))
            say(f"{about.split}: shard {shard:05d} written, {done}/{total} captions, {rate:.0f}/s, {left} left")
