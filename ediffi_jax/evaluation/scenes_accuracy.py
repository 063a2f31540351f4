"""How often a cascade draws what a scenes prompt asks for, read back by the exact scorer.

Every prompt gets one picture. A picture is right if the number of objects, both colours, both shapes and
the relation are: `all`. With n prompts a share p has the standard error sqrt(p (1 - p) / n).

*Colour drift* is how far super-resolution moves colours: the final picture, box-averaged to the base's size,
minus the base, over flat regions only (pixels whose 3x3 neighbourhood in the base spans at most `FLAT`
levels in every channel), where averaging is fair.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from ediffi_jax.data.scenes import Scene, score

ATTRIBUTES = ("count", "colours", "shapes", "relation", "all")
FLAT = 12  # of 255

Pictures = UInt8[np.ndarray, "n r r 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of right pictures.

    Attributes:
        number: n, pictures scored.
        shares: attribute -> share in [0, 1].
        by_relation: relation -> (share of pictures all right, number).
    """

    number: int
    shares: Mapping[str, float]
    by_relation: Mapping[str, tuple[float, int]]

    def row(self) -> str:
        """One line: every share in percent with its standard error."""
        cells = (f"{name} {100 * p:.1f} ± {100 * self.error(name):.1f}" for name, p in self.shares.items())
        return f"n={self.number}  " + "  ".join(cells)

    def error(self, attribute: str) -> float:
        """Standard error of a share."""
        p = self.shares[attribute]
        return float(np.sqrt(p * (1 - p) / self.number))


def accuracy(pictures: Pictures, wanted: Sequence[Scene]) -> Accuracy:
    """Scores picture i against scene i."""
    scores = [score(picture, scene) for picture, scene in zip(pictures, wanted, strict=True)]
    shares = {name: float(np.mean([getattr(s, name) for s in scores])) for name in ATTRIBUTES}
    groups = collections.defaultdict(list)
    for scene, s in zip(wanted, scores, strict=True):
        groups[scene.relation or scene.kind].append(s.all)
    by_relation = {name: (float(np.mean(rows)), len(rows)) for name, rows in sorted(groups.items())}
    return Accuracy(number=len(scores), shares=shares, by_relation=by_relation)


def box_average(pictures: Pictures, size: int) -> Float[np.ndarray, "n s s 3"]:
    """Means of whole blocks of pixels: float64 pictures of `size`, which divides their side."""
    n, side, _, channels = pictures.shape
    return pictures.reshape(n, size, side // size, size, side // size, channels).mean(axis=(2, 4))


def flat_regions(pictures: Pictures) -> Bool[np.ndarray, "n r r"]:
    """Where a pixel's 3x3 neighbourhood spans at most `FLAT` levels in every channel."""
    window = (1, 3, 3, 1)
    span = ndimage.maximum_filter(pictures, window).astype(int) - ndimage.minimum_filter(pictures, window)
    return (span <= FLAT).all(axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourDrift:
    """Final minus base on flat regions, in levels of 255: mean absolute error, and bias per channel."""

    absolute: float
    bias: tuple[float, float, float]


def colour_drift(base: Pictures, final: Pictures) -> ColourDrift:
    """Compares the first stage's pictures [n, r, r, 3] with the last one's [n, k r, k r, 3]."""
    difference = (box_average(final, base.shape[1]) - base)[flat_regions(base)]
    return ColourDrift(
        absolute=float(np.abs(difference).mean()),
        bias=tuple(float(value) for value in difference.mean(axis=0)),
    )
