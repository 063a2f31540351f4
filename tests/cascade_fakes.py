"""A cascade in miniature with random weights: real encoders' files, three stages, four experts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ediffi_jax import encoders, release
from ediffi_jax.encoders import build_tokenizers, checkpoints
from ediffi_jax.encoders.clip import Clip, ClipConfig, ClipTextConfig, ClipVisionConfig
from ediffi_jax.encoders.t5 import T5Config, T5Encoder
from ediffi_jax.release import Release, SamplerSpec, StageSpec

CAPTIONS = ["a red circle left of a blue square", "two green stars on a gray background", "a yellow ring inside it"]
SIZES = {"channels": 8, "channel_mults": [1, 2], "blocks": 1, "head_channels": 8, "context_width": 16}
BASE = StageSpec(
    name="base",
    resolution=8,
    model={"name": "unet", "resolution": 8, **SIZES, "attention_resolutions": [4], "cross_attention_resolutions": [4]},
    cuts=(0.25, 0.75),
    sampler=SamplerSpec(steps=4, guidance=1.5, threshold="static"),
)
SR = StageSpec(
    name="sr16",
    resolution=16,
    low_resolution=8,
    model={
        "name": "efficient_unet",
        "resolution": 16,
        **{key: value for key, value in SIZES.items() if key != "blocks"},
        "blocks": 1,
        "block_mults": 1,
        "attention_resolutions": [],
        "cross_attention_resolutions": [8],
    },
    sampler=SamplerSpec(steps=2, exponent=3.0),
    aug_level=0.1,
)


def make_encoders(folder: Path, seed: int = 0) -> Path:
    """Random T5 and CLIP of a few channels, in the layout of real ones."""
    t5_ids = build_tokenizers.build_t5(CAPTIONS, folder / "t5", vocab_size=60, max_tokens=16)
    t5 = T5Config(
        vocab_size=t5_ids, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    clip_ids = build_tokenizers.build_clip(CAPTIONS, folder / "clip", max_tokens=16)
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    clip = ClipConfig(
        text=ClipTextConfig(
            vocab_size=clip_ids,
            max_position_embeddings=16,
            bos_token_id=clip_ids - 2,
            eos_token_id=clip_ids - 1,
            **sizes,
        ),
        vision=ClipVisionConfig(image_size=16, patch_size=8, **sizes),
    )
    ids = np.zeros((1, 4), np.int32)
    rng = np.random.default_rng(seed)
    init_t5 = jax.eval_shape(T5Encoder(t5, np.float32).init, jax.random.key(0), ids, ids == 0)
    init_clip = jax.eval_shape(Clip(clip).init, jax.random.key(0), ids, np.zeros((1, 16, 16, 3), np.float32))
    t5_params, clip_params = (
        jax.tree.map(lambda leaf: rng.normal(0.3, 1.0, leaf.shape).astype(np.float32), shapes["params"])
        for shapes in (init_t5, init_clip)
    )
    checkpoints.save(t5_params, t5, folder / "t5")
    checkpoints.save(clip_params, clip, folder / "clip")
    return folder


def random_params(spec: StageSpec, encoders_folder: Path, seed: int) -> dict[str, Any]:
    """Weights none of which is zero, so that every part of the network acts on the result."""
    rng = np.random.default_rng(seed)
    shapes = release.parameter_shapes(spec, encoders.load(encoders_folder).spec)
    flat = {}
    for name, shape in shapes.items():
        fan_in = max(1, int(np.prod(shape[1:-1])))
        offset = 1.0 if name.endswith("scale") else 0.0
        flat[name] = (offset + 0.5 * rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    return release.unflatten(flat)


def make_release(folder: Path, specs: tuple[StageSpec, ...] = (BASE, SR)) -> Release:
    """A release in memory, its encoders in `folder`."""
    coded = make_encoders(folder / "encoders")
    params = tuple(random_params(spec, coded, seed) for seed, spec in enumerate(specs))
    return Release(specs=specs, params=params, encoders=coded, trained={"base": [{"step": 0}]})


def with_stage(spec: StageSpec, **changes: Any) -> StageSpec:
    """The stage with other values."""
    return dataclasses.replace(spec, **changes)
