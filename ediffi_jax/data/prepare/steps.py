"""The three pipelines, each over what is not there yet, and what is left of them for the next run."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence

import apache_beam as beam

from ediffi_jax import stores
from ediffi_jax.data.folders import folder_at, inside
from ediffi_jax.data.prepare import choose, examine, shards, sources, tables
from ediffi_jax.data.prepare.running import Running
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.summary import Summary


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps, and the folders between them.

    Attributes:
        out: folder of the data set.
        wanted: fingerprint of input and settings.
    """

    out: str
    wanted: str

    @property
    def records(self) -> str:
        """Folder of the units' tables."""
        return os.fspath(inside(self.out, "work") / "units")

    @property
    def chosen(self) -> str:
        """Folder of the units' verdicts."""
        return os.fspath(inside(self.out, "work") / "chosen" / self.wanted)

    def examine(self, units: dict[str, sources.Unit], settings: Settings, running: Running) -> tuple[int, float]:
        """Looks at the units that have not been; returns the number of their records, and seconds."""
        folder_at(self.records).make()
        folder_at(self.records).sweep(lambda name: True)
        there = tables.finished(self.records)
        missing = {key: unit for key, unit in units.items() if key not in there}
        if not missing:
            return 0, 0.0
        watch = Watch("examine", self.records, set(missing))
        pipeline = running.pipeline()
        _ = (
            pipeline
            | beam.Create(list(missing.items()), reshuffle=False)
            | beam.Reshuffle()
            | "examine" >> beam.MapTuple(lambda key, unit: examine.examine_into(self.records, key, unit, settings))
        )
        seconds = running.run(pipeline, watch)
        running.say(watch(seconds))
        return watch.records, seconds

    def choose(self, keys: Sequence[str], settings: Settings, running: Running) -> float:
        """Compares all records, unless that has been done; returns seconds."""
        folder_at(self.chosen).make()
        folder_at(self.chosen).sweep(lambda name: True)
        if set(keys) <= tables.finished(self.chosen):
            return 0.0
        pipeline = running.pipeline()
        units = pipeline | beam.Create(list(enumerate(keys)))
        choose.choose(units, records=self.records, out=self.chosen, settings=settings)
        return running.run(pipeline, Watch("choose", self.chosen, set(keys)))

    def write(self, planned: Sequence[shards.Shard], below: float, settings: Settings, running: Running) -> float:
        """Writes the files that are not there; returns seconds."""
        folder_at(self.out).sweep(lambda name: True)
        missing = [shard for shard in planned if folder_at(self.out).size(shard.name) is None]
        if not missing:
            return 0.0
        pipeline = running.pipeline()
        place = {"records": self.records, "chosen": self.chosen, "out": self.out}
        _ = (
            pipeline
            | beam.Create(missing, reshuffle=False)
            | beam.Reshuffle()
            | "write" >> beam.Map(shards.write, held_out_below=below, settings=settings, **place)
        )
        return running.run(pipeline, lambda seconds: f"write: {len(missing)} files, {seconds:.0f} s so far")

    def samples(self, found: Summary) -> list[tuple[bytes, str]]:
        """The pictures of a summary's samples."""
        rows = []
        for _, key, row in found.samples:
            record = tables.read(self.records, key, ["picture", "caption"]).slice(row, 1).to_pylist()[0]
            rows.append((record["picture"], record["caption"]))
        return rows

    def sweep(self, keys: Sequence[str], planned: Sequence[shards.Shard], keep_work: bool) -> None:
        """Removes the files of other data sets than the one that is there now, and work that no longer counts."""
        names = {shard.name for shard in planned}
        for path in inside(self.out, "").glob("pairs_*"):
            if path.name not in names:
                path.unlink(missing_ok=True)
        for path in stores.at(self.records).glob("*.parquet"):
            if path.name.removesuffix(".parquet") not in keys:
                path.unlink(missing_ok=True)
        for path in (inside(self.out, "work") / "chosen").glob("*"):
            if path.name != self.wanted or not keep_work:
                path.rmtree(missing_ok=True)


@dataclasses.dataclass
class Watch:
    """A line of progress from the files that are finished; called with the seconds so far."""

    step: str
    folder: str
    keys: set[str]
    seen: set[str] = dataclasses.field(default_factory=set)
    records: int = 0

    def __call__(self, seconds: float) -> str:
        new = (tables.finished(self.folder) & self.keys) - self.seen
        self.records += sum(tables.count(self.folder, key) for key in new)
        self.seen |= new
        left = seconds * (len(self.keys) - len(self.seen)) / max(1, len(self.seen))
        eta = datetime.timedelta(seconds=round(left)) if self.seen else "?"
        done = f"{len(self.seen)} of {len(self.keys)} units, {self.records} records"
        return f"{self.step}: {done}, {self.records / max(seconds, 1e-3):.1f} records/s, ETA {eta}"
