"""The room's exception."""

from ediffi_jax.errors import UserError


class PaintError(UserError):
    """A painting that cannot be followed: a phrase, a mask, a colour, a weight, or a stage without cross-attention."""
