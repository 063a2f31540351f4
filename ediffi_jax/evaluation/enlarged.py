"""Enlarged pictures of scenes, made, and compared model with model: right or wrong, like renders, true to colours.

The distance is the squared Fréchet distance of two Gaussians with diagonal covariance, a feature, over the
standardised statistics of `style_recognition.py`. Intervals are the middle 95 % of bootstrap draws of the pictures, the
same for all models, so that differences between models are paired; those of shares are Wilson's, which say something
also where all pictures are right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from ediffi_jax.cascade import to_uint8
from ediffi_jax.conditioning import Conditioning
from ediffi_jax.data.scenes import Scene, heldout_prompts, render, score
from ediffi_jax.evaluation import style_recognition
from ediffi_jax.evaluation.scenes_accuracy import colour_drift, flat_regions
from ediffi_jax.evaluation.style_recognition import StyleClassifier
from ediffi_jax.stage import Stage, image_keys

Pictures = UInt8[np.ndarray, "n r r 3"]
DRAWS = 2000
NAMES = ("right", "distance", "bias_red", "bias_green", "bias_blue", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of each picture of a model, nan where it cannot be said.

    Attributes:
        right: [n], 1 or 0.
        features: standardised, [n, f].
        bias: colours of flat regions against the picture it was made from, of 255, [n, 3].
        error: mean absolute difference to the true picture, of 255, [n].
    """

    right: Float[np.ndarray, "n"]
    features: Float[np.ndarray, "n f"]
    bias: Float[np.ndarray, "n 3"]
    error: Float[np.ndarray, "n"]


def enlarge(
    stage: Stage, conditioning: Conditioning, low: Pictures, *, seed: int, batch_size: int, index: int = 1
) -> Pictures:
    """Pictures [n, r, r, 3] of a super-resolution stage, each from the noise that a cascade would give it.

    Args:
        stage: of super-resolution.
        conditioning: rows [n, ...].
        low: uint8 [n, r', r', 3].
        seed: of the noise.
        batch_size: pictures at a time.
        index: the stage's place in its cascade; the base's is 0.
    """
    made = []
    for start in range(0, len(low), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(low) - 1)  # one shape, compiled once
        keys = image_keys(np.uint32(seed), rows.astype(np.uint32), stage_index=index)
        cond = jax.tree.map(lambda leaf: leaf[rows], conditioning)  # noqa: B023 (used at once)
        made.append(to_uint8(np.asarray(stage.sample(cond, keys, low_res=low[rows] / np.float32(127.5) - 1))))
    return np.concatenate(made)[: len(low)]


def reference(number: int, seed: int, side: int, standard: StyleClassifier) -> Float[np.ndarray, "n f"]:
    """Standardised features of renders of held-out scenes: what pictures should look like."""
    renders = [render(scene, side) for _, scene in heldout_prompts(number, seed)]
    return (np.stack([style_recognition.features(picture) for picture in renders]) - standard.mean) / standard.scale


def measure(
    pictures: Pictures, scenes: Sequence[Scene], low: Pictures, truth: Pictures | None, standard: StyleClassifier
) -> Measured:
    """Reads pictures of scenes, made from `low`; `standard` is a fitted `StyleClassifier`, for its feature scale."""
    rows = np.stack([style_recognition.features(picture) for picture in pictures])
    pairs = [(a[None], b[None]) for a, b in zip(low, pictures, strict=True)]
    unknown = (np.nan,) * 3
    error = np.full(len(pictures), np.nan)
    if truth is not None:
        error = np.abs(pictures.astype(np.float64) - truth).mean(axis=(1, 2, 3))
    return Measured(
        right=np.array([float(score(picture, scene).all) for picture, scene in zip(pictures, scenes, strict=True)]),
        features=(rows - standard.mean) / standard.scale,
        bias=np.array([colour_drift(a, b).bias if flat_regions(a).any() else unknown for a, b in pairs]),
        error=error,
    )


def distance(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> float:
    """Squared Fréchet distance of two Gaussians with diagonal covariance, a feature."""
    return float(np.mean((a.mean(axis=0) - b.mean(axis=0)) ** 2 + (a.std(axis=0) - b.std(axis=0)) ** 2))


def figures(found: Measured, reference: Float[np.ndarray, "m f"], rows: Int[np.ndarray, "k"]) -> Float[np.ndarray, "6"]:
    """right, distance, bias of red, green and blue, error: of these pictures."""
    known = found.bias[rows][np.isfinite(found.bias[rows]).all(axis=1)]
    bias = known.mean(axis=0) if len(known) else np.full(3, np.nan)
    return np.array(
        [found.right[rows].mean(), distance(found.features[rows], reference), *bias, found.error[rows].mean()]
    )


def wilson(share: float, number: int) -> tuple[float, float]:
    """95 % interval of a share of `number` pictures (Wilson 1927)."""
    z = 1.959964
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2)) / (1 + z**2 / number)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def summarise(measured: Mapping[str, Measured], reference: Float[np.ndarray, "m f"], plain: str) -> dict[str, Any]:
    """Every figure of every model as [value, low, high], and how models differ from the one called `plain`.

    Args:
        measured: by model, all of the same scenes.
        reference: features of what pictures should look like.
        plain: one of them.
    """
    number = len(measured[plain].right)
    rng = np.random.default_rng(0)
    draws = [np.arange(number), *rng.integers(number, size=(DRAWS, number))]
    tables = {name: np.array([figures(found, reference, rows) for rows in draws]) for name, found in measured.items()}

    def interval(table: np.ndarray) -> dict[str, Any]:
        found = {}
        for name, values in zip(NAMES, table.T, strict=True):
            if np.isfinite(values[0]):
                low, high = np.nanpercentile(values[1:], (2.5, 97.5))
                found[name] = [float(values[0]), float(low), float(high)]
        return found

    told = {name: interval(table) for name, table in tables.items()}
    for row in told.values():
        row["right"] = [row["right"][0], *wilson(row["right"][0], number)]
    return told | {
        f"{name} - {plain}": interval(table - tables[plain]) for name, table in tables.items() if name != plain
    }
