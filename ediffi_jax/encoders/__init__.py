"""Frozen T5 and CLIP encoders in Flax, read from Hugging Face folders."""

from ediffi_jax.encoders.encoders import MAX_T5_TOKENS, Encoders, load
from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.encoders.layout import bundled
from ediffi_jax.encoders.tokenize import Tokens

__all__ = ["MAX_T5_TOKENS", "EncoderError", "Encoders", "Tokens", "bundled", "load"]
