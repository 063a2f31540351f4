"""Fréchet distance of two Gaussians fitted to features (FID, Heusel et al. 2017), from moments in float64.

    d² = |μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 ‖F₁ᵀ F₂‖_*,   C = F Fᵀ        (the nuclear norm is tr (C₁ C₂)^½)

Features come in float32; means and scatter are added up in float64, batch by batch (Chan et al. 1979), each
batch about its own mean, so nothing is lost to large means or many batches.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.linalg
from jaxtyping import Float

from ediffi_jax.evaluation.errors import EvaluationError

BLOCK = 4096  # vectors in float64 at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and scatter of n vectors, float64.

    Attributes:
        n: vectors.
        mean: [d].
        scatter: [d, d], the sum of (x - mean)(x - mean)ᵀ.
    """

    n: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased; of fewer than two vectors EvaluationError."""
        if self.n < 2:
            raise EvaluationError(f"a covariance of {self.n} pictures; expected at least 2")
        return self.scatter / (self.n - 1)

    @functools.cached_property
    def factor(self) -> Float[np.ndarray, "d r"]:
        """F of covariance = F Fᵀ, one column for each direction in which the vectors differ."""
        values, vectors = scipy.linalg.eigh(self.covariance, check_finite=False)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])

    def merge(self, other: Moments) -> Moments:
        """Of both together."""
        n = self.n + other.n
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n=n, mean=self.mean + shift * (other.n / n), scatter=scatter)


def moments(features: Float[np.ndarray, "n d"], block: int = BLOCK) -> Moments:
    """Of all rows, `block` of them at a time.

    Raises:
        EvaluationError: no row, or a feature that is not finite.
    """
    if not len(features):
        raise EvaluationError("no pictures; expected at least 2")
    if not np.isfinite(features).all():
        raise EvaluationError("a feature is not finite; are the network's weights damaged?")
    parts = (_moments_of_block(features[start : start + block]) for start in range(0, len(features), block))
    return functools.reduce(Moments.merge, parts)


def _moments_of_block(rows: Float[np.ndarray, "b d"]) -> Moments:
    x = np.asarray(rows, np.float64)
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(n=len(x), mean=mean, scatter=centred.T @ centred)


def frechet_distance(a: Moments, b: Moments) -> float:
    """d² of the formula above; at least 0.

    Raises:
        EvaluationError: other numbers of features, or fewer than two pictures.
    """
    if a.mean.shape != b.mean.shape:
        raise EvaluationError(f"{a.mean.size} features against {b.mean.size}; expected those of one network")
    shift = a.mean - b.mean
    # Singular values keep every digit where covariances are singular, as they are with fewer pictures than features.
    overlap = scipy.linalg.svdvals(a.factor.T @ b.factor, check_finite=False).sum()
    return max(0.0, float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * overlap))
