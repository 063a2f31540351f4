"""CLIP by contrast: a picture against its caption, the batch's other captions and its own hard negatives.

    s_ij = e^tau <v_i, t_j> / (|v_i| |t_j|)         i: B pictures, j: B (1 + H) captions, the true ones j = i (1 + H)
    L = (CE(s, rows) + CE(s[:, true], columns)) / 2
        + w_whole (L_whole(v) + L_whole(t)) + w_token L_token + w_patch L_patch

Radford et al. 2021 with the hard negatives of Yuksekgonul et al. 2023. The grounding terms (see `grounding`) name
what contrast alone finds slowly: whose colour it is and who stands where. One set of linear heads reads both
towers' joint vectors, which pulls them together; all heads are thrown away afterwards.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ediffi_jax.encoders.clip import Clip, ClipConfig, ClipTextConfig, ClipVisionConfig
from ediffi_jax.training.scenes_encoders import corpus, grounding
from ediffi_jax.types import Params, Vectors

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of pictures in [0, 1], as all CLIP checkpoints have it
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_SCALE = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """How much each grounding term counts beside the contrast."""

    whole: float = 1.0
    token: float = 0.5
    patch: float = 0.5


def config(*, vocab_size: int, bos: int, eos: int, width: int, text_layers: int, vision_layers: int) -> ClipConfig:
    """The tiny CLIP: both towers `width` wide, heads of 32 channels."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": max(width // 32, 1)}
    sizes["projection_dim"] = width
    return ClipConfig(
        text=ClipTextConfig(
            vocab_size=vocab_size,
            num_hidden_layers=text_layers,
            max_position_embeddings=corpus.LONG,
            bos_token_id=bos,
            eos_token_id=eos,
            **sizes,
        ),
        vision=ClipVisionConfig(
            num_hidden_layers=vision_layers,
            image_size=corpus.PIXELS,
            patch_size=corpus.PIXELS // grounding.PATCHES,
            **sizes,
        ),
    )


def unit(x: Vectors) -> Vectors:
    """Scaled to length sqrt(d), so that a channel has unit variance: how a `Conditioning` holds pooled vectors."""
    return x * jnp.sqrt(x.shape[-1]) / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def normalise(pixels: Array) -> Float[Array, "b h w 3"]:
    """uint8 pictures as the image tower wants them."""
    return (pixels.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


class ContrastiveLoss(nn.Module):
    """The loss of a batch of `corpus.clip_batch`; parameters: `clip`, and the heads beside it."""

    config: ClipConfig
    weights: Weights = Weights()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss and metrics: accuracy of picture -> caption among all captions of the batch, and of the heads."""
        clip = Clip(self.config, self.dtype, name="clip")
        size, captions, length = batch["ids"].shape
        tokens, text = clip.encode_text(batch["ids"].reshape(-1, length))
        patches, image = clip.encode_image(normalise(batch["pixels"]))
        text, image = unit(text), unit(image)
        scale = jnp.exp(clip.variables["params"]["logit_scale"]) if not self.is_initializing() else 1.0
        contrast, right = contrastive(image[:size], text, jnp.minimum(scale, MAX_SCALE), captions)

        def head(name: str, fields: dict[str, int]) -> nn.Dense:
            return nn.Dense(sum(fields.values()), name=name)

        whole = head("whole", grounding.SCENE_FIELDS)
        labels = batch["scene_labels"]
        of_text, text_right = grounding.loss(whole(text), labels.reshape(-1, labels.shape[-1]), grounding.SCENE_FIELDS)
        of_image, image_right = grounding.loss(whole(image), batch["picture_labels"], grounding.SCENE_FIELDS)
        owned = batch["token_labels"].reshape(-1, *batch["token_labels"].shape[2:])
        of_token, _ = grounding.loss(head("token", grounding.TOKEN_FIELDS)(tokens), owned, grounding.TOKEN_FIELDS)
        of_patch, _ = grounding.loss(
            head("patch", grounding.PATCH_FIELDS)(patches[:, 1:]), batch["patch_labels"], grounding.PATCH_FIELDS
        )
        w = self.weights
        total = contrast + w.whole * (of_text + of_image) + w.token * of_token + w.patch * of_patch
        metrics = {"loss": total, "contrast": contrast, "right": right, "token": of_token, "patch": of_patch}
        metrics |= {"text": of_text, "image": of_image, "image_shape": image_right["shape_0"]}
        return total, metrics | {"text_colour": text_right["colour_1"], "image_colour": image_right["colour_0"]}


def place_patches(params: Params, factor: float = 25.0) -> Params:
    """Initial parameters of `ContrastiveLoss` with the image tower's positions as strong as its patches.

    At CLIP's scale (0.02, beside patches of unit size) it takes a tiny tower long to notice where things are.
    """
    vision = dict(params["clip"]["vision"])
    vision["position_embedding"] = factor * vision["position_embedding"]
    return {**params, "clip": {**params["clip"], "vision": vision}}


def contrastive(
    image: Float[Array, "b d"], text: Float[Array, "n d"], scale: Float[Array, ""] | float, captions: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The symmetric contrast and the share of pictures that find their caption.

    Args:
        image: vectors of length sqrt(d).
        text: likewise; `captions` rows an image, the true caption first.
        scale: e^tau.
        captions: 1 + number of hard negatives.
    """
    logits = image @ text.T * scale / image.shape[-1]
    rows = jnp.arange(len(image))
    to_text = optax.softmax_cross_entropy_with_integer_labels(logits, rows * captions).mean()
    to_image = optax.softmax_cross_entropy_with_integer_labels(logits[:, ::captions].T, rows).mean()
    return (to_text + to_image) / 2, (logits.argmax(-1) == rows * captions).mean()


def unit_channels(clip: Params, features: Float[Array, "n d"]) -> Params:
    """Rescales the text tower's last norm so that token features have unit std per channel; pooled vectors stay.

    Args:
        clip: parameters of `Clip`.
        features: token features of many captions.
    """
    std = jnp.maximum(features.std(axis=0), 1e-3)
    text = dict(clip["text"])
    text["final_layer_norm"] = {name: value / std for name, value in text["final_layer_norm"].items()}
    text["text_projection"] = {"kernel": text["text_projection"]["kernel"] * std[:, None]}
    return {**clip, "text": text}
