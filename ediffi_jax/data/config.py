"""The `data` part of a run's config, and the records it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ediffi_jax import errors
from ediffi_jax.data import sources
from ediffi_jax.data.views import LoaderError, Views


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
        captions: phrasings of a scene that training draws from; 0 for a new one each time.
        embeddings: folder of `launch.encode`, instead of encoding in each step; "" for none.
        record_ids: training batches say which records they are made of.
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
        if not self.name:
            example = "--config.data.name=data/pairs, or synthetic for random pictures"
            raise LoaderError(f"config.data.name is missing; expected the path of a TFDS data set's folder: {example}")
        if "/" not in self.name and not self.name.startswith("."):
            choices = errors.nearest(self.name, ("scenes", "synthetic"))
            raise LoaderError(f"unknown data {self.name!r}{choices}, or the path of a TFDS data set's folder")
        return sources.open_tfds(self.name, split)
