"""The encoders of a planned run, with shapes for weights: those on this machine, else the paper's."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp

from ediffi_jax.encoders import MAX_T5_TOKENS, Encoders, checkpoints
from ediffi_jax.encoders.clip import Clip, ClipConfig, ClipTextConfig, ClipVisionConfig
from ediffi_jax.encoders.t5 import T5Config, T5Encoder
from ediffi_jax.encoders.tokenize import TextTokenizer
from ediffi_jax.training.frozen import is_here, load_encoders

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


def planned_encoders(name: str, dtype: str) -> Encoders:
    """What a config's `encoders` means, as training holds it: found here, else those of the paper."""
    if not is_here(name):
        return paper_encoders(jnp.dtype(dtype))
    found = load_encoders(name, weights=False, dtype=dtype)
    towers = {"t5": found.t5, "clip": found.clip}
    towers |= {"vision": found.vision} if found.vision is not found.clip else {}
    shapes_of = {"t5": checkpoints.t5_shapes, "clip": checkpoints.clip_shapes, "vision": checkpoints.clip_shapes}
    params = {
        tower: _shapes(shapes_of[tower](module.config), jnp.dtype(dtype))
        for tower, module in towers.items()
        if module is not None
    }
    return dataclasses.replace(found, params=params)


def paper_encoders(dtype: Any = jnp.bfloat16) -> Encoders:
    """T5-XXL and CLIP ViT-L/14 (eDiff-I, section 4.1), with shapes for weights."""
    found = {"t5": checkpoints.t5_shapes(XXL), "clip": checkpoints.clip_shapes(VIT_L)}
    params = {tower: _shapes(shapes, dtype) for tower, shapes in found.items()}
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


def _shapes(found: dict[Any, tuple[int, ...]], dtype: Any) -> Any:
    """Shapes by path as a tree of parameters."""
    flat = {path: jax.ShapeDtypeStruct(shape, checkpoints.stored_dtype(path, dtype)) for path, shape in found.items()}
    return flax.traverse_util.unflatten_dict(flat)
