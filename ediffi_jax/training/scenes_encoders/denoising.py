"""The T5 encoder by reconstruction: hidden words are named from their neighbours, and every word knows its object.

    L = CE(W h_t, word_t) over hidden positions t  +  w_token L_token(h)

Spans of words are replaced by sentinels (or random words). Captions say most things twice in other words, so that
a hidden word is found only by resolving who is meant. The second term (see `grounding`) asks each word's
feature for its object's colour, shape, place and partner. Both linear heads are thrown away afterwards.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ediffi_jax.encoders.t5 import T5Config, T5Encoder
from ediffi_jax.training.scenes_encoders import grounding
from ediffi_jax.types import Params


def config(*, vocab_size: int, width: int, layers: int) -> T5Config:
    """The tiny T5 encoder: gated GELU, heads of 32 channels."""
    return T5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=max(width // 32, 1),
        feed_forward_proj="gated-gelu",
    )


class DenoisingLoss(nn.Module):
    """The loss of a batch of `corpus.t5_batch`; parameters: `t5`, and the heads beside it."""

    config: T5Config
    token_weight: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss and metrics: accuracy of the hidden words and of the fields."""
        features = T5Encoder(self.config, self.dtype, name="t5")(batch["ids"], batch["mask"])
        words = nn.Dense(self.config.vocab_size, name="words")(features)
        hidden, target = batch["targets"] >= 0, jnp.maximum(batch["targets"], 0)
        total = jnp.maximum(hidden.sum(), 1)
        entropy = optax.softmax_cross_entropy_with_integer_labels(words, target)
        of_word = jnp.where(hidden, entropy, 0).sum() / total
        right = jnp.where(hidden, words.argmax(-1) == target, False).sum() / total
        fields = grounding.TOKEN_FIELDS
        grounded = nn.Dense(sum(fields.values()), name="token")(features)
        of_token, fields_right = grounding.loss(grounded, batch["token_labels"], fields)
        loss = of_word + self.token_weight * of_token
        return loss, {"loss": loss, "word": of_word, "word_right": right, "token": of_token} | fields_right


def unit_channels(t5: Params, features: Float[Array, "n d"]) -> Params:
    """Rescales the last norm so that features have unit std per channel.

    Args:
        t5: parameters of `T5Encoder`.
        features: of many words.
    """
    std = jnp.maximum(features.std(axis=0), 1e-3)
    return {**t5, "final_norm": {"scale": t5["final_norm"]["scale"] / std}}
