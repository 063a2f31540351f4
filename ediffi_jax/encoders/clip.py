"""CLIP's text and image towers (Radford et al. 2021): pre-norm transformers that meet in one joint space.

    text:  x = token + position;  causal blocks;  LayerNorm;  pooled = x[EOS];         joint = W_t pooled
    image: x = [class, patches] + position;  LayerNorm;  blocks;  pooled = LayerNorm(x[0]);  joint = W_v pooled

Submodules carry the names of the published checkpoints. Norms, logits and softmax are float32, so is
the residual stream; the other products are in `dtype`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ediffi_jax.encoders.activations import activation
from ediffi_jax.encoders.configs import read_fields
from ediffi_jax.types import Ids, Images, Tokens, Vectors


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """Sizes of the text tower, named as in config.json; the defaults are those of transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    bos_token_id: int = 49406
    eos_token_id: int = 49407


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """Sizes of the image tower, named as in config.json; the defaults are those of transformers."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A CLIP model: either tower may be missing, and so may the projections into the joint space."""

    text: ClipTextConfig | None = None
    vision: ClipVisionConfig | None = None
    text_projection: bool = True
    vision_projection: bool = True

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], *, text_projection: bool = True, vision_projection: bool = True
    ) -> ClipConfig:
        """From config.json of a CLIPModel, a CLIPTextModel or a CLIPVisionModel, with or without projection.

        Args:
            config: the mapping in config.json.
            text_projection, vision_projection: whether the checkpoint has them (a config alone does not tell).
        """
        kind = config.get("model_type", "clip")
        text = vision = None
        if kind == "clip_text_model":
            text = read_fields(ClipTextConfig, config)
        elif kind == "clip_vision_model":
            vision = read_fields(ClipVisionConfig, config)
        else:
            joint = {"projection_dim": config.get("projection_dim", 512)}
            text = read_fields(ClipTextConfig, *_levels(ClipTextConfig, config, "text_config"), joint)
            vision = read_fields(ClipVisionConfig, *_levels(ClipVisionConfig, config, "vision_config"), joint)
        return cls(text=text, vision=vision, text_projection=text_projection, vision_projection=vision_projection)

    def to_json(self) -> dict[str, Any]:
        """What transformers reads back: CLIPModel with both towers, else the model of the one tower."""
        text = None if self.text is None else {**dataclasses.asdict(self.text), "model_type": "clip_text_model"}
        vision = None if self.vision is None else {**dataclasses.asdict(self.vision), "model_type": "clip_vision_model"}
        if text and vision:
            both = {"text_config": text, "vision_config": vision, "projection_dim": self.text.projection_dim}
            return {"architectures": ["CLIPModel"], "model_type": "clip", **both}
        tower, has_projection = ("Text", self.text_projection) if text else ("Vision", self.vision_projection)
        name = f"CLIP{tower}Model" + ("WithProjection" if has_projection else "")
        return {"architectures": [name], **(text or vision)}

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled vectors: the joint space, or the tower's width without a projection."""
        if self.text is not None:
            return self.text.projection_dim if self.text_projection else self.text.hidden_size
        return self.vision.projection_dim if self.vision_projection else self.vision.hidden_size


def _levels(cls: type, config: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], ...]:
    """`text_config`, and over it the older `text_config_dict`, whose missing keys transformers reads as defaults."""
    older = config.get(f"{key}_dict")
    newer = config.get(key) or {}
    return (newer,) if older is None else (newer, dataclasses.asdict(cls()), older)


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, mask: Bool[Array, "q k"] | None) -> Tokens:
        """[b, t, d] to [b, t, d] in `dtype`; `mask` says which key a query may see, None all."""
        width = x.shape[-1]

        def project(name: str) -> Array:
            return nn.Dense(width, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, -1)

        q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(y)


class Mlp(nn.Module):
    """Two layers with an activation between."""

    width: int
    act: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """[b, t, d] to [b, t, d] in `dtype`."""
        y = activation(self.act)(nn.Dense(self.width, dtype=self.dtype, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    config: ClipTextConfig | ClipVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, mask: Bool[Array, "q k"] | None) -> Tokens:
        """Residual stream float32 [b, t, d] to the next; `mask` as for `Attention`."""
        c = self.config
        y = _norm(c.layer_norm_eps, "layer_norm1")(x)
        x = x + Attention(c.num_attention_heads, self.dtype, name="self_attn")(y, mask).astype(jnp.float32)
        y = _norm(c.layer_norm_eps, "layer_norm2")(x)
        return x + Mlp(c.intermediate_size, c.hidden_act, self.dtype, name="mlp")(y).astype(jnp.float32)


class TextTower(nn.Module):
    """Captions to token features and to one vector."""

    config: ClipTextConfig
    projection: bool
    dtype: Any

    @nn.compact
    def __call__(self, ids: Ids) -> tuple[Tokens, Vectors]:
        """Last hidden state [b, t, d] and the EOS token's (projected) vector [b, p], float32, of ids int32 [b, t]."""
        c = self.config
        init = nn.initializers.normal(0.02)
        token = self.param("token_embedding", init, (c.vocab_size, c.hidden_size))
        position = self.param("position_embedding", init, (c.max_position_embeddings, c.hidden_size))
        x = jnp.take(token, ids, axis=0).astype(jnp.float32) + position[: ids.shape[1]].astype(jnp.float32)
        causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        for i in range(c.num_hidden_layers):
            x = Layer(c, self.dtype, name=f"layers_{i}")(x, causal)
        x = _norm(c.layer_norm_eps, "final_layer_norm")(x)
        pooled = jnp.take_along_axis(x, self._end(ids)[:, None, None], axis=1)[:, 0]
        if self.projection:
            pooled = nn.Dense(c.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection")(pooled)
        return x, pooled.astype(jnp.float32)

    def _end(self, ids: Ids) -> Array:
        """Position of the end token. Configs published with the wrong eos_token_id 2 mean "the largest id"."""
        legacy = self.config.eos_token_id == 2
        return jnp.argmax(ids if legacy else ids == self.config.eos_token_id, axis=-1)


class VisionTower(nn.Module):
    """Pictures to one vector."""

    config: ClipVisionConfig
    projection: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: Images) -> tuple[Tokens, Vectors]:
        """Last hidden state [b, 1 + patches, d] and the (projected) class vector [b, p], float32.

        Args:
            images: [b, S, S, 3] normalised by the checkpoint's mean and standard deviation, S = image_size.
        """
        c = self.config
        patch = (c.patch_size, c.patch_size)
        conv = {"padding": "VALID", "use_bias": False, "dtype": self.dtype}
        x = nn.Conv(c.hidden_size, patch, patch, name="patch_embedding", **conv)(images)
        x = x.reshape(x.shape[0], -1, c.hidden_size).astype(jnp.float32)
        first = self.param("class_embedding", nn.initializers.normal(c.hidden_size**-0.5), (c.hidden_size,))
        first = jnp.broadcast_to(first.astype(jnp.float32), (x.shape[0], 1, c.hidden_size))
        x = jnp.concatenate([first, x], axis=1)
        init = nn.initializers.normal(0.02)
        positions = 1 + (c.image_size // c.patch_size) ** 2
        x = x + self.param("position_embedding", init, (positions, c.hidden_size)).astype(jnp.float32)
        x = _norm(c.layer_norm_eps, "pre_layrnorm")(x)
        for i in range(c.num_hidden_layers):
            x = Layer(c, self.dtype, name=f"layers_{i}")(x, None)
        pooled = _norm(c.layer_norm_eps, "post_layernorm")(x[:, 0])
        if self.projection:
            pooled = nn.Dense(c.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection")(pooled)
        return x, pooled.astype(jnp.float32)


class Clip(nn.Module):
    """Both towers, or one of them.

    Attributes:
        config: sizes.
        dtype: of the matrix products; float32 or bfloat16.
    """

    config: ClipConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the towers that the config has."""
        c = self.config
        if c.text is not None:
            self.text = TextTower(c.text, c.text_projection, self.dtype)
        if c.vision is not None:
            self.vision = VisionTower(c.vision, c.vision_projection, self.dtype)
        if c.text is not None and c.vision is not None:
            # ln of the contrastive temperature: training the encoder uses it, encoding does not.
            self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def encode_text(self, ids: Ids) -> tuple[Tokens, Vectors]:
        """See `TextTower`."""
        return self.text(ids)

    def encode_image(self, images: Images) -> tuple[Tokens, Vectors]:
        """See `VisionTower`."""
        return self.vision(images)

    def __call__(
        self, ids: Ids | None, images: Images | None
    ) -> tuple[Vectors | None, Vectors | None, Float[Array, ""] | None]:
        """Pooled vectors of texts and of images, and exp(logit_scale), as contrastive training needs them."""
        pooled_text = None if ids is None else self.text(ids)[1]
        pooled_image = None if images is None else self.vision(images)[1]
        scale = jnp.exp(self.logit_scale) if self.config.text and self.config.vision else None
        return pooled_text, pooled_image, scale
