"""Which images make a batch, and the batch made of them: pure functions of (seed, position).

The batch at position p with E experts of B images takes positions p .. p + E·B - 1, expert by expert. With
several processes each makes the images that its devices hold: some of the experts, of each of them some parts of B.
A process's devices need not stand side by side in the mesh (on a TPU's torus they seldom do), nor do its parts.
"""

from __future__ import annotations

import dataclasses

import grain.python as grain
import numpy as np

from ediffi_jax.data import sources, views
from ediffi_jax.data.embedding_rows import digest
from ediffi_jax.data.embeddings import Reader
from ediffi_jax.data.views import LoaderError, Views

Batch = dict[str, np.ndarray]
RECORD_ID = "record_id"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the equal parts of an axis.

    Attributes:
        count: how many parts there are.
        held: which of them, ascending.
    """

    count: int = 1
    held: tuple[int, ...] = (0,)

    def indices(self, size: int) -> list[int]:
        """Those of an axis of `size`, which `count` divides."""
        each = size // self.count
        return [part * each + offset for part in self.held for offset in range(each)]


WHOLE = Part()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which positions of the global order are in which place of a batch.

    Attributes:
        num_experts: E.
        batch_size: B, per expert, over all processes.
        expert_part: which of the experts are ours.
        image_part: which of each one's B images.
    """

    num_experts: int
    batch_size: int
    expert_part: Part = WHOLE
    image_part: Part = WHOLE

    def __post_init__(self) -> None:
        if self.num_experts < 1 or self.batch_size < 1:
            raise LoaderError(f"need at least one expert and image, got {self.num_experts} and {self.batch_size}")
        for what, size, part in (
            ("batch_size", self.batch_size, self.image_part),
            ("num_experts", self.num_experts, self.expert_part),
        ):
            if size % part.count:
                raise LoaderError(f"{what} {size} is not a multiple of the {part.count} parts it is divided into")

    @property
    def images(self) -> int:
        """Images that all processes together take per batch."""
        return self.num_experts * self.batch_size

    @property
    def shape(self) -> tuple[int, int]:
        """(e, b): our experts and images of each, the leading axes of our arrays."""
        return len(self.expert_part.indices(self.num_experts)), len(self.image_part.indices(self.batch_size))

    def positions(self, start: int) -> list[int]:
        """Ours in the batch at `start`, expert by expert."""
        rows = self.image_part.indices(self.batch_size)
        return [start + e * self.batch_size + b for e in self.expert_part.indices(self.num_experts) for b in rows]


class RecordAssembler:
    """Batches from records; `__call__` is pure and may run in several threads or processes."""

    def __init__(
        self,
        source: sources.Source,
        sizes: Views,
        layout: Layout,
        seed: int,
        training: bool,
        captions: int = 0,
        embeddings: Reader | None = None,
        record_ids: bool = False,
    ) -> None:
        self.source, self.sizes, self.layout = source, sizes, layout
        self.seed, self.training, self.captions, self.embeddings = seed, training, captions, embeddings
        self.record_ids = record_ids
        self.pictures = sizes.clip > 0 if embeddings is None else embeddings.store.about.rows.pictures
        order = grain.MapDataset.range(len(source))
        self.order = (order.seed(seed).shuffle() if training else order).repeat(None)

    def __call__(self, start: int) -> tuple[Batch, list[str]]:
        """The arrays [E, b, ...] at position `start` and their captions, expert by expert."""
        positions = self.layout.positions(start)
        numbers = [int(self.order[position]) for position in positions]
        records = self.source.read(numbers)
        arrays = {name: np.empty((len(positions), *shape), np.uint8) for name, shape in self.sizes.shapes().items()}
        captions, chosen = [], []
        for row, (position, record) in enumerate(zip(positions, records, strict=True)):
            rng = np.random.default_rng((self.seed, position))
            chosen.append(int(rng.integers(self.captions)) if self.training and self.captions and record.varied else 0)
            told = record if self.pictures else record.named()
            captions.append(self._caption(told, numbers[row], chosen[row], rng))
            picture = self.sizes.fit(views.decode(record.encoded))
            for name, view in self.sizes.cut(picture, rng).items():
                arrays[name][row] = view
        if self.embeddings is not None:
            keys = [digest(record.caption, record.identity) for record in records]
            arrays |= self.embeddings.read(list(zip(numbers, chosen, strict=True)), keys)
        if self.training and self.pictures:
            arrays["needs_image"] = np.array([record.needs_image for record in records])
        if self.training and self.record_ids:
            arrays[RECORD_ID] = np.array(numbers)
        shape = self.layout.shape
        return {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}, captions

    def _caption(self, record: sources.Record, number: int, chosen: int, rng: np.random.Generator) -> str:
        if not self.training:
            return record.caption
        return record.phrasing(number, chosen) if self.captions else record.rephrased(rng)


@dataclasses.dataclass(frozen=True)
class SyntheticAssembler:
    """Random pictures of the right shapes, without files: for measuring and for tests."""

    sizes: Views
    layout: Layout
    seed: int
    record_ids: bool = False

    def __call__(self, start: int) -> tuple[Batch, list[str]]:
        """The arrays [E, b, ...] at position `start` and their captions, expert by expert."""
        positions = self.layout.positions(start)
        draws = [np.random.default_rng((self.seed, position)) for position in positions]
        batch = {RECORD_ID: np.array(positions).reshape(self.layout.shape)} if self.record_ids else {}
        for name, shape in self.sizes.shapes().items():
            rows = np.stack([rng.integers(256, size=shape, dtype=np.uint8) for rng in draws])
            batch[name] = rows.reshape(*self.layout.shape, *shape)
        return batch, [f"picture number {rng.integers(1000)}" for rng in draws]
