"""A degradation applied to one picture, everything drawn from one generator.

picture ─▶ [blur ─▶ resize ─▶ noise ─▶ JPEG] ─▶ [blur ─▶ resize ─▶ noise] ─┬▶ to the final size, sinc ─▶ JPEG ─┬▶ 8 bits
                   first pass                          second pass         └▶ JPEG ─▶ to the final size, sinc ─┘
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import UInt8

from ediffi_jax import errors
from ediffi_jax.data.degrade import kernels, operations
from ediffi_jax.data.degrade.kernels import Kernel
from ediffi_jax.data.degrade.operations import Image
from ediffi_jax.data.degrade.presets import PRESETS, Blur, Degradation, Jpeg, Noise, Range, Scale, Sinc
from ediffi_jax.data.views import LoaderError, Picture

STREAM = 0xDE64ADE  # apart from the draws of captions and crops, which it must not change
SHAPES = tuple(
    f"{family}{form}" for family in ("", "generalized ", "plateau ") for form in ("isotropic", "anisotropic")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degrader:
    """What the loader does to low-resolution pictures.

    Attributes:
        preset: of `presets.PRESETS`.
        clean: share of pictures left as they are.
    """

    preset: str
    clean: float = 0.0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            choices = errors.nearest(self.preset, PRESETS)
            raise LoaderError(f"data.degrade={self.preset!r} is unknown{choices}, or '' for none")
        if not 0 <= self.clean <= 1:
            raise LoaderError(f"data.degrade_clean is {self.clean}; expected a share from 0 to 1")

    def __call__(self, picture: Picture, low: Picture, seed: int, position: int) -> Picture:
        """The low-resolution picture at a position of a run's order of images, degraded; a function of these alone.

        Args:
            picture: high-resolution, uint8 [H, W, 3].
            low: the same part of it, reduced, uint8 [h, w, 3].
            seed: of the run.
            position: in the global order.
        """
        rng = np.random.default_rng((seed, position, STREAM))
        if rng.random() < self.clean:
            return low
        return degrade(PRESETS[self.preset], picture, *low.shape[:2], rng)


def degrade(
    degradation: Degradation, picture: Picture, height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """A degraded reduction of a high-resolution picture [H, W, 3] to [height, width, 3]."""
    image, size = picture.astype(np.float32) / 255, picture.shape[:2]
    for stage in degradation.passes[:-1]:
        image = _noised(_scaled(_blurred(image, stage.blur, rng), size, stage.scale, rng), stage.noise, rng)
        image = _compressed(image, stage.jpeg, rng)
        size = height, width
    last = degradation.passes[-1]
    image = _noised(_scaled(_blurred(image, last.blur, rng), size, last.scale, rng), last.noise, rng)
    early = rng.random() < 0.5
    if early:
        image = _compressed(image, last.jpeg, rng)
    image = operations.resize(image, height, width, _resizer(rng))
    if rng.random() < degradation.sinc.probability:
        image = operations.blur(image, draw_sinc(degradation.sinc, _size(degradation.sizes, rng), rng))
    if not early:
        image = _compressed(image, last.jpeg, rng)
    if degradation.keep_colour:
        image = image + (operations.mean_colour(picture) / 255 - operations.mean_colour(image))
    return operations.to_levels(image)


def draw_kernel(blur: Blur, rng: np.random.Generator) -> Kernel:
    """A kernel of one of the families."""
    size = _size(blur.sizes, rng)
    if rng.random() < blur.sinc.probability:
        return draw_sinc(blur.sinc, size, rng)
    shape = str(rng.choice(list(blur.shapes), p=list(blur.shapes.values())))
    sigma, angle = rng.uniform(*blur.sigma), 0.0
    sigmas = sigma, sigma
    if shape.endswith("anisotropic"):
        sigmas, angle = (sigma, rng.uniform(*blur.sigma)), rng.uniform(-np.pi, np.pi)
    if shape.startswith("plateau"):
        return kernels.plateau(size, sigmas, angle, _beta(blur.plateau, rng))
    return kernels.gaussian(size, sigmas, angle, _beta(blur.generalized, rng) if shape.startswith("gen") else 1.0)


def draw_sinc(sinc: Sinc, size: int, rng: np.random.Generator) -> Kernel:
    """A sinc kernel of this side."""
    return kernels.sinc(size, rng.uniform(*sinc.cutoff_of(size)))


def draw_scale(scale: Scale, rng: np.random.Generator) -> float:
    """A factor of the side."""
    draw = rng.random()
    if draw < scale.up:
        return rng.uniform(1, scale.range[1])
    return rng.uniform(scale.range[0], 1) if draw < scale.up + scale.down else 1.0


def _size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(sizes[0] // 2, sizes[1] // 2, endpoint=True)) * 2 + 1


def _beta(beta: Range, rng: np.random.Generator) -> float:
    return rng.uniform(beta[0], 1) if rng.random() < 0.5 else rng.uniform(1, beta[1])


def _resizer(rng: np.random.Generator) -> int:
    return operations.RESIZERS[rng.integers(len(operations.RESIZERS))]


def _blurred(image: Image, blur: Blur, rng: np.random.Generator) -> Image:
    return operations.blur(image, draw_kernel(blur, rng)) if rng.random() < blur.probability else image


def _scaled(image: Image, size: tuple[int, int], scale: Scale, rng: np.random.Generator) -> Image:
    """At a random scale of `size`."""
    factor = draw_scale(scale, rng)
    height, width = (max(1, int(side * factor)) for side in size)
    return operations.resize(image, height, width, _resizer(rng))


def _noised(image: Image, noise: Noise, rng: np.random.Generator) -> Image:
    if rng.random() >= noise.probability:
        return image
    gray = rng.random() < noise.gray
    if rng.random() < noise.gaussian:
        noisy = operations.gaussian_noise(image, rng.uniform(*noise.sigma) / 255, gray, rng)
    else:
        noisy = operations.poisson_noise(image, rng.uniform(*noise.scale), gray, rng)
    return np.clip(noisy, 0, 1)


def _compressed(image: Image, jpeg: Jpeg, rng: np.random.Generator) -> Image:
    if rng.random() >= jpeg.probability:
        return image
    return operations.jpeg(image, int(rng.integers(*jpeg.quality, endpoint=True)))
