"""The `data` part of a run's config, and the records it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ediffi_jax import errors
from ediffi_jax.data import mixture, sources
from ediffi_jax.data.batches import DataSet
from ediffi_jax.data.degrade import Degrader
from ediffi_jax.data.views import LoaderError, Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `data` part of a run's config.

    Attributes:
        name: "scenes", "synthetic" (random tensors, no files), the folder of a TFDS data set, or a mixture of
            such: "NAME:0.7,NAME:0.3".
        dir: where the scenes are kept; "" is a folder in the user's cache.
        resolution: side in pixels of the full picture that the stage makes.
        low_resolution: side of the picture it starts from; 0 for a base model.
        crop: train on crops of this side; 0 for whole pictures.
        source_resolution: side of the stored pictures.
        num_scenes: size of the scenes' train split.
        clip_resolution: side of `clip_pixels`; 0 for none.
        workers: processes that read and decode; 0 for threads in this one.
        captions: phrasings of a scene that training draws from; 0 for a new one each time.
        embeddings: folder of `launch.encode`, instead of encoding in each step; "" for none. For a mixture one
            for each data set, in their order: "FOLDER,FOLDER".
        record_ids: training batches say which records they are made of.
        flip: mirror half of the pictures in training (never scenes). Only for captions without left and right.
        reduced_decode: decode a JPEG of at least eight times `source_resolution` at a half or less of its size.
        max_bad_fraction: share of the images whose records may be unusable, and are replaced, before the run ends.
        degrade: how the low-resolution picture is degraded, a name in `degrade.PRESETS`; "" for not at all.
        degrade_clean: share of the pictures that `degrade` leaves as they are.
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
    captions: int = 0
    embeddings: str = ""
    record_ids: bool = False
    flip: bool = False
    reduced_decode: bool = True
    max_bad_fraction: float = 0.01
    degrade: str = ""
    degrade_clean: float = 0.1

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
            reduced=self.reduced_decode,
        )

    @property
    def degrader(self) -> Degrader | None:
        """What is done to the low-resolution pictures; raises `LoaderError` for a preset or share that cannot be."""
        degrader = Degrader(preset=self.degrade, clean=self.degrade_clean) if self.degrade else None
        if degrader is not None and not self.low_resolution:
            raise LoaderError(
                f"data.degrade={self.degrade!r} is for super-resolution, and data.low_resolution is 0; expected ''"
            )
        return degrader

    @property
    def embeddings_folders(self) -> tuple[str, ...]:
        """The folder of each data set's embeddings, none without. Raises LoaderError if they are not as many."""
        shares = mixture.parse(self.name)
        folders = tuple(folder.strip() for folder in self.embeddings.split(",")) if self.embeddings else ()
        if folders and len(folders) != len(shares):
            raise LoaderError(
                f"data.embeddings={self.embeddings!r} names {len(folders)} folders, data.name {len(shares)} data sets;"
                " expected one folder for each"
            )
        return folders

    def data_sets(self, split: str, prepare: bool) -> list[DataSet]:
        """The data sets of a mixture, or the one there is, without embeddings; see `open`."""
        shares = mixture.parse(self.name)
        for share in shares if len(shares) > 1 else ():
            if share.name == "synthetic":
                raise LoaderError(f"config.data.name={self.name!r}: synthetic pictures cannot be mixed with others")
        sets = []
        for name, weight in ((share.name, share.weight) for share in shares):
            source = dataclasses.replace(self, name=name).open(split, prepare)
            sets.append(DataSet(name=name, source=source, weight=weight))
        return sets

    def open(self, split: str, prepare: bool) -> sources.Source:
        """The records of a split, written first if they are scenes and missing and `prepare` allows.

        Raises:
            LoaderError: a mixture, a data set that is not there or cannot be used, or no such split.
        """
        if len(mixture.parse(self.name)) > 1:
            raise LoaderError(f"config.data.name={self.name!r} is a mixture; expected one data set, each by itself")
        if self.name == "scenes":
            return sources.open_scenes(self.dir, split, self.source_resolution, self.num_scenes, prepare)
        if not self.name:
            example = "--config.data.name=data/pairs, or synthetic for random pictures"
            raise LoaderError(f"config.data.name is missing; expected the path of a TFDS data set's folder: {example}")
        if "/" not in self.name and not self.name.startswith("."):
            choices = errors.nearest(self.name, ("scenes", "synthetic"))
            raise LoaderError(f"unknown data {self.name!r}{choices}, or the path of a TFDS data set's folder")
        return sources.open_tfds(self.name, split)
