"""Which visual style a picture of scenes has: a linear classifier of image statistics, fitted on renders alone.

    x = (statistics of colour, edges and spectrum)         standardised on the renders
    p(style | x) ∝ exp(w_style · x + b_style)              linear discriminant, one shared covariance

It knows nothing of the cascade, of CLIP or of captions: it never sees a sampled picture. Renders it is fitted on are
blurred, noised and tinted a little, as samples are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import styles
from ediffi_jax.data.scenes import vocabulary as v

WORK = 128  # pixels at which pictures are analysed
RADII, ANGLES = 8, 4  # bins of the spectrum
SHRINKAGE = 0.02  # of the covariance towards its diagonal

Picture = UInt8[np.ndarray, "r r 3"]
Features = Float[np.ndarray, "n f"]

_BACKGROUND = np.array(list(v.BACKGROUNDS.values()), np.float32)
GROUNDS: dict[str, Float[np.ndarray, "k 3"]] = {  # what each style makes of the plain backgrounds
    "flat": _BACKGROUND,
    "outline": _BACKGROUND + 0.45 * (styles.PAPER - _BACKGROUND),
    "pastel": _BACKGROUND + 0.52 * (255 - _BACKGROUND),
    "neon": _BACKGROUND * 0.16,
    "sketch": _BACKGROUND + 0.72 * (styles.PAPER - _BACKGROUND),
}


def _prepare(picture: Picture) -> Float[np.ndarray, "s s 3"]:
    method = cv2.INTER_AREA if picture.shape[0] >= WORK else cv2.INTER_CUBIC
    return np.clip(cv2.resize(picture.astype(np.float32), (WORK, WORK), interpolation=method), 0, 255)


@functools.cache
def _bins() -> np.ndarray:
    """Of every frequency its bin by radius and angle."""
    u, w = np.meshgrid(*[np.fft.fftfreq(WORK) * WORK] * 2, indexing="ij")
    radius, angle = np.hypot(u, w), np.mod(np.arctan2(u, w), np.pi)
    ring = np.clip((np.log2(np.maximum(radius, 1)) / np.log2(WORK / 2) * RADII).astype(int), 0, RADII - 1)
    return ring * ANGLES + np.mod(np.round(angle / np.pi * ANGLES).astype(int), ANGLES)


def _joints(light: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "4"]:
    """How far the mosaic's frequencies, 1, 2 and 3 periods a tile, stand out of their neighbours on the axes; in all."""
    found = []
    for axis in (0, 1):
        power = np.log((np.abs(np.fft.rfft(light - light.mean(), axis=axis)) ** 2).mean(axis=1 - axis) + 1.0)
        tones = [power[k] - np.median(power[[k - 3, k - 2, k + 2, k + 3]]) for k in (16, 32, 48)]
        found.append(tones)
    least = np.min(found, axis=0)
    return np.append(least, least.sum())


def _ground(image: Float[np.ndarray, "s s 3"]) -> Float[np.ndarray, "g"]:
    """How near the picture's edges are to what each style makes of the backgrounds, 1 at them."""
    edges = [np.median(image[:4], axis=(0, 1)), np.median(image[-4:], axis=(0, 1))]
    near = [[np.linalg.norm(colours - edge, axis=1).min() for colours in GROUNDS.values()] for edge in edges]
    near = np.sort(near, axis=0)
    wide, narrow = (np.exp(-0.5 * (near / width) ** 2).ravel() for width in (12, 5))
    return np.concatenate([wide, narrow, *edges, [edges[0].min(), edges[1].min()]])


def features(picture: Picture) -> Float[np.ndarray, "f"]:
    """The statistics of one square RGB picture, at any resolution from 64."""
    image = _prepare(picture)
    lab = cv2.cvtColor(image / 255, cv2.COLOR_RGB2LAB)
    light, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    window = np.hanning(WORK)[:, None] * np.hanning(WORK)[None]
    power = np.abs(np.fft.fft2((light - light.mean()) * window)) ** 2 + 1.0
    spectrum = np.log(np.bincount(_bins().ravel(), power.ravel(), RADII * ANGLES))
    pale = np.linalg.norm(image - styles.PAPER, axis=-1)
    slope = np.hypot(cv2.Sobel(light, -1, 1, 0), cv2.Sobel(light, -1, 0, 1))
    levels = (1, 5, 25, 50, 75, 95, 99)
    return np.concatenate([
        *(np.percentile(values, levels) for values in (light, chroma, image.min(axis=-1), image.max(axis=-1), pale)),
        np.log1p(np.percentile(slope, levels[2:])), _joints(light), _ground(image),
        spectrum - spectrum.mean(), [spectrum.mean()],
    ])  # fmt: skip


def worn(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture a little blurred, noised and tinted, as samples are: at most 1/170 of its side, 5 and 6 of 255."""
    side = picture.shape[0]
    blurred = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), max(0.1, rng.uniform(0, 1.5) * side / 256))
    tint = cv2.resize(rng.normal(0, rng.uniform(0, 6), (3, 3, 3)).astype(np.float32), (side, side))
    noise = rng.normal(0, rng.uniform(0, 5), picture.shape)
    return np.clip(blurred + tint + noise + 0.5, 0, 255).astype(np.uint8)


def renders(number: int, seed: int, resolution: int = WORK) -> tuple[list[Picture], list[str]]:
    """`number` renders of every style, of random scenes, and their styles."""
    rng = np.random.default_rng((seed, 0x57F1E))
    pictures, names = [], []
    for style in v.STYLES:
        for _ in range(number):
            scene = dataclasses.replace(scenes.sample_scene(rng), style=style)
            pictures.append(scenes.render(scene, resolution))
            names.append(style)
    return pictures, names


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StyleClassifier:
    """Linear discriminant; see the top of this module.

    Attributes:
        mean, scale: that standardise the features.
        weights, bias: of the styles, in the order of `vocabulary.STYLES`.
    """

    mean: Float[np.ndarray, "f"]
    scale: Float[np.ndarray, "f"]
    weights: Float[np.ndarray, "styles f"]
    bias: Float[np.ndarray, "styles"]

    def scores(self, pictures: Sequence[Picture]) -> Float[np.ndarray, "n styles"]:
        """Logits of the styles; pictures are uint8 RGB, square, at any resolution from 64."""
        rows = np.stack([features(picture) for picture in pictures])
        return (rows - self.mean) / self.scale @ self.weights.T + self.bias

    def __call__(self, pictures: Sequence[Picture]) -> list[str]:
        """The style of each picture."""
        return [v.STYLES[index] for index in self.scores(pictures).argmax(axis=1)]


def fit(rows: Features, labels: Sequence[str]) -> StyleClassifier:
    """Class means under one covariance, shrunk towards its diagonal; equal priors."""
    index = np.array([v.STYLES.index(label) for label in labels])
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    x = (rows - mean) / scale
    centres = np.stack([x[index == k].mean(axis=0) for k in range(len(v.STYLES))])
    within = np.cov((x - centres[index]).T)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * np.diag(np.diag(within) + 1e-3)
    weights = np.linalg.solve(within, centres.T).T
    return StyleClassifier(mean=mean, scale=scale, weights=weights, bias=-0.5 * (weights * centres).sum(axis=1))


@functools.cache
def trained(number: int = 80, seed: int = 0) -> StyleClassifier:
    """The classifier fitted on `number` renders of every style, each clean and worn."""
    pictures, names = renders(number, seed)
    rng = np.random.default_rng((seed, 0x0117))
    rows = [features(picture) for picture in [*pictures, *(worn(picture, rng) for picture in pictures)]]
    return fit(np.stack(rows), names * 2)
