"""Which images make a batch, and the batch made of them: pure functions of (seed, position).

The batch at position p with E experts of B images takes positions p .. p + E·B - 1, expert by expert. With
several processes each makes the images that its devices hold: some of the experts, of each of them some parts of B.
A process's devices need not stand side by side in the mesh (on a TPU's torus they seldom do), nor do its parts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from ediffi_jax.data import sources
from ediffi_jax.data.degrade import Degrader
from ediffi_jax.data.embedding_rows import digest
from ediffi_jax.data.embeddings import Reader
from ediffi_jax.data.mixture import Order
from ediffi_jax.data.replacement import ATTEMPTS, Replaced, read_each, substitute
from ediffi_jax.data.views import LoaderError, Picture, Views

Batch = dict[str, np.ndarray]
RECORD_ID = "record_id"
Assembled = tuple[Batch, list[str], list[Replaced]]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """The records of a split, and their embeddings if they were prepared.

    Attributes:
        name: as the config has it.
        source: the records.
        weight: how often they come, relative to the other data sets of a mixture.
        embeddings: by number of the record.
    """

    name: str
    source: sources.Source
    weight: Fraction = Fraction(1)
    embeddings: Reader | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A usable record for a position: of which data set, its number there, and its picture at the source resolution."""

    which: int
    number: int
    record: sources.Record
    picture: Picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordAssembler:
    """Batches from records; `__call__` is pure and may run in several threads or processes.

    Attributes:
        data: the data sets, all of them with embeddings of one format or none.
        sizes: of the pictures.
        layout: how a batch is laid out.
        seed: of order, crops, flips and phrasing.
        training: whether records are shuffled, captions phrased anew and pictures flipped.
        captions: phrasings to draw from, 0 for no end of them.
        flip: whether half of the pictures are mirrored; never scenes, whose captions say left and right.
        record_ids: whether training batches say which records they are made of.
        degrader: what is done to the low-resolution pictures, None for nothing.
    """

    data: Sequence[DataSet]
    sizes: Views
    layout: Layout
    seed: int
    training: bool
    captions: int = 0
    flip: bool = False
    record_ids: bool = False
    degrader: Degrader | None = None

    @functools.cached_property
    def order(self) -> Order:
        """Which record stands where."""
        sizes = tuple(len(data.source) for data in self.data)
        weights = tuple(data.weight for data in self.data)
        return Order(sizes=sizes, weights=weights, seed=self.seed, shuffled=self.training)

    @property
    def pictures(self) -> bool:
        """Whether CLIP sees pictures."""
        prepared = self.data[0].embeddings
        return self.sizes.clip > 0 if prepared is None else prepared.store.about.rows.pictures

    def __call__(self, start: int) -> Assembled:
        """The arrays [E, b, ...] at position `start`, their captions, expert by expert, and what was replaced."""
        positions = self.layout.positions(start)
        arrays = {name: np.empty((len(positions), *shape), np.uint8) for name, shape in self.sizes.shapes().items()}
        captions: list[str] = []
        replaced: list[Replaced] = []
        rows, needs_image = [], []
        for row, (position, sample) in enumerate(zip(positions, self._samples(positions, replaced), strict=True)):
            rng = np.random.default_rng((self.seed, position))
            record, drawn = sample.record, self.training and self.captions and sample.record.varied
            chosen = int(rng.integers(self.captions)) if drawn else 0
            captions.append(self._caption(record if self.pictures else record.named(), sample.number, chosen, rng))
            rows.append((sample.which, sample.number, chosen, digest(record.caption, record.identity)))
            needs_image.append(record.needs_image)
            cut = self.sizes.cut(sample.picture, rng)
            if self.degrader is not None:
                cut["low_res"] = self.degrader(cut["image"], cut["low_res"], self.seed, position)
            mirrored = self.flip and self.training and not record.scene and rng.random() < 0.5
            for name, view in cut.items():
                arrays[name][row] = view[:, ::-1] if mirrored else view
        arrays |= self._embeddings(rows)
        if self.training and self.pictures:
            arrays["needs_image"] = np.array(needs_image)
        if self.training and self.record_ids:
            arrays[RECORD_ID] = np.array([self.order.first(which) + number for which, number, *_ in rows])
        shape = self.layout.shape
        batch = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
        return batch, captions, replaced

    def _samples(self, positions: Sequence[int], replaced: list[Replaced]) -> Iterator[Sample]:
        """One for each position; what could not be used is added to `replaced`."""
        places = [self.order(position) for position in positions]
        found: dict[tuple[int, int], sources.Record | LoaderError] = {}
        for which, data in enumerate(self.data):
            numbers = sorted({number for owner, number in places if owner == which})
            found |= zip([(which, number) for number in numbers], read_each(data.source, numbers), strict=True)
        for position, (which, number) in zip(positions, places, strict=True):
            yield self._usable(position, which, number, found[which, number], replaced)

    def _usable(
        self, position: int, which: int, number: int, found: sources.Record | LoaderError, replaced: list[Replaced]
    ) -> Sample:
        """The record of a position, or the first that can be used in its place."""
        data = self.data[which]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if isinstance(found, LoaderError):
                    raise found
                picture = self.sizes.read(found.encoded)
                return Sample(which=which, number=number, record=found, picture=picture)
            except LoaderError as error:
                known = "" if isinstance(found, LoaderError) else found.id
                replaced.append(Replaced(data=data.name, number=number, id=known, reason=str(error)))
            number = substitute(self.seed, position, attempt, len(data.source))
            found = read_each(data.source, [number])[0]
        raise LoaderError(f"{ATTEMPTS} records in a row cannot be used; the last was {replaced[-1]}")

    def _embeddings(self, rows: Sequence[tuple[int, int, int, bytes]]) -> Batch:
        """The prepared embeddings of (data set, record, caption, digest), each from its own data set's."""
        arrays: Batch = {}
        for which, data in enumerate(self.data):
            mine = [row for row, (owner, *_) in enumerate(rows) if owner == which]
            if data.embeddings is None or not mine:
                continue
            wanted = [rows[row][1:3] for row in mine]
            for name, values in data.embeddings.read(wanted, [rows[row][3] for row in mine]).items():
                arrays.setdefault(name, np.zeros((len(rows), *values.shape[1:]), values.dtype))[mine] = values
        return arrays

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

    def __call__(self, start: int) -> Assembled:
        """The arrays [E, b, ...] at position `start` and their captions, expert by expert; nothing is replaced."""
        positions = self.layout.positions(start)
        draws = [np.random.default_rng((self.seed, position)) for position in positions]
        batch = {RECORD_ID: np.array(positions).reshape(self.layout.shape)} if self.record_ids else {}
        for name, shape in self.sizes.shapes().items():
            rows = np.stack([rng.integers(256, size=shape, dtype=np.uint8) for rng in draws])
            batch[name] = rows.reshape(*self.layout.shape, *shape)
        return batch, [f"picture number {rng.integers(1000)}" for rng in draws], []
