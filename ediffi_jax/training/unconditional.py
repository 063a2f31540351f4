"""No encoders at all (`config.encoders = ""`): the model learns p(x) alone, and needs no text and no files."""

from __future__ import annotations

import dataclasses

from jaxtyping import PyTree

from ediffi_jax import conditioning
from ediffi_jax.conditioning import Conditioning, ConditioningSpec


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """Stands where encoders stand; everything it returns is masked out."""

    spec: ConditioningSpec = ConditioningSpec(clip_tokens=1, clip_width=1, pooled_width=1, t5_tokens=1, t5_width=1)
    fingerprint: str = "none"
    params: PyTree = dataclasses.field(default_factory=dict)

    def null(self, batch: int) -> Conditioning:
        """Zeros and False masks for `batch` samples."""
        return conditioning.zeros(batch, self.spec)
