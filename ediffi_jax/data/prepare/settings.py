"""What decides which records are taken and what becomes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from ediffi_jax import errors
from ediffi_jax.data.prepare.reasons import PrepareError

FORMAT = 1  # raised when the same settings would give other files
FORMATS = ("png", "jpeg")
CAPTIONS = ("first", "all")
# Decided across records, after each has been looked at: changing these decodes nothing anew.
ACROSS = (
    "dedup_exact",
    "duplicate_distance",
    "exclude",
    "exclude_distance",
    "validation",
    "shard_mb",
    "max_bad_fraction",
)
NETWORKS = ("clip", "aesthetic")  # paths of what is known by its contents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Every step of the preparation, and whether it is done.

    Attributes:
        resolution: side of the stored squares, in pixels.
        format: "png", or "jpeg" of `quality` without chroma subsampling.
        quality: of JPEG.
        captions: "first" keeps a record's first caption, "all" lets training draw from all of them.
        caption_key: where captions are: a column, feature or key of JSON; "" for the usual names.
        id_key, image_key: the same for a list's ids and pictures.
        exif_rotation: turn pictures upright.
        colour_profiles: convert embedded profiles to sRGB.
        clean_captions: see `captions.clean`.
        max_pixels: refuse pictures with more, unseen.
        min_side: of the upright picture's shorter side; None for the resolution; 0 for any, smaller ones are enlarged.
        max_aspect: longer side over shorter; 0 for any.
        min_words: of the caption; 0 for any.
        min_clip, min_aesthetic: scores to have, from `clip_key` and `aesthetic_key`; None for any.
        clip: folder or bundled name of a CLIP that scores records without a score; see `scoring`.
        aesthetic: file of an aesthetic predictor on that CLIP.
        clip_key, aesthetic_key: names that scores go by, tried in turn.
        dedup_exact: of pictures with the same bytes keep one.
        duplicate_distance: of pictures whose hashes differ in at most so many of 64 bits keep one; -1 keeps all.
        exclude: files of hashes (see `exclusion`) of pictures to leave out.
        exclude_distance: bits by which a picture may differ from a listed one and still be left out.
        validation: share of the pictures held out, by a hash of their bytes.
        shard_mb: size of the files, MB.
        max_bad_fraction: share of damaged records above which nothing is made.
    """

    resolution: int
    format: str = "png"
    quality: int = 95
    captions: str = "first"
    caption_key: str = ""
    id_key: str = ""
    image_key: str = ""
    exif_rotation: bool = True
    colour_profiles: bool = True
    clean_captions: bool = True
    max_pixels: int = 100_000_000
    min_side: int | None = None
    max_aspect: float = 0
    min_words: int = 1
    min_clip: float | None = None
    min_aesthetic: float | None = None
    clip: str = ""
    aesthetic: str = ""
    clip_key: tuple[str, ...] = ("clip_score", "similarity", "clip_similarity_vitl14", "clip_similarity_vitb32")
    aesthetic_key: tuple[str, ...] = ("aesthetic_score", "aesthetic", "AESTHETIC_SCORE", "aesthetic_score_laion_v2")
    dedup_exact: bool = True
    duplicate_distance: int = 4
    exclude: tuple[str, ...] = ()
    exclude_distance: int = 6
    validation: float = 0.01
    shard_mb: float = 256
    max_bad_fraction: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_side", self.resolution if self.min_side is None else self.min_side)
        for name in ("exclude", "clip_key", "aesthetic_key"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("max_aspect", "min_clip", "min_aesthetic", "validation", "shard_mb", "max_bad_fraction"):
            if getattr(self, name) is not None:  # 0 and 0.0 are one setting, and have one fingerprint
                object.__setattr__(self, name, float(getattr(self, name)))

        def need(fine: bool, name: str, expected: str) -> None:
            if not fine:
                raise PrepareError(f"{name} is {getattr(self, name)!r}; expected {expected}")

        need(8 <= self.resolution <= 4096, "resolution", "8 to 4096 pixels")
        for name, choices in (("format", FORMATS), ("captions", CAPTIONS)):
            if (value := getattr(self, name)) not in choices:
                raise PrepareError(f"unknown {name} {value!r}{errors.nearest(value, choices)}")
        need(1 <= self.quality <= 100, "quality", "1 to 100")
        need(self.max_pixels >= self.resolution**2, "max_pixels", f"at least {self.resolution**2}")
        need(self.min_side >= 0, "min_side", "pixels, or 0 for any")
        need(self.max_aspect == 0 or self.max_aspect >= 1, "max_aspect", "1 or more, or 0 for any")
        for name, least in (("clip", self.min_clip), ("aesthetic", self.min_aesthetic)):
            need(least is not None or not getattr(self, name), name, f"none without min_{name}, which uses it")
        need(self.min_words >= 0, "min_words", "a number of words, or 0 for any")
        need(-1 <= self.duplicate_distance <= 16, "duplicate_distance", "0 to 16 bits, or -1 to keep all")
        need(0 <= self.exclude_distance <= 32, "exclude_distance", "0 to 32 bits")
        need(0 <= self.validation < 1, "validation", "a share below 1, 0 for no split")
        need(self.shard_mb > 0, "shard_mb", "a size")
        need(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "a share from 0 to 1")

    def each(self) -> str:
        """Fingerprint of what is decided for each record alone, less the contents of `NETWORKS`."""
        left_out = (*ACROSS, *NETWORKS)
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        return digest({"format": FORMAT, **fields})

    def across(self) -> dict[str, Any]:
        """What is decided across records, less the limit on damage, which changes no file."""
        return {name: getattr(self, name) for name in ACROSS if name != "max_bad_fraction"}


def digest(value: Any) -> str:
    """16 hex digits that stand for a value of plain types."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
