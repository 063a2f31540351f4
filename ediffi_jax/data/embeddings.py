"""Embeddings prepared ahead (`launch.encode`): a folder for each split of a data set, read by record number.

    DIR/train/embeddings.json      what they are: of which data, made by which encoders, in which format
    DIR/train/00000.array_record   rows of records 0 .. S - 1, of each record its C captions one after the other
    DIR/train/00000.json           the shard's marker, written last: its size, and what storing cost in accuracy

Record n's caption c is row (n mod S) C + c of shard n div S: whatever the order of the data, a row is found by
arithmetic. A shard counts when its marker is there; one that was being written when the process died has none
and is made again. DIR is a folder, or gs://BUCKET/PREFIX (see `folders`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ediffi_jax.conditioning import ConditioningSpec
from ediffi_jax.data import sources
from ediffi_jax.data.embedding_rows import RowFormat, digest
from ediffi_jax.data.folders import folder_at, inside, is_remote
from ediffi_jax.data.views import LoaderError

FORMAT = 1
DESCRIPTION = "embeddings.json"
SAMPLED = 64  # records that a data set's fingerprint reads
OPEN_SHARDS = 128  # open files are few by default, shards may be thousands
WRITING = "group_size:1,uncompressed"  # each row by itself; embeddings hardly compress
READING = "readahead_buffer_size:0,max_parallelism:0"
REQUESTS = 32  # to an object store at once; each waits for the network
AGAIN = "run the same launch.encode again"


def data_fingerprint(source: sources.Source) -> str:
    """16 hex digits over the number of records and evenly spaced ones: pictures as stored, captions, scenes."""
    found = hashlib.sha256(str(len(source)).encode())
    for record in source.read(sorted(set(np.linspace(0, len(source) - 1, SAMPLED, dtype=int).tolist()))):
        found.update(hashlib.sha256(record.encoded).digest() + digest(record.caption, record.identity))
    return found.hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What the embeddings of a split are; equal descriptions give equal files.

    Attributes:
        encoders: fingerprint of the encoders and their tokenizers.
        compute_dtype: what the encoders computed in.
        data: fingerprint of the records.
        split: their split's own name.
        records: how many of them, from the first on.
        captions: C, phrasings kept of each record.
        source_resolution, clip_resolution: of the pictures that CLIP saw; 0 without pictures.
        shard_records: S.
        rows: how a row is written.
    """

    encoders: str
    compute_dtype: str
    data: str
    split: str
    records: int
    captions: int
    source_resolution: int
    clip_resolution: int
    shard_records: int
    rows: RowFormat

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.records // self.shard_records)

    def shard(self, index: int) -> range:
        """Numbers of the records in a shard."""
        return range(index * self.shard_records, min((index + 1) * self.shard_records, self.records))

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError for anything else."""
        fields = dict(data)
        if fields.pop("format") != FORMAT:
            raise ValueError(f"format {data['format']!r}, expected {FORMAT}")
        rows = dict(fields.pop("rows"))
        return cls(**fields, rows=RowFormat(**{**rows, "spec": ConditioningSpec(**rows["spec"])}))


class Store:
    """The files of one split.

    Attributes:
        folder: where they are, a path or the URL of a prefix in an object store.
        about: what they are.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Description) -> None:
        self._files, self.about = folder_at(folder), about
        self.folder = self._files.path

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """Raises LoaderError: no embeddings there, or a description that cannot be read."""
        try:
            return cls(folder, Description.from_json(json.loads(folder_at(folder).read(DESCRIPTION))))
        except FileNotFoundError as error:
            raise LoaderError(f"no embeddings in {os.fspath(folder)!r}; make them with launch.encode") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LoaderError(f"{inside(folder, DESCRIPTION)} cannot be read: {error}") from error

    @classmethod
    def at(cls, folder: str | os.PathLike[str], about: Description) -> Store:
        """A store to be written, or the one that is there if it is described alike; raises LoaderError if not."""
        store = cls(folder, about)
        with store._writing():
            described = store._files.size(DESCRIPTION) is not None
        if described:
            there = cls.open(folder).about.to_json()
            check_same(there, about.to_json(), f"{os.fspath(folder)!r} holds other embeddings")
        return store

    def make_folder(self) -> None:
        """Raises LoaderError if it cannot be made or written."""
        with self._writing():
            self._files.make()

    def describe(self) -> None:
        """Writes the description if there is none; raises LoaderError if it cannot."""
        with self._writing():
            if self._files.size(DESCRIPTION) is None:
                self._write(DESCRIPTION, json.dumps(self.about.to_json(), indent=1))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LoaderError(f"{os.fspath(self.folder)!r} cannot be written: {error.strerror or error}") from error

    def _write(self, name: str, text: str) -> None:
        self._files.write(name, lambda path: path.write_bytes(f"{text}\n".encode()))

    def path(self, shard: int) -> Path | epath.Path:
        """Of a shard's rows."""
        return self.folder / _rows(shard)

    def fetch(self, shard: int) -> Path:
        """A shard's rows on this machine, copied here if need be; raises LoaderError if they cannot be."""
        return self._files.fetch(_rows(shard), json.dumps(self.about.to_json(), sort_keys=True))

    def marker(self, shard: int) -> dict[str, Any] | None:
        """What is known of a finished shard, None of another; a shard cut off since counts as unfinished."""
        try:
            found = json.loads(self._files.read(_marker(shard)))
            return found if found["bytes"] == self._files.size(_rows(shard)) else None
        except (OSError, ValueError, KeyError):
            return None

    def missing(self, index: int = 0, count: int = 1) -> list[int]:
        """Unfinished shards, of process `index` of `count`: it makes every `count`-th."""
        shards = range(index, self.about.shards, count)
        if not is_remote(self.folder):
            return [shard for shard in shards if self.marker(shard) is None]
        with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
            return [shard for shard, found in zip(shards, pool.map(self.marker, shards), strict=True) if found is None]

    def write(self, shard: int, rows: Sequence[bytes], notes: Mapping[str, Any]) -> None:
        """Writes a shard, and when it is there its marker; raises LoaderError if it cannot."""
        from array_record.python import array_record_module

        def fill(path: Path) -> None:
            writer = array_record_module.ArrayRecordWriter(str(path), WRITING)
            for row in rows:
                writer.write(row)
            writer.close()

        try:
            size = self._files.write(_rows(shard), fill)
            self._write(_marker(shard), json.dumps({"rows": len(rows), "bytes": size, **notes}))
        except (OSError, RuntimeError) as error:
            raise LoaderError(f"{self.path(shard)} cannot be written: {error}") from error

    def sweep(self, index: int = 0, count: int = 1) -> None:
        """Removes what killed processes left of this process's shards."""

        def ours(name: str) -> bool:
            shard = name.split(".")[0]
            return shard.isdigit() and int(shard) % count == index

        self._files.sweep(ours)

    def flaw(self, shard: int) -> str:
        """Why a shard is unfinished, in words."""
        size = self._files.size(_rows(shard))
        if size is not None and self._files.size(_marker(shard)) is not None:
            return f"{self.path(shard)} is cut off or changed: it has {size} bytes; {AGAIN}"
        some = f"{len(self.missing())} of {self.about.shards} shards are missing"
        return f"the embeddings in {os.fspath(self.folder)!r} are not complete: {some}; {AGAIN}"


def _rows(shard: int) -> str:
    return f"{shard:05d}.array_record"


def _marker(shard: int) -> str:
    return f"{shard:05d}.json"


class Reader:
    """Rows of a complete store, by record and caption."""

    def __init__(self, store: Store) -> None:
        """Raises LoaderError: a shard is missing or cut off."""
        self.store = store
        for shard in store.missing():
            raise LoaderError(store.flaw(shard))
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def __getstate__(self) -> Store:
        """Worker processes open the files themselves."""
        return self.store

    def __setstate__(self, store: Store) -> None:
        self.store = store
        self._start()

    def read(self, wanted: Sequence[tuple[int, int]], keys: Sequence[bytes]) -> dict[str, np.ndarray]:
        """One padded batch.

        Args:
            wanted: (record's number, which of its captions).
            keys: the records' digests.

        Returns:
            See `RowFormat.decode`.

        Raises:
            LoaderError: a record that was not encoded, a damaged shard, or a row of another record.
        """
        about = self.store.about
        rows = []
        for number, caption in wanted:
            if not (0 <= number < about.records and 0 <= caption < about.captions):
                held = f"{about.records} records with {about.captions} captions each"
                raise LoaderError(f"no embedding of record {number}, caption {caption}; there are {held}")
            shard, place = divmod(number, about.shard_records)
            rows.append(self._row(shard, place * about.captions + caption))
        return about.rows.decode(rows, keys)

    def _row(self, shard: int, index: int) -> bytes:
        try:
            return self._file(shard).read([index])[0]
        except (RuntimeError, IndexError) as error:
            raise LoaderError(f"{self.store.path(shard)} is damaged; remove it and {AGAIN}") from error

    def _file(self, shard: int) -> Any:
        from array_record.python import array_record_module

        with self._lock:
            if shard not in self._open:
                path = str(self.store.fetch(shard))
                self._open[shard] = array_record_module.ArrayRecordReader(path, READING, file_reader_buffer_size=2**16)
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard]


def captions_of(source: sources.Source, captions: int, training: bool) -> int:
    """How many captions a record has: one, unless training draws from `captions` of them (scenes, several)."""
    return captions if training and source.read([0])[0].varied else 1


def open_reader(
    folder: str,
    source: sources.Source,
    *,
    encoders: str,
    captions: int,
    source_resolution: int,
    clip_resolution: int,
    training: bool,
) -> Reader:
    """The embeddings of a source's split, checked to be what the encoders would give for these data.

    Args:
        folder: of `launch.encode`.
        source: the records.
        encoders: fingerprint of the run's encoders.
        captions, source_resolution, clip_resolution: of the run's `data`.
        training: whether phrasings are drawn.

    Raises:
        LoaderError: no or incomplete embeddings, or those of other encoders, data, pictures or captions.
    """
    store = Store.open(inside(folder, source.split))
    about, where = store.about, f"the embeddings in {os.fspath(store.folder)!r}"
    if about.encoders != encoders:
        raise LoaderError(f"{where} were made by other encoders ({about.encoders}) than config.encoders ({encoders})")
    if about.data != (found := data_fingerprint(source)):
        raise LoaderError(f"{where} were made from other data (fingerprint {about.data}) than config.data ({found})")
    if about.records < len(source):
        raise LoaderError(f"{where} are of the first {about.records} of {len(source)} records; encode without --limit")
    seen = (about.source_resolution, about.clip_resolution)
    if seen != (here := (source_resolution if clip_resolution else 0, clip_resolution)):
        names = "config.data.source_resolution, clip_resolution"
        raise LoaderError(f"{where} are of pictures of {seen[0]} pixels, seen at {seen[1]}; {names} are {here}")
    if about.captions != (wanted := captions_of(source, captions, training)):
        drawn = f"drawn from {wanted}" if wanted else "drawn without end"
        raise LoaderError(
            f"{where} hold {about.captions} captions a record, here they are {drawn}; set config.data.captions="
            f"{about.captions}"
        )
    return Reader(store)


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], what: str, prefix: str = "") -> None:
    """Raises LoaderError naming the first entry in which two descriptions differ."""
    for key in here:
        if isinstance(here[key], Mapping) and isinstance(there.get(key), Mapping):
            check_same(there[key], here[key], what, f"{prefix}{key}.")
        elif there.get(key) != here[key]:
            differ = f"{prefix}{key} is {there.get(key)!r} there and {here[key]!r} here"
            raise LoaderError(f"{what}: {differ}; expected the same, or another folder")
