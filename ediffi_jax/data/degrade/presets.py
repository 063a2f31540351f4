"""What is drawn, with which probability and from which range: one degradation, and the two that have names.

Ranges are uniform, both ends included where they count something. Sigmas of blur are in pixels of the picture at that
moment, those of noise in levels of 255.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sinc:
    """A sinc kernel.

    Attributes:
        probability: of using one.
        cutoff: radians a pixel.
        narrow: that of kernels of a side below 13, which cannot ring as far; default `cutoff`.
    """

    probability: float
    cutoff: Range
    narrow: Range | None = None

    def cutoff_of(self, size: int) -> Range:
        """The range for kernels of this side."""
        return self.narrow if self.narrow and size < 13 else self.cutoff


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur:
    """A kernel drawn anew each time.

    Attributes:
        probability: of blurring at all.
        sizes: sides, smallest and largest, odd.
        shapes: probability of each family in `chain.SHAPES`; they add up to 1.
        sigma: of Gaussians and plateaus.
        generalized, plateau: β of those families: half of the time below 1, half of the time above.
        sinc: a sinc kernel in place of these.
    """

    probability: float
    sizes: tuple[int, int]
    shapes: Mapping[str, float]
    sigma: Range
    generalized: Range
    plateau: Range
    sinc: Sinc


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Resizing: up by U(1, range's end), down by U(range's start, 1), or neither."""

    up: float
    down: float
    range: Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise: with probability `gaussian` normal, else Poisson; with probability `gray` the same in all channels.

    Attributes:
        probability: of any.
        gaussian: share of normal noise.
        sigma: its standard deviation, of 255.
        scale: of Poisson noise, see `operations.poisson_noise`.
        gray: share of noise without colour, of either kind.
    """

    probability: float
    gaussian: float
    sigma: Range
    scale: Range
    gray: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jpeg:
    """JPEG with a quality of 1 to 100 drawn from a range of whole numbers."""

    probability: float
    quality: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Blur, resize, noise, JPEG, in this order; the last pass's JPEG takes part in the end's order."""

    blur: Blur
    scale: Scale
    noise: Noise
    jpeg: Jpeg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degradation:
    """Passes one after the other, then the end: half of the time {to the final size, sinc}, JPEG; else JPEG first.

    Attributes:
        passes: at least one. The first scales the high-resolution picture, the others the final size.
        sizes: sides of the final sinc kernel.
        sinc: the final one.
        keep_colour: whether the picture's mean colour is given back to it, so that nobody learns to shift colours.
    """

    passes: tuple[Pass, ...]
    sizes: tuple[int, int]
    sinc: Sinc
    keep_colour: bool = False


_SHAPES = {
    "isotropic": 0.45,
    "anisotropic": 0.25,
    "generalized isotropic": 0.12,
    "generalized anisotropic": 0.03,
    "plateau isotropic": 0.12,
    "plateau anisotropic": 0.03,
}
_STAGE_SINC = Sinc(probability=0.1, cutoff=(math.pi / 5, math.pi), narrow=(math.pi / 3, math.pi))
_FIRST_BLUR = Blur(
    probability=1.0,
    sizes=(7, 21),
    shapes=_SHAPES,
    sigma=(0.2, 3.0),
    generalized=(0.5, 4.0),
    plateau=(1.0, 2.0),
    sinc=_STAGE_SINC,
)

_NO_SINC = Sinc(probability=0.0, cutoff=(math.pi, math.pi))
_NO_NOISE = Noise(probability=0.0, gaussian=1.0, sigma=(0.0, 0.0), scale=(0.0, 0.0), gray=0.0)
_NO_JPEG = Jpeg(probability=0.0, quality=(95, 95))

# The options of Real-ESRGAN's published x4 model.
FULL = Degradation(
    passes=(
        Pass(
            blur=_FIRST_BLUR,
            scale=Scale(up=0.2, down=0.7, range=(0.15, 1.5)),
            noise=Noise(probability=1.0, gaussian=0.5, sigma=(1.0, 30.0), scale=(0.05, 3.0), gray=0.4),
            jpeg=Jpeg(probability=1.0, quality=(30, 95)),
        ),
        Pass(
            blur=dataclasses.replace(_FIRST_BLUR, probability=0.8, sigma=(0.2, 1.5)),
            scale=Scale(up=0.3, down=0.4, range=(0.3, 1.2)),
            noise=Noise(probability=1.0, gaussian=0.5, sigma=(1.0, 25.0), scale=(0.05, 2.5), gray=0.4),
            jpeg=Jpeg(probability=1.0, quality=(30, 95)),
        ),
    ),
    sizes=(7, 21),
    sinc=Sinc(probability=0.8, cutoff=(math.pi / 3, math.pi)),
)

# A base model's pictures are not blurred, not compressed and hardly grainy: what is not right is their edges.
# Resampling on two grids, with and without aliasing, makes such errors; benchmarks/degradation_match.py compares.
CASCADE = Degradation(
    passes=(
        Pass(
            blur=dataclasses.replace(_FIRST_BLUR, probability=0.25, sizes=(3, 7), sigma=(0.2, 1.0), sinc=_NO_SINC),
            scale=Scale(up=0.0, down=0.0, range=(1.0, 1.0)),
            noise=_NO_NOISE,
            jpeg=_NO_JPEG,
        ),
        Pass(
            blur=dataclasses.replace(_FIRST_BLUR, probability=0.0),
            scale=Scale(up=0.6, down=0.2, range=(0.75, 1.5)),
            noise=Noise(probability=1.0, gaussian=0.5, sigma=(0.5, 4.0), scale=(0.02, 0.1), gray=0.4),
            jpeg=_NO_JPEG,
        ),
    ),
    sizes=(3, 7),
    sinc=_NO_SINC,
    keep_colour=True,
)

PRESETS: Mapping[str, Degradation] = {"full": FULL, "cascade": CASCADE}
