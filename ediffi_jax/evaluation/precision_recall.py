"""Precision and recall of features by k nearest neighbours (Kynkäänniemi et al. 2019).

A set's manifold is the union of balls about its vectors, each reaching to its k-th nearest neighbour in the set.

    precision   share of generated vectors in the manifold of the real ones: how many look real
    recall      share of real vectors in the manifold of the generated ones: how much of what is real is covered
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ediffi_jax.evaluation.errors import EvaluationError

NEIGHBOURS = 3
BLOCK = 4096  # rows of distances at once

Rows = Float[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Shares in [0, 1], and the k of the k-th neighbour."""

    precision: float
    recall: float
    neighbours: int


def precision_recall(generated: Rows, real: Rows, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Both shares.

    Raises:
        EvaluationError: a side has not more vectors than `neighbours`.
    """
    if min(len(generated), len(real)) <= neighbours:
        counts = f"{len(generated)} generated and {len(real)} real pictures"
        raise EvaluationError(f"precision and recall of {counts}; expected more than k = {neighbours} of each")
    # Distances are differences of products: about their common middle the products are small, and float32 is enough.
    middle = np.asarray(real, np.float64).mean(axis=0)
    generated, real = (np.asarray(side - middle, np.float32) for side in (generated, real))
    return PrecisionRecall(
        precision=_share(generated, real, _radii(real, neighbours)),
        recall=_share(real, generated, _radii(generated, neighbours)),
        neighbours=neighbours,
    )


def _squared_distances(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2.0 * products, 0.0)


@jax.jit
def _inside(rows: Array, centres: Array, radii: Array) -> Bool[Array, "n"]:
    return (_squared_distances(rows, centres) <= radii).any(axis=1)


def _blocks(x: Rows) -> Iterator[tuple[int, Rows]]:
    for start in range(0, len(x), BLOCK):
        yield start, x[start : start + BLOCK]


def _radii(x: Rows, neighbours: int) -> Float[np.ndarray, "n"]:
    """Squared distance of each vector to its k-th nearest neighbour other than itself."""
    everything, found = jnp.asarray(x), []
    for start, rows in _blocks(x):
        distances = np.array(_squared_distances(rows, everything))
        distances[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        found.append(np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1])
    return np.concatenate(found)


def _share(rows: Rows, centres: Rows, radii: Float[np.ndarray, "n"]) -> float:
    centres, radii = jnp.asarray(centres), jnp.asarray(radii)
    return float(np.concatenate([_inside(block, centres, radii) for _, block in _blocks(rows)]).mean())
