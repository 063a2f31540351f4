"""What can be wrong with what a user wants measured."""

from __future__ import annotations

from ediffi_jax.errors import UserError


class EvaluationError(UserError):
    """Pictures, captions, weights, reference statistics or a run that cannot be evaluated as asked."""
