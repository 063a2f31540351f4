"""The encoders of a planned run: shapes instead of weights, so that nothing has to be on this machine."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp

from ediffi_jax.encoders import MAX_T5_TOKENS, Encoders, checkpoints
from ediffi_jax.encoders.clip import Clip, ClipConfig, ClipTextConfig, ClipVisionConfig
from ediffi_jax.encoders.t5 import T5Config, T5Encoder
from ediffi_jax.encoders.tokenize import TextTokenizer

XXL = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
VIT_L = ClipConfig(
    text=ClipTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768),
    vision=ClipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    ),
)


def paper_encoders(dtype: Any = jnp.bfloat16) -> Encoders:
    """T5-XXL and CLIP ViT-L/14 (eDiff-I, section 4.1), with shapes for weights."""
    params = {}
    for tower, found in (("t5", checkpoints.t5_shapes(XXL)), ("clip", checkpoints.clip_shapes(VIT_L))):
        flat = {path: jax.ShapeDtypeStruct(shape, checkpoints.stored_dtype(path, dtype)) for path, shape in found.items()}
        params[tower] = flax.traverse_util.unflatten_dict(flat)
    clip = Clip(VIT_L, dtype)
    own = {"backend": None, "end": 1, "pad": 0}
    return Encoders(
        params=params,
        t5=T5Encoder(XXL, dtype),
        clip=clip,
        vision=clip,
        t5_tokenizer=TextTokenizer(name="T5", length=MAX_T5_TOKENS, **own),
        clip_tokenizer=TextTokenizer(name="CLIP", length=77, **own),
        sources={},
    )
