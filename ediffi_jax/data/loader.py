"""Batches for training as a pure function of (seed, position).

    position p ──shuffle(seed, p)──▶ record ──decode, shrink, crop──▶ image, low_res, clip_pixels
                                        └────caption(seed, p)──tokenize──▶ t5_ids, clip_ids, masks

The *position* is the number of images of the global order already consumed: an endless sequence of
epochs, each a fresh permutation of all records (Grain's shuffle, random access, nothing stored). The
batch at position p with E experts of B images takes positions p .. p + E·B - 1, expert by expert;
process i of P takes the i-th of P equal parts of each expert's B. So neither the number of
processes, nor of workers, nor where a run was interrupted changes which image is seen when.
"""

from __future__ import annotations

import atexit
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import grain.python as grain
import numpy as np
from absl import flags

from ediffi_jax import errors
from ediffi_jax.data import sources, views
from ediffi_jax.data.views import LoaderError, Views

__all__ = ["DataConfig", "Loader", "LoaderError", "make_loader"]

Batch = dict[str, np.ndarray]
TOKEN_KEYS = ("t5_ids", "t5_mask", "clip_ids", "clip_mask")
ENDLESS = 2**40  # batches; Grain wants a length


class Tokenizer(Protocol):
    """What the loader needs of `encoders.Encoders`."""

    def tokenize(self, prompts: list[str]) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `data` part of a run's config.

    Attributes:
        name: "scenes", "synthetic" (random tensors, no files), or the folder of a TFDS data set.
        dir: where the scenes are kept; "" is a folder in the user's cache.
        resolution: side in pixels of the full picture that the stage makes.
        low_resolution: side of the picture it starts from; 0 for a base model.
        crop: train on crops of this side; 0 for whole pictures.
        source_resolution: side of the stored pictures.
        num_scenes: size of the scenes' train split.
        clip_resolution: side of `clip_pixels`; 0 for none.
        workers: processes that read and decode; 0 for threads in this one.
    """

    name: str = "scenes"
    dir: str = ""
    resolution: int = 64
    low_resolution: int = 0
    crop: int = 0
    source_resolution: int = 64
    num_scenes: int = 100_000
    clip_resolution: int = 32
    workers: int = 0

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> DataConfig:
        """Reads a mapping (a ConfigDict, say); raises `LoaderError` for a key that is not one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in config:
            if key not in known:
                raise LoaderError(f"unknown key data.{key}{errors.nearest(key, known)}")
        return cls(**{key: config[key] for key in config})

    @property
    def views(self) -> Views:
        """The picture sizes, checked. Synthetic pictures have no stored size to agree with."""
        return Views(
            source=self.resolution if self.name == "synthetic" else self.source_resolution,
            resolution=self.resolution,
            low=self.low_resolution,
            crop=self.crop,
            clip=self.clip_resolution,
        )

    def open(self, split: str, prepare: bool) -> sources.Source:
        """The records of a split, written first if they are scenes and missing and `prepare` allows."""
        if self.name == "scenes":
            return sources.open_scenes(self.dir, split, self.source_resolution, self.num_scenes, prepare)
        if "/" not in self.name and not self.name.startswith("."):
            choices = errors.nearest(self.name, ("scenes", "synthetic"))
            raise LoaderError(f"unknown data {self.name!r}{choices}, or the path of a TFDS data set's folder")
        return sources.open_tfds(self.name, split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which positions of the global order are in which place of a batch.

    Attributes:
        num_experts: E.
        batch_size: B, per expert, over all processes.
        process_index, process_count: which equal part of B is ours.
    """

    num_experts: int
    batch_size: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.num_experts < 1 or self.batch_size < 1:
            raise LoaderError(f"need at least one expert and image, got {self.num_experts} and {self.batch_size}")
        if self.batch_size % self.process_count:
            raise LoaderError(f"batch_size {self.batch_size} is not a multiple of the {self.process_count} processes")

    @property
    def images(self) -> int:
        """Images that all processes together take per batch."""
        return self.num_experts * self.batch_size

    @property
    def shape(self) -> tuple[int, int]:
        """(E, B / P): the leading axes of our arrays."""
        return self.num_experts, self.batch_size // self.process_count

    def positions(self, start: int) -> list[int]:
        """Ours in the batch at `start`, expert by expert."""
        experts, rows = self.shape
        first = start + self.process_index * rows
        return [first + e * self.batch_size + b for e in range(experts) for b in range(rows)]


class RecordAssembler:
    """Batches from records; `__call__` is pure and may run in several threads or processes."""

    def __init__(self, source: sources.Source, sizes: Views, layout: Layout, seed: int, training: bool) -> None:
        self.source, self.sizes, self.layout = source, sizes, layout
        self.seed, self.training = seed, training
        order = grain.MapDataset.range(len(source))
        self.order = (order.seed(seed).shuffle() if training else order).repeat(None)

    def __call__(self, start: int) -> tuple[Batch, list[str]]:
        positions = self.layout.positions(start)
        records = self.source.read([self.order[position] for position in positions])
        arrays = {name: np.empty((len(positions), *shape), np.uint8) for name, shape in self.sizes.shapes().items()}
        captions = []
        for row, (position, record) in enumerate(zip(positions, records, strict=True)):
            rng = np.random.default_rng((self.seed, position))
            captions.append(record.rephrased(rng) if self.training else record.caption)
            picture = self.sizes.fit(views.decode(record.encoded))
            for name, view in self.sizes.cut(picture, rng).items():
                arrays[name][row] = view
        shape = self.layout.shape
        return {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}, captions


@dataclasses.dataclass(frozen=True)
class SyntheticAssembler:
    """Random pictures of the right shapes, without files: for measuring and for tests."""

    sizes: Views
    layout: Layout
    seed: int

    def __call__(self, start: int) -> tuple[Batch, list[str]]:
        rng = np.random.default_rng((self.seed, start, self.layout.process_index))
        shapes = self.sizes.shapes().items()
        lead = self.layout.shape
        batch = {name: rng.integers(256, size=(*lead, *shape), dtype=np.uint8) for name, shape in shapes}
        rows = self.layout.shape[0] * self.layout.shape[1]
        return batch, [f"picture number {number}" for number in rng.integers(1000, size=rows)]


class Loader:
    """Batches from any position on, prefetched.

    Attributes:
        layout: how a batch is laid out.
        sizes: the picture sizes.
    """

    def __init__(
        self,
        assemble: RecordAssembler | SyntheticAssembler,
        tokenizer: Tokenizer | None,
        workers: int = 0,
    ) -> None:
        self._assemble, self._tokenizer, self._workers = assemble, tokenizer, workers
        self._lock = threading.Lock()  # the tokenizers' padding state is not made for threads
        self.layout, self.sizes = assemble.layout, assemble.sizes

    def _tokenized(self, assembled: tuple[Batch, list[str]]) -> Batch:
        batch, captions = assembled
        if self._tokenizer is None:
            return batch
        with self._lock:
            tokens = self._tokenizer.tokenize(captions)
        for key in TOKEN_KEYS:
            ids = np.asarray(getattr(tokens, key))
            batch[key] = ids.reshape(*self.layout.shape, *ids.shape[1:])
        return batch

    def batch(self, start: int) -> Batch:
        """The batch at position `start`, see `make_loader` for its keys."""
        if start < 0:
            raise LoaderError(f"a data position is 0 or more, got {start}")
        return self._tokenized(self._assemble(start))

    def captions(self, start: int) -> list[str]:
        """The captions of that batch, expert by expert."""
        return self._assemble(start)[1]

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """The batches at `start`, `start` + E·B, …, without end."""
        if start < 0:
            raise LoaderError(f"a data position is 0 or more, got {start}")
        images = self.layout.images
        starts = grain.MapDataset.range(start, start + ENDLESS * images, images)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain's worker processes read flags of their own
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
            reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            read = starts.map(self._assemble).to_iter_dataset(reading).mp_prefetch(options)
            batches = _closing(iter(read.map(self._tokenized)))
            # Closed before the interpreter tears down the modules that closing needs.
            atexit.register(_close, weakref.ref(batches))
            return batches
        reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return iter(starts.map(self.batch).to_iter_dataset(reading))


def _closing(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; stops Grain's worker processes when it is closed or dropped."""
    try:
        for batch in batches:  # copied, so that nobody keeps the workers' shared memory alive
            yield {name: np.array(array) for name, array in batch.items()}
    finally:
        if hasattr(batches, "close"):  # not in the older versions that we admit
            batches.close()


def _close(reference: weakref.ref) -> None:
    batches = reference()
    if batches is not None:
        batches.close()


def make_loader(
    data_config: Mapping[str, Any],
    *,
    split: str,
    seed: int,
    num_experts: int,
    batch_size: int,
    tokenizer: Tokenizer | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader:
    """The loader of a run.

    Args:
        data_config: the keys of `DataConfig`.
        split: "train" is shuffled and its scenes are captioned anew each time; the others
            (validation or test; of scenes also heldout) come in their stored order and words.
        seed: of order, crops and phrasing, 0 or more.
        num_experts: E.
        batch_size: B, per expert and over all processes.
        tokenizer: the run's encoders; without it there are no token keys.
        process_index, process_count: this process's part.

    Returns:
        A `Loader` whose batches have the keys (b = B / process_count)
            image        uint8 [E, b, H, W, 3]
            low_res      uint8 [E, b, h, w, 3], if there is a low_resolution
            clip_pixels  uint8 [E, b, S, S, 3], if there is a clip_resolution
            t5_ids, clip_ids int32 [E, b, L];  t5_mask, clip_mask bool [E, b, L]

    Raises:
        LoaderError: unknown data, split or key; sizes that do not fit together.
    """
    config = DataConfig.parse(data_config)
    layout = Layout(
        num_experts=num_experts,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )
    if config.name == "synthetic":
        return Loader(SyntheticAssembler(config.views, layout, seed), tokenizer)
    sizes = config.views
    source = config.open(split, prepare=process_count == 1)
    assemble = RecordAssembler(source, sizes, layout, seed, training=split == "train")
    return Loader(assemble, tokenizer, config.workers)
