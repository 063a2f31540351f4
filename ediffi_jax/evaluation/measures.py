"""All numbers of one set of generated pictures: FID, KID, CLIP score, precision, recall, and how many are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.frechet import frechet_distance, moments
from ediffi_jax.evaluation.kid import kid
from ediffi_jax.evaluation.precision_recall import precision_recall
from ediffi_jax.evaluation.reference import Reference

LEAST = 10  # pictures; of fewer no distance says anything
RELIABLE = 10_000  # pictures; of fewer FID is too biased to be compared with published values


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What networks say of n pictures.

    Attributes:
        features: of the feature network.
        clip_scores: cosines with the prompts, empty without prompts.
        right: what the judge says, empty without one.
    """

    features: Float[np.ndarray, "n d"]
    clip_scores: Float[np.ndarray, "m"]
    right: Bool[np.ndarray, "k"]

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """One after the other."""
        names = [field.name for field in dataclasses.fields(Rows)]
        return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def check_number(count: int, side: str) -> None:
    """Raises EvaluationError if these are fewer than `LEAST`."""
    if count < LEAST:
        raise EvaluationError(f"{count} {side} pictures are too few to measure; expected at least {LEAST}")


def measure(rows: Rows, reference: Reference) -> dict[str, Any]:
    """n, reference_n, fid, kid, kid_std, kid_subset_size, precision, recall, and clip_score and right or None.

    Raises:
        EvaluationError: fewer than `LEAST` pictures on a side.
    """
    check_number(len(rows.features), "generated")
    check_number(reference.n, "real")
    kernel = kid(rows.features, reference.features)
    manifold = precision_recall(rows.features, reference.features)
    return {
        "n": len(rows.features),
        "reference_n": reference.n,
        "fid": frechet_distance(moments(rows.features), reference.moments),
        "kid": kernel.mean,
        "kid_std": kernel.std,
        "kid_subset_size": kernel.subset_size,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "clip_score": float(np.mean(rows.clip_scores, dtype=np.float64)) if len(rows.clip_scores) else None,
        "right": float(rows.right.mean()) if len(rows.right) else None,
    }
