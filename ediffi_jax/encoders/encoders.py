"""The frozen encoders: prompts and pictures in, `Conditioning` out.

    prompts --tokenize--> ids --T5--> t5 [b, Lt, Dt]
                              --CLIP text--> clip_text [b, Lc, Dc], clip_pooled [b, Dp]
    pictures ----resize, normalise--> CLIP vision --> clip_image [b, Dp]

Pooled vectors are put on the sphere of radius sqrt(Dp), p <- sqrt(Dp) p / |p|: unit variance a channel,
whatever CLIP's scale. `apply` is a pure function of parameters, ids and pixels, to be called inside `jit`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from ediffi_jax import conditioning
from ediffi_jax.conditioning import Conditioning, ConditioningSpec
from ediffi_jax.encoders import sharding
from ediffi_jax.encoders.checkpoints import load_clip, load_t5
from ediffi_jax.encoders.clip import Clip
from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.encoders.files import StoredTensor, read_json
from ediffi_jax.encoders.layout import Layout, bundled, find, local
from ediffi_jax.encoders.t5 import T5Encoder
from ediffi_jax.encoders.tokenize import TextTokenizer, Tokens, check_prompts, load_clip_tokenizer, load_t5_tokenizer
from ediffi_jax.errors import nearest
from ediffi_jax.types import Images, Params, Vectors

MAX_T5_TOKENS = 113  # eDiff-I, section 4.1
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoders:
    """T5 and CLIP of one folder; a missing one gives zeros and False masks.

    Attributes:
        params: parameters by encoder ("t5", "clip", "vision"), to be passed to `apply` as a jit argument.
        t5, clip, vision: the modules; `vision` holds the image tower, and is `clip` where one checkpoint has both.
        t5_tokenizer, clip_tokenizer: of the text encoders.
        mean, std: per channel, of pictures in [0, 1], that the image tower was trained with.
        sources: tensors that `fingerprint` covers, by encoder.
    """

    params: Params
    t5: T5Encoder | None
    clip: Clip | None
    vision: Clip | None
    t5_tokenizer: TextTokenizer | None
    clip_tokenizer: TextTokenizer | None
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    sources: dict[str, dict[str, StoredTensor]]

    @functools.cached_property
    def spec(self) -> ConditioningSpec:
        """Sizes of what `apply` returns. An absent encoder has one masked token of width 1."""
        pooled = self.clip or self.vision
        return ConditioningSpec(
            clip_tokens=self.clip_tokenizer.length if self.clip_tokenizer else 1,
            clip_width=self.clip.config.text.hidden_size if self.clip else 1,
            pooled_width=pooled.config.pooled_width if pooled else 1,
            t5_tokens=self.t5_tokenizer.length if self.t5_tokenizer else 1,
            t5_width=self.t5.config.d_model if self.t5 else 1,
        )

    @functools.cached_property
    def image_size(self) -> int:
        """Side in pixels that the image tower sees; 0 without one."""
        return self.vision.config.vision.image_size if self.vision else 0

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over configs, stored tensors and tokenizer files; the same in every compute dtype.

        Reads every stored byte, once: seconds for the largest encoders.
        """
        digest = hashlib.sha256()
        modules = {"t5": self.t5, "clip": self.clip, "vision": self.vision}
        for encoder, tensors in sorted(self.sources.items()):
            digest.update(f"{encoder} {modules[encoder].config} {self.mean} {self.std}".encode())
            for name, tensor in sorted(tensors.items()):
                digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                digest.update(np.ascontiguousarray(tensor.read()).view(np.uint8).data)
        for tokenizer in (self.t5_tokenizer, self.clip_tokenizer):
            for file in tokenizer.files if tokenizer else ():
                digest.update(f"{file.name} {tokenizer.length}".encode() + file.read_bytes())
        return digest.hexdigest()[:16]

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Ids and masks of the prompts; warns with the text that is lost where one is too long.

        Raises:
            EncoderError: a prompt is empty.
        """
        check_prompts(prompts)
        absent = np.zeros((len(prompts), 0), np.int32), np.zeros((len(prompts), 0), bool)
        t5_ids, t5_mask = self.t5_tokenizer(prompts) if self.t5_tokenizer else absent
        clip_ids, clip_mask = self.clip_tokenizer(prompts) if self.clip_tokenizer else absent
        return Tokens(t5_ids=t5_ids, t5_mask=t5_mask, clip_ids=clip_ids, clip_mask=clip_mask)

    def apply(self, params: Params, tokens: Tokens | None, pixels: Images | None) -> Conditioning:
        """Encodes a batch; pure.

        Args:
            params: `self.params`, or the same tree trained further.
            tokens: from `tokenize`; None leaves the text encoders out.
            pixels: float [b, h, w, 3] in [0, 1], RGB, any size: the central square is resized; None leaves them out.

        Returns:
            Float32 features, zero where masked out.

        Raises:
            EncoderError: neither tokens nor pixels, or pictures without an image tower.
        """
        if tokens is None and pixels is None:
            raise EncoderError("nothing to encode: expected prompts, pictures, or both")
        cond = conditioning.zeros(len(tokens.t5_ids if tokens is not None else pixels), self.spec)
        if tokens is not None and self.t5:
            t5 = self.t5.apply({"params": params["t5"]}, tokens.t5_ids, tokens.t5_mask)
            mask = jnp.asarray(tokens.t5_mask)
            cond = cond.replace(t5=jnp.where(mask[..., None], t5, 0.0), t5_mask=mask)
        if tokens is not None and self.clip:
            text, pooled = self.clip.apply({"params": params["clip"]}, tokens.clip_ids, method="encode_text")
            mask = jnp.asarray(tokens.clip_mask)
            text = jnp.where(mask[..., None], text, 0.0)
            cond = cond.replace(clip_text=text, clip_text_mask=mask, clip_pooled=_unit_variance(pooled))
        if pixels is not None:
            image = self._encode_image(params, pixels)
            cond = cond.replace(clip_image=image, clip_image_mask=jnp.ones((len(pixels),), bool))
        return cond

    def _encode_image(self, params: Params, pixels: Images) -> Vectors:
        if self.vision is None:
            raise EncoderError("these encoders have no image tower, so they cannot see a picture")
        own = params["vision" if "vision" in params else "clip"]
        images = (_square(pixels, self.image_size) - jnp.array(self.mean)) / jnp.array(self.std)
        return _unit_variance(self.vision.apply({"params": own}, images, method="encode_image")[1])

    @functools.cached_property
    def _jitted(self) -> Any:
        return jax.jit(self.apply)

    def encode(
        self, prompts: Sequence[str] | None, images: UInt8[np.ndarray, "b h w 3"] | None = None, *, batch_size: int = 64
    ) -> Conditioning:
        """Prompts and/or pictures to a `Conditioning`, `batch_size` at a time.

        Args:
            prompts: texts, or None.
            images: uint8 RGB, or None.
            batch_size: more samples than that are encoded in pieces of that size, the last one filled up.

        Raises:
            EncoderError: an empty prompt, or as many prompts as there are not pictures.
        """
        tokens = None if prompts is None else self.tokenize(prompts)
        pixels = None if images is None else np.asarray(images, np.float32) / 255
        if tokens is not None and pixels is not None and len(prompts) != len(pixels):
            raise EncoderError(f"{len(prompts)} prompts but {len(pixels)} pictures; expected as many of both")
        total = len(pixels) if tokens is None and pixels is not None else len(prompts or ())
        pieces = []
        for start in range(0, total, batch_size):
            rows = np.arange(start, start + min(batch_size, total))
            rows = np.minimum(rows, total - 1)
            batch = jax.tree.map(lambda x: x[rows], (tokens, pixels))  # noqa: B023 (used at once)
            pieces.append(self._jitted(self.params, *batch))
        if not pieces:
            raise EncoderError("nothing to encode: expected prompts, pictures, or both")
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:total], *pieces)


def _unit_variance(pooled: Vectors) -> Vectors:
    norm = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    return pooled / jnp.maximum(norm, 1e-12) * jnp.sqrt(jnp.float32(pooled.shape[-1]))


def _square(pixels: Float[np.ndarray, "b h w 3"], size: int) -> Images:
    """The central square, resized by an antialiased cubic, clipped to [0, 1]."""
    height, width = pixels.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = jnp.asarray(pixels, jnp.float32)[:, top : top + side, left : left + side]
    if side == size:
        return square
    return jnp.clip(jax.image.resize(square, (len(pixels), size, size, pixels.shape[-1]), "cubic"), 0.0, 1.0)


def load(
    path: str | os.PathLike,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    axes: Sequence[str] = sharding.FSDP,
    weights: bool = True,
) -> Encoders:
    """Encoders of a folder (see `layout`), or of a bundled release by name.

    Args:
        path: folder with t5/ and clip/ in Hugging Face layout, a diffusers folder, or "scenes"; what is in an
            object store is copied to this machine first, but for files of other formats.
        dtype: "float32" or "bfloat16", of the matrix products; T5-XXL wants bfloat16.
        mesh: each weight goes from the file straight to its shards on it (see `sharding`).
        axes: of the mesh, along which large weights are cut.
        weights: False leaves `params` empty, for who needs only sizes, tokenizers and the fingerprint.

    Raises:
        EncoderError: no such folder, or anything in it that cannot be used, in one line.
        StoreError: it cannot be copied here.
    """
    if dtype not in _DTYPES:
        raise EncoderError(f"unknown dtype {dtype!r}{nearest(str(dtype), _DTYPES)}")
    return _load(find(_root(path)), _DTYPES[dtype], lambda tower: _placement(tower, mesh, axes, weights))


def _root(path: str | os.PathLike) -> Path:
    """The folder on this machine that a path or a bundled name means."""
    root = local(path)
    return bundled(str(path)) if not root.exists() and len(root.parts) == 1 else root


def _placement(
    tower: str, mesh: Mesh | None, axes: Sequence[str], weights: bool
) -> Callable[[tuple[str, ...], np.ndarray, Any], Any]:
    """Where the parameters of a tower go."""

    def place(path: tuple[str, ...], values: np.ndarray, dtype: Any) -> Any:
        if not weights:
            return None
        if mesh is None:
            return jnp.asarray(values, dtype)
        where = sharding.leaf_sharding(mesh, "/".join((tower, *path)), values.shape, axes)
        return sharding.put(values, dtype, where)

    return place


def _load(layout: Layout, dtype: Any, placement: Callable[[str], Any]) -> Encoders:
    params, sources = {}, {}
    t5 = clip = vision = t5_tokenizer = clip_tokenizer = None
    if layout.t5:
        config, params["t5"], sources["t5"] = load_t5(layout.t5.weights, dtype, placement("t5"))
        t5, t5_tokenizer = T5Encoder(config, dtype), load_t5_tokenizer(layout.t5.settings, _t5_length(layout))
        _check_ids(t5_tokenizer, config.vocab_size, layout.t5.settings)
    if layout.clip:
        config, params["clip"], sources["clip"] = load_clip(layout.clip.weights, dtype, placement("clip"))
        clip = Clip(config, dtype)
        vision = clip if config.vision else None
        clip_tokenizer = load_clip_tokenizer(layout.clip.settings, config.text.max_position_embeddings)
        _check_ids(clip_tokenizer, config.text.vocab_size, layout.clip.settings)
        _check_end(clip_tokenizer, config.text.eos_token_id, layout.clip.weights)
    if layout.vision and vision is None:
        config, params["vision"], sources["vision"] = load_clip(layout.vision.weights, dtype, placement("vision"))
        vision = Clip(config, dtype)
        if clip and clip.config.pooled_width != config.pooled_width:
            widths = f"{config.pooled_width} channels, the text's {clip.config.pooled_width}"
            raise EncoderError(f"{layout.vision.weights}: pooled vectors have {widths}; expected one joint space")
    towers = {"t5": t5, "clip": clip, "vision": vision, "t5_tokenizer": t5_tokenizer, "clip_tokenizer": clip_tokenizer}
    encoders = Encoders(params=params, sources=sources, **towers)
    place = layout.vision or layout.clip
    return encoders if place is None else replace(encoders, **_image_statistics(place.settings))


def _t5_length(layout: Layout) -> int:
    """`max_tokens` of ediffi.json beside the weights, else the tokenizer's own limit up to the paper's 113."""
    own = read_json(layout.t5.weights / "ediffi.json").get("max_tokens")
    limit = read_json(layout.t5.settings / "tokenizer_config.json").get("model_max_length", MAX_T5_TOKENS)
    length = min(limit, MAX_T5_TOKENS) if own is None else own
    if not isinstance(length, int) or length < 2:
        raise EncoderError(f"{layout.t5.weights}: max_tokens is {length!r}, expected an integer of at least 2")
    return length


def _check_ids(tokenizer: TextTokenizer, vocab_size: int, folder: Path) -> None:
    if tokenizer.backend.get_vocab_size() > vocab_size:
        held = f"{tokenizer.backend.get_vocab_size()} ids, the encoder's table {vocab_size}"
        raise EncoderError(f"{folder}: the {tokenizer.name} tokenizer has {held}: they do not belong together")


def _check_end(tokenizer: TextTokenizer, eos: int, folder: Path) -> None:
    if eos not in (2, tokenizer.end):
        path = folder / "config.json"
        raise EncoderError(f"{path}: eos_token_id is {eos}, but the tokenizer ends with id {tokenizer.end}")


def _image_statistics(folder: Path) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation in preprocessor_config.json, when it has them."""
    settings = read_json(folder / "preprocessor_config.json")
    try:
        return {
            name: tuple(float(value) for value in settings[key])
            for name, key in (("mean", "image_mean"), ("std", "image_std"))
            if key in settings
        }
    except (TypeError, ValueError) as error:
        raise EncoderError(f"{json.dumps(str(folder))}: preprocessor_config.json has no usable mean and std") from error
