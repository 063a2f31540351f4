"""The exception of the models room."""

from __future__ import annotations

from ediffi_jax.errors import UserError


class ModelError(UserError):
    """A network that cannot be built or applied as asked: attribute, resolution, heads, input size."""
