"""The exception of this room."""

from ediffi_jax.errors import UserError


class EncoderError(UserError):
    """An encoder's folder, file, tensor, tokenizer or prompt that cannot be used."""
