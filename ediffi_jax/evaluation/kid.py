"""Kernel distance of features (KID, Bińkowski et al. 2018): the unbiased squared MMD of k(x, y) = (xᵀy / d + 1)³.

It is the mean over random subsets of both sides; its spread over them is reported beside it. Being unbiased it may
be negative, and, unlike FID, it does not depend on the number of pictures but for its noise. That holds for sides
drawn independently, but generated and real picture i share their caption: no subset has both.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from ediffi_jax.evaluation.errors import EvaluationError

SUBSETS, SUBSET_SIZE = 100, 1000

Rows = Float[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kid:
    """Mean and standard deviation over subsets, and how many pictures of each side a subset has."""

    mean: float
    std: float
    subset_size: int


def kid(generated: Rows, real: Rows, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0) -> Kid:
    """KID of features, computed in float64.

    Args:
        generated, real: features of both sides.
        subsets: random subsets.
        subset_size: pictures of each, at most all the generated ones and half of the real ones.
        seed: of the subsets.

    Raises:
        EvaluationError: too few pictures for a subset of two.
    """
    size = min(subset_size, len(generated), len(real) // 2)
    if size < 2:
        raise EvaluationError(f"KID of {len(generated)} against {len(real)} pictures; expected at least 2 and 4")
    rng = np.random.default_rng((seed, 0x41D))
    found = []
    for _ in range(subsets):
        ours = rng.choice(len(generated), size, replace=False)
        theirs = rng.choice(np.setdiff1d(np.arange(len(real)), ours), size, replace=False)
        found.append(mmd(np.asarray(generated[ours], np.float64), np.asarray(real[theirs], np.float64)))
    return Kid(mean=float(np.mean(found)), std=float(np.std(found)), subset_size=size)


def mmd(x: Rows, y: Rows) -> float:
    """Unbiased squared MMD of two sets of vectors, not necessarily as many."""
    within = [(_kernel(z, z).sum() - _diagonal(z).sum()) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return float(sum(within) - 2.0 * _kernel(x, y).mean())


def _kernel(x: Rows, y: Rows) -> Float[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _diagonal(x: Rows) -> Float[np.ndarray, "n"]:
    return ((x * x).sum(axis=1) / x.shape[1] + 1.0) ** 3
