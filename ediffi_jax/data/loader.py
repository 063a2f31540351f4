"""Batches for training as a pure function of (seed, position).

    position p ──turn(p)──▶ data set ──shuffle(seed, p)──▶ record ──decode, shrink, crop──▶ image, low_res, clip_pixels
                                                              │                                └──degrade(seed, p)
                                                              └────caption(seed, p)──tokenize──▶ t5_ids, clip_ids, masks

The *position* is the number of images of the global order already consumed: an endless sequence of
epochs, each a fresh permutation of all records (Grain's shuffle, random access, nothing stored), or of several
such sequences taking turns (`mixture`). A record that cannot be used is replaced (`replacement`). The
batch at position p with E experts of B images takes positions p .. p + E·B - 1, expert by expert;
a process makes the part of it that its devices hold. So neither the number of processes, nor of
workers, nor where a run was interrupted changes which image is seen when.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import cv2
import grain.python as grain
import numpy as np
from absl import flags

from ediffi_jax.data.batches import WHOLE, Assembled, Batch, DataSet, Layout, Part, RecordAssembler, SyntheticAssembler
from ediffi_jax.data.config import DataConfig
from ediffi_jax.data.embeddings import open_reader
from ediffi_jax.data.replacement import Account, Replaced
from ediffi_jax.data.views import LoaderError

__all__ = ["DataConfig", "Layout", "Loader", "LoaderError", "Part", "make_loader"]

TOKEN_KEYS = ("t5_ids", "t5_mask", "clip_ids", "clip_mask")
ENDLESS = 2**40  # batches; Grain wants a length


class Tokenizer(Protocol):
    """What the loader needs of `encoders.Encoders`."""

    fingerprint: str

    def tokenize(self, prompts: list[str]) -> Any: ...


class Loader:
    """Batches from any position on, prefetched.

    Attributes:
        layout: how a batch is laid out.
        sizes: the picture sizes.
        account: of the images that were iterated over, and of the records that could not be used for them.
    """

    def __init__(
        self,
        assemble: RecordAssembler | SyntheticAssembler,
        tokenizer: Tokenizer | None,
        workers: int = 0,
        account: Account | None = None,
    ) -> None:
        self._assemble, self._tokenizer, self._workers = assemble, tokenizer, workers
        self.account = account or Account(1.0)
        self._lock = threading.Lock()  # the tokenizers' padding state is not made for threads
        self.layout, self.sizes = assemble.layout, assemble.sizes

    def _tokenized(self, assembled: Assembled) -> tuple[Batch, list[Replaced]]:
        batch, captions, replaced = assembled
        if self._tokenizer is None:
            return batch, replaced
        with self._lock:
            tokens = self._tokenizer.tokenize(captions)
        for key in TOKEN_KEYS:
            ids = np.asarray(getattr(tokens, key))
            batch[key] = ids.reshape(*self.layout.shape, *ids.shape[1:])
        return batch, replaced

    def _made(self, start: int) -> tuple[Batch, list[Replaced]]:
        return self._tokenized(self._assemble(start))

    def batch(self, start: int) -> Batch:
        """The batch at position `start`, see `make_loader` for its keys."""
        if start < 0:
            raise LoaderError(f"a data position is 0 or more, got {start}")
        return self._made(start)[0]

    def captions(self, start: int) -> list[str]:
        """The captions of that batch, expert by expert."""
        return self._assemble(start)[1]

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """The batches at `start`, `start` + E·B, …, without end. They raise LoaderError if too many records are bad."""
        if start < 0:
            raise LoaderError(f"a data position is 0 or more, got {start}")
        images = self.layout.images
        starts = grain.MapDataset.range(start, start + ENDLESS * images, images)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain's worker processes read flags of their own
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
            reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            read = starts.map(self._assemble).to_iter_dataset(reading).mp_prefetch(options, _one_thread)
            batches = self._accounted(iter(read.map(self._tokenized)))
            # Closed before the interpreter tears down the modules that closing needs.
            atexit.register(_close, weakref.ref(batches))
            return batches
        reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return self._accounted(iter(starts.map(self._made).to_iter_dataset(reading)))

    def _accounted(self, made: Iterator[tuple[Batch, list[Replaced]]]) -> Iterator[Batch]:
        """The batches alone, in their order; the account kept, and Grain's threads or processes stopped at the end."""
        with contextlib.closing(made) if hasattr(made, "close") else contextlib.nullcontext():
            for batch, replaced in made:
                self.account.add(math.prod(self.layout.shape), replaced)
                # From workers copied, so that nobody keeps their shared memory alive.
                yield {name: np.array(array) for name, array in batch.items()} if self._workers else batch


def _one_thread(index: int, count: int) -> None:
    """In a worker process: it is one of `count`, and OpenCV's threads would only wait for each other."""
    del index, count
    cv2.setNumThreads(1)


def _close(reference: weakref.ref) -> None:
    batches = reference()
    if batches is not None:
        with contextlib.suppress(ValueError):  # a thread is drawing from it, and closes it
            batches.close()


def _with_embeddings(data: DataSet, folder: str, first: DataSet | None, **found: Any) -> DataSet:
    """A data set with its embeddings, in the format that the `first` one's have."""
    reader = open_reader(folder, data.source, **found)
    if first is not None and reader.store.about.rows != first.embeddings.store.about.rows:
        raise LoaderError(
            f"the embeddings in {folder!r} are stored otherwise than those of {first.name!r};"
            " expected one --dtype, --int8 and clip_resolution for all data sets of a mixture"
        )
    return dataclasses.replace(data, embeddings=reader)


def make_loader(
    data_config: Mapping[str, Any],
    *,
    split: str,
    seed: int,
    num_experts: int,
    batch_size: int,
    tokenizer: Tokenizer | None = None,
    expert_part: Part = WHOLE,
    image_part: Part = WHOLE,
    prepare: bool = True,
) -> Loader:
    """The loader of a run.

    Args:
        data_config: the keys of `DataConfig`.
        split: "train" is shuffled and its scenes are captioned anew each time; the others
            (validation or test; of scenes also heldout) come in their stored order and words.
        seed: of order, crops and phrasing, in [0, 2^32).
        num_experts: E.
        batch_size: B, per expert and over all processes.
        tokenizer: the run's encoders; without it there are no token keys.
        expert_part: this process's experts, where it has only some.
        image_part: its part of each one's images.
        prepare: whether scenes that are missing are written first, which only one process may do.

    Returns:
        A `Loader` whose batches have the keys (E and b here are our experts and images alone)
            image        uint8 [E, b, H, W, 3]
            low_res      uint8 [E, b, h, w, 3], if there is a low_resolution; degraded as `data.degrade` says
            clip_pixels  uint8 [E, b, S, S, 3], if there is a clip_resolution
            needs_image  bool [E, b], in training with pictures: whether the caption leaves the style to the picture
            record_id    int [E, b], in training with `data.record_ids`: the record's number in the data set,
                         counted on through those of a mixture
            t5_ids, clip_ids int32 [E, b, L];  t5_mask, clip_mask bool [E, b, L]
        or, with `data.embeddings`, instead of pixels and ids those of `embedding_rows.RowFormat.decode`.

    Raises:
        LoaderError: unknown data, split, key or degradation; sizes that do not fit together; a seed out of range;
            embeddings that are not these encoders' of these data.
    """
    if not 0 <= seed < 2**32:
        raise LoaderError(f"seed is {seed}; expected a whole number from 0 to {2**32 - 1}")
    config = DataConfig.parse(data_config)
    layout = Layout(
        num_experts=num_experts,
        batch_size=batch_size,
        expert_part=expert_part,
        image_part=image_part,
    )
    if config.captions < 0:
        raise LoaderError(f"data.captions is {config.captions}; expected a number of phrasings, 0 for no end of them")
    if config.embeddings and (tokenizer is None or config.name == "synthetic"):
        lacking = "config.encoders is empty" if tokenizer is None else "synthetic pictures have none"
        raise LoaderError(f"data.embeddings={config.embeddings!r} cannot be used: {lacking}")
    degrader = config.degrader
    if config.name == "synthetic":  # noise already: not degraded
        return Loader(SyntheticAssembler(config.views, layout, seed, config.record_ids and split == "train"), tokenizer)
    sizes, account = config.views, Account(config.max_bad_fraction)
    folders, training = config.embeddings_folders, split == "train"
    sets = config.data_sets(split, prepare=prepare and layout.shape == (num_experts, batch_size))
    if folders:
        drawn = {name: getattr(config, name) for name in ("captions", "source_resolution", "clip_resolution")}
        found = {"encoders": tokenizer.fingerprint, "training": training, **drawn}
        for index, folder in enumerate(folders):
            sets[index] = _with_embeddings(sets[index], folder, sets[0] if index else None, **found)
        sizes, tokenizer = dataclasses.replace(sizes, clip=0), None
    assemble = RecordAssembler(
        data=sets,
        sizes=sizes,
        layout=layout,
        seed=seed,
        training=training,
        captions=config.captions,
        flip=config.flip,
        record_ids=config.record_ids,
        degrader=degrader,
    )
    if config.flip and folders and assemble.pictures:
        raise LoaderError("data.flip mirrors pictures whose embeddings are prepared; expected data.flip=false")
    return Loader(assemble, tokenizer, config.workers, account)
