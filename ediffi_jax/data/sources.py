"""Where records come from: a TFDS folder read without TensorFlow, the embedded scenes being one of them.

A record is an encoded picture, its caption, and for scenes the JSON that lets a caption be phrased
anew. Records are addressed by number, which is all that a shuffled order needs.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from etils import epath

from ediffi_jax import errors
from ediffi_jax.data import scenes
from ediffi_jax.data.folders import folder_at, is_remote
from ediffi_jax.data.views import LoaderError

# TFDS data sets name the split for choices either way; asked for the one, we take what there is.
HELD_OUT_NAMES = ("validation", "test")
PHRASINGS = 0x5CE7E  # a seed of its own
COPIES = 8  # from an object store at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A stored picture still encoded, its caption, the scene's JSON ("" if it is no scene), and an id if there is one.

    `captions` are all that the picture has, where a data set keeps several; the first of them is `caption`.
    """

    encoded: bytes
    caption: str
    scene: str = ""
    captions: tuple[str, ...] = ()
    id: str = ""

    @property
    def varied(self) -> bool:
        """Whether training draws a caption, and does not always take the stored one."""
        return bool(self.scene or self.captions)

    @property
    def identity(self) -> str:
        """What captions are drawn from, as text."""
        return self.scene or "\n".join(self.captions)

    @property
    def needs_image(self) -> bool:
        """Whether its captions leave to the picture what only it tells: then it is not trained on without."""
        return bool(self.scene) and not scenes.Scene.from_json(self.scene).named_style

    def named(self) -> Record:
        """The record whose captions leave nothing out, for training that sees no picture."""
        if not self.needs_image:
            return self
        scene = dataclasses.replace(scenes.Scene.from_json(self.scene), named_style=True)
        return dataclasses.replace(self, scene=scene.to_json())

    def rephrased(self, rng: np.random.Generator) -> str:
        """A caption drawn anew where the scene is known, or from several, else the stored one."""
        if self.captions:
            return self.captions[int(rng.integers(len(self.captions)))]
        return scenes.caption(scenes.Scene.from_json(self.scene), rng) if self.scene else self.caption

    def phrasing(self, number: int, index: int) -> str:
        """Phrasing `index` of the record called `number`: a function of these two alone."""
        return self.rephrased(np.random.default_rng((PHRASINGS, number, index))) if self.varied else self.caption


class Source(Protocol):
    """Random access to the records of a split."""

    split: str

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """The records of these numbers, in this order; raises LoaderError if one is damaged."""
        ...


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a prepared TFDS data set with the features `image` and `caption`.

    Attributes:
        folder: that holds `dataset_info.json`.
        split: its name there.
    """

    folder: str
    split: str

    @functools.cached_property
    def _data(self) -> Sequence[dict]:
        import tensorflow_datasets as tfds  # a second to import, and only training needs it

        builder = tfds.builder_from_directory(self.folder)
        return builder.as_data_source(self.split, decoders={"image": tfds.decode.SkipDecoding()})

    @functools.cached_property
    def _several(self) -> bool:
        """Whether records have a sequence of captions, as `launch.prepare --captions=all` writes it."""
        import tensorflow_datasets as tfds

        features = self._data.dataset_info.features
        feature = features["captions"] if "captions" in features else None
        return isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Text)

    def __len__(self) -> int:
        return len(self._data)

    def __getstate__(self) -> dict[str, str]:
        """Worker processes open the files themselves."""
        return {"folder": self.folder, "split": self.split}

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """The records of these numbers, in this order; raises LoaderError if one is damaged."""
        try:
            rows = self._data.__getitems__([int(number) for number in numbers])
            return [
                Record(
                    encoded=row["image"],
                    caption=row["caption"].decode(),
                    scene=row["scene"].decode() if "scene" in row else "",
                    captions=tuple(text.decode() for text in row["captions"]) if self._several else (),
                    id=_text(row.get("id", "")),
                )
                for row in rows
            ]
        except (RuntimeError, ValueError) as error:  # ArrayRecord's checksums; a caption that is not UTF-8
            raise LoaderError(f"a stored record is damaged: {str(error).splitlines()[0]}") from error


def _text(value: bytes | str | int) -> str:
    """An id, of whatever type, for people."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def open_tfds(folder: str | os.PathLike[str], split: str) -> TfdsSource:
    """The source of a split of a prepared data set; one in an object store is copied to this machine first.

    Raises:
        LoaderError: no data set there, no such split, or a feature is missing.
    """
    files = folder_at(folder)
    if files.size("dataset_info.json") is None:
        raise LoaderError(f"no prepared data set in {os.fspath(folder)!r}: expected a folder with dataset_info.json")
    import tensorflow_datasets as tfds

    info = files.read("dataset_info.json") if is_remote(folder) else ""
    path = files.path
    if info:
        path = files.fetch("dataset_info.json", info, "data").parent
        files.fetch("features.json", info, "data")
    builder = tfds.builder_from_directory(path)
    missing = {"image", "caption"} - set(builder.info.features)
    if missing:
        raise LoaderError(f"data set {os.fspath(folder)!r} lacks the feature {sorted(missing)[0]!r}")
    names = builder.info.splits
    if split not in names and split in HELD_OUT_NAMES:
        split = next((name for name in HELD_OUT_NAMES if name in names), split)
    if split not in names:
        raise LoaderError(f"data set has no split {split!r}{errors.nearest(split, names)}")
    if names[split].num_examples == 0:
        raise LoaderError(f"split {split!r} of {os.fspath(folder)!r} is empty")
    if info:
        with concurrent.futures.ThreadPoolExecutor(COPIES) as pool:
            list(pool.map(lambda shard: files.fetch(shard, info, "data"), sorted(names[split].filenames)))
    return TfdsSource(os.fspath(path), split)


def open_scenes(dir: str, split: str, resolution: int, num_scenes: int, prepare: bool) -> TfdsSource:
    """The embedded scenes, written below `dir` first if they are not there.

    Args:
        dir: data folder; "" is ``~/.cache/ediffi_jax/data``.
        split: train, validation (or test), heldout.
        resolution: of the stored pictures.
        num_scenes: size of the train split.
        prepare: write them if they are missing (with several processes, only one may).

    Raises:
        LoaderError: missing and not to be prepared, or see `open_tfds`.
    """
    from ediffi_jax.data.scenes import builder

    if is_remote(dir):
        raise LoaderError(f"config.data.dir={dir!r}: scenes are rendered to this machine; expected a folder, or none")
    root = epath.Path(dir or "~/.cache/ediffi_jax/data").expanduser()
    config = builder.ScenesConfig(resolution=resolution, num_scenes=num_scenes)
    folder = builder.location(root, config)
    if prepare:
        builder.prepare(root, config)
    elif not (folder / "dataset_info.json").exists():
        raise LoaderError(f"scenes are not prepared in {os.fspath(folder)!r}: start one process alone first")
    return open_tfds(folder, split)
