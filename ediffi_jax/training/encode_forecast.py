"""What preparing embeddings will take, before it starts: bytes from captions' lengths, time from a few batches.

    bytes = rows * (mean row + what ArrayRecord adds),   seconds = compiling + captions * max(reading, encoding)
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from ediffi_jax.data.views import LoaderError
from ediffi_jax.training.embedder import Embedder
from ediffi_jax.training.encode_shards import Part, rows_of

SAMPLE = 1024  # captions whose lengths are counted
TIMED = 4  # batches whose encoding is timed
BLOCK, BLOCK_HEADER, RECORD = 65536, 24, 64  # bytes of ArrayRecord: whole blocks, the last of them the file's index
MARGIN = 1.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of what is still to be made of one split by this process.

    Attributes:
        split, records, captions: how much of what.
        t5, clip: (mean, 95th percentile, longest, room) of the captions' lengths in tokens.
        size: bytes.
        compiling: seconds before the first batch.
        rate: captions per second after that.
    """

    split: str
    records: int
    captions: int
    t5: tuple[float, float, int, int]
    clip: tuple[float, float, int, int]
    size: float
    compiling: float
    rate: float

    @classmethod
    def measure(cls, part: Part, embedder: Embedder, shards: Sequence[int]) -> Forecast:
        """Reads a sample of the records, encodes a few batches twice, and times the second time."""
        about = part.store.about
        records = sum(len(about.shard(shard)) for shard in shards)
        count = max(SAMPLE, TIMED * embedder.batch_size) // about.captions + 1
        numbers = sorted(set(np.linspace(0, about.records - 1, count, dtype=int).tolist()))
        began = time.monotonic()
        material = part.gather(numbers)
        reading = (time.monotonic() - began) / len(material.keys)
        tokens = [mask.sum(1) for mask in (material.tokens.t5_mask, material.tokens.clip_mask)]
        room = [mask.shape[1] for mask in (material.tokens.t5_mask, material.tokens.clip_mask)]
        lengths = [(n.mean(), np.percentile(n, 95), n.max(), most) for n, most in zip(tokens, room, strict=True)]
        kept = -(-TIMED * embedder.batch_size // about.captions)
        rows = min(kept, len(numbers)) * about.captions
        few = dataclasses.replace(
            material,
            keys=material.keys[:rows],
            tokens=jax.tree.map(lambda x: x[:rows], material.tokens),
            pixels=None if material.pixels is None else material.pixels[:kept],
        )
        seconds = []
        for _ in range(2 if shards else 0):
            began = time.monotonic()
            rows_of(few, embedder)
            seconds.append(time.monotonic() - began)
        mean = about.rows.row_bytes(lengths[0][0], lengths[1][0])
        stored = records * about.captions * (mean * (1 + BLOCK_HEADER / BLOCK) + RECORD)
        return cls(
            split=about.split,
            records=records,
            captions=records * about.captions,
            t5=lengths[0],
            clip=lengths[1],
            size=stored + len(shards) * 1.5 * BLOCK,
            compiling=max(0.0, seconds[0] - seconds[1]) if seconds else 0.0,
            rate=1 / max(reading, seconds[1] / rows) if seconds else float("inf"),
        )

    def lines(self) -> Iterator[str]:
        """The forecast in words."""
        if not self.captions:
            return
        yield f"{self.split}: {self.records} records, {self.captions} captions still to be encoded"
        for name, (mean, most, longest, room) in (("T5", self.t5), ("CLIP", self.clip)):
            if room:
                usual = f"{mean:.1f} on average, 95 % up to {most:.0f}"
                yield f"{self.split}: {name} tokens {usual}, longest {longest} of {room}"
        seconds = round(self.captions / self.rate)
        yield (
            f"{self.split}: forecast {amount(self.size)} ({amount(self.size / self.captions)} a caption) in"
            f" {datetime.timedelta(seconds=seconds)} at {self.rate:.0f} captions/s, compiled in {self.compiling:.0f} s"
        )


def amount(size: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def check_room(out: Path, forecasts: Sequence[Forecast], int8: bool) -> None:
    """Raises LoaderError if the disk has less room than the forecast."""
    needed = MARGIN * sum(forecast.size for forecast in forecasts)
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        hint = "" if int8 else ", or store tokens as --int8"
        raise LoaderError(f"--out={out}: {amount(needed)} are needed and {amount(free)} are free; make room{hint}")
