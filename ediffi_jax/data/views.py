"""Encoded picture -> the arrays a stage trains on.

    record's picture [S, S] ──box──▶ full [R, R] ──crop──▶ image    [C, C]
                        │               └────box──▶ low ──same crop──▶ low_res [C/f, C/f]
                        └──box──▶ clip_pixels [P, P]    (always the whole picture)

Every reduction is a box average (exact for whole factors), which is antialiased; a crop starts on a
multiple of the factor f, so both crops show the same part to the pixel.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8

from ediffi_jax import errors

Picture = UInt8[np.ndarray, "h w 3"]


class LoaderError(errors.UserError):
    """A data set, split, size or record that the loader cannot use."""


def decode(encoded: bytes) -> Picture:
    """PNG, JPEG or WebP bytes -> uint8 RGB [h, w, 3]; raises `LoaderError` if they are none, cut off or too large."""
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes, or more pixels than OpenCV takes
        picture = None
    if picture is None:
        raise LoaderError(f"a record's picture ({len(encoded)} bytes) is not a readable PNG, JPEG or WebP")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def shrink(picture: Picture, size: int) -> Picture:
    """The box average at `size` pixels; the same array if it has that size."""
    if picture.shape[0] == size and picture.shape[1] == size:
        return picture
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """The sizes of what a stage sees, in pixels.

    Attributes:
        source: of the stored pictures.
        resolution: of the full picture this stage makes; divides `source`.
        low: of the full picture it starts from, 0 for a base model; divides `resolution`.
        crop: side of the part of the full picture to train on, 0 for all of it.
        clip: side of the picture for the CLIP image encoder, 0 for none.
    """

    source: int
    resolution: int
    low: int = 0
    crop: int = 0
    clip: int = 0

    def __post_init__(self) -> None:
        def whole(a: int, b: int) -> bool:
            return b > 0 and a % b == 0

        if not whole(self.source, self.resolution):
            raise LoaderError(
                f"resolution {self.resolution} does not divide source_resolution {self.source}"
            )
        if self.low and not whole(self.resolution, self.low):
            raise LoaderError(
                f"low_resolution {self.low} does not divide resolution {self.resolution}"
            )
        if self.crop and (self.crop > self.resolution or self.crop % self.factor):
            raise LoaderError(
                f"crop {self.crop} must be at most the resolution {self.resolution} and a multiple "
                f"of {self.factor}"
            )

    @property
    def factor(self) -> int:
        """How many times the low-resolution picture is smaller."""
        return self.resolution // self.low if self.low else 1

    @property
    def side(self) -> int:
        """Side of `image`."""
        return self.crop or self.resolution

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """The keys that `cut` gives, with their shapes."""
        sizes = {"image": self.side}
        sizes |= {"low_res": self.side // self.factor} if self.low else {}
        sizes |= {"clip_pixels": self.clip} if self.clip else {}
        return {name: (size, size, 3) for name, size in sizes.items()}

    def fit(self, picture: Picture) -> Picture:
        """The centre square of a stored picture at the source resolution; raises `LoaderError` if it is smaller."""
        if picture.shape[:2] == (self.source, self.source):
            return picture
        height, width = picture.shape[:2]
        side = min(height, width)
        if side < self.source:
            raise LoaderError(f"a stored picture has {height}x{width} pixels; source_resolution is {self.source}")
        top, left = (height - side) // 2, (width - side) // 2
        return shrink(picture[top : top + side, left : left + side], self.source)

    def cut(self, picture: Picture, rng: np.random.Generator) -> dict[str, Picture]:
        """One stored picture -> the arrays of `shapes`; `rng` places the crop."""
        image = shrink(picture, self.resolution)
        if self.crop and self.crop < self.resolution:
            steps = (self.resolution - self.crop) // self.factor + 1
            y, x = rng.integers(steps, size=2) * self.factor
            image = image[y : y + self.crop, x : x + self.crop]
        views = {"image": image}
        if self.low:
            views["low_res"] = shrink(image, self.side // self.factor)
        if self.clip:
            views["clip_pixels"] = shrink(picture, self.clip)
        return views
