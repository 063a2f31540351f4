"""Hugging Face checkpoints to Flax parameters and back.

A table gives each parameter the tensor names it is published under, the first being the one that
`save` writes. Layouts differ by leaf: a matrix kernel is the transpose of torch's [out, in], a
convolution kernel [h, w, in, out] of [out, in, h, w]; everything else is stored as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ediffi_jax.encoders.clip import Clip, ClipConfig
from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.encoders.files import SINGLE, StoredTensor, open_folder, read_json
from ediffi_jax.encoders.t5 import T5Config, T5Encoder
from ediffi_jax.errors import nearest
from ediffi_jax.types import Params

Path_ = tuple[str, ...]
Place = Callable[[Path_, np.ndarray, Any], Any]
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def t5_names(path: Path_) -> tuple[str, ...]:
    """Published names of a `T5Encoder` parameter."""
    if path == ("embedding",):
        return ("shared.weight", "encoder.embed_tokens.weight")
    if path == ("relative_attention_bias",):
        return ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",)
    if path[0] == "final_norm":
        return ("encoder.final_layer_norm.weight",)
    block, part, *rest = path
    layer = f"encoder.block.{block.removeprefix('block_')}.layer.{int(part.startswith('feed_forward'))}"
    if part.endswith("norm"):
        return (f"{layer}.layer_norm.weight",)
    return (f"{layer}.{'SelfAttention' if part == 'attention' else 'DenseReluDense'}.{rest[0]}.weight",)


def clip_names(path: Path_) -> tuple[str, ...]:
    """Published names of a `Clip` parameter; files of one tower alone may leave the tower's name out."""
    tower, *rest = path
    if tower == "logit_scale":
        return ("logit_scale",)
    if rest[0] in ("text_projection", "visual_projection"):
        return (f"{rest[0]}.weight",)
    if rest[0].endswith("_embedding"):
        name = f"embeddings.{rest[0]}" + ("" if rest[0] == "class_embedding" else ".weight")
    else:
        layer = rest[0].replace("layers_", "encoder.layers.")
        name = ".".join([layer, *rest[1:-1], _LEAVES[rest[-1]]])
    return (f"{tower}_model.{name}", name)


def _ignored(name: str) -> bool:
    """Tensors of published files that no encoder needs."""
    if name in ("encoder.embed_tokens.weight", "logit_scale"):  # a second name of the table; unused by one tower alone
        return True
    return name.startswith(("decoder.", "lm_head.")) or name.endswith("position_ids")


def _from_torch(path: Path_, values: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T
    return values


def _to_torch(path: Path_, values: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        return values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
    return values


def stored_dtype(path: Path_, dtype: Any) -> Any:
    """Products and tables in `dtype`; norms, biases and T5's W_2 ("wo") stay float32."""
    narrow = path[-1].endswith("embedding") or (path[-1] == "kernel" and path[-2] != "wo")
    return dtype if narrow else jnp.float32


def _shapes(model: nn.Module, *args: Any) -> dict[Path_, tuple[int, ...]]:
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))["params"]
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes).items()}


def t5_shapes(config: T5Config) -> dict[Path_, tuple[int, ...]]:
    """Shape of every parameter of `T5Encoder(config)`."""
    return _shapes(T5Encoder(config), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))


def clip_shapes(config: ClipConfig) -> dict[Path_, tuple[int, ...]]:
    """Shape of every parameter of `Clip(config)`."""
    ids = None if config.text is None else jnp.zeros((1, 2), jnp.int32)
    size = None if config.vision is None else config.vision.image_size
    images = None if size is None else jnp.zeros((1, size, size, 3))
    return _shapes(Clip(config), ids, images)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint's folder.

    Raises:
        EncoderError: there is none, or it cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise EncoderError(f"{folder}: no config.json; expected an encoder in Hugging Face layout")
    return read_json(folder / "config.json")


def _config(folder: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except EncoderError as error:
        raise EncoderError(f"{folder}: {error}") from error


def _on_device(path: Path_, values: np.ndarray, dtype: Any) -> Any:
    return jnp.asarray(values, dtype)


def load_t5(
    folder: Path, dtype: Any = jnp.float32, place: Place = _on_device
) -> tuple[T5Config, Params, dict[str, StoredTensor]]:
    """A T5 encoder, from an encoder-only checkpoint or from a whole T5, whose decoder is left.

    Args:
        folder: config.json and safetensors.
        dtype: of the matrices; norms and W_2 stay float32.
        place: (parameter's path, stored values, dtype) -> what the tree holds: an array on some devices.

    Returns:
        Config, parameters of `T5Encoder`, and the tensors they came from.

    Raises:
        EncoderError: a file or tensor missing, extra, misshapen, cut off or unreadable.
    """
    described = read_config(folder)
    if described.get("model_type", "t5") != "t5":
        raise EncoderError(f"{folder / 'config.json'}: model_type is {described['model_type']!r}, expected 't5'")
    config = _config(folder, lambda: T5Config.from_json(described))
    params, used = _load(folder, open_folder(folder), t5_shapes(config), t5_names, dtype, place)
    return config, params, used


def load_clip(
    folder: Path, dtype: Any = jnp.float32, place: Place = _on_device
) -> tuple[ClipConfig, Params, dict[str, StoredTensor]]:
    """A CLIP model, or one tower of it, with or without projections; see `load_t5`."""
    described = read_config(folder)
    kinds = ("clip", "clip_text_model", "clip_vision_model")
    kind = described.get("model_type", "clip")
    if kind not in kinds:
        raise EncoderError(f"{folder / 'config.json'}: model_type is {kind!r}{nearest(str(kind), kinds)}")
    stored = open_folder(folder)
    text, vision = (f"{name}_projection.weight" in stored for name in ("text", "visual"))
    config = _config(folder, lambda: ClipConfig.from_json(described, text_projection=text, vision_projection=vision))
    params, used = _load(folder, stored, clip_shapes(config), clip_names, dtype, place)
    return config, params, used


def _load(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    shapes: Mapping[Path_, tuple[int, ...]],
    names: Callable[[Path_], tuple[str, ...]],
    dtype: Any,
    place: Place,
) -> tuple[Params, dict[str, StoredTensor]]:
    """Finds, checks and converts each parameter's tensor; returns parameters and the tensors by their first name."""
    flat, used = {}, {}
    files = ", ".join(sorted({str(tensor.file) for tensor in stored.values()})[:2]) or str(folder)
    for path, shape in shapes.items():
        tensor = next((stored[name] for name in names(path) if name in stored), None)
        if tensor is None:
            raise EncoderError(f"{files}: tensor {names(path)[0]!r} is missing")
        expected = _to_torch(path, np.broadcast_to(np.float32(0), shape)).shape
        if tensor.shape != expected:
            shapes_differ = f"has shape {list(tensor.shape)}, config.json makes it {list(expected)}"
            raise EncoderError(f"{tensor.file}: tensor {tensor.name!r} {shapes_differ}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise EncoderError(f"{tensor.file}: tensor {tensor.name!r} holds {tensor.dtype}, expected floating point")
        flat[path] = place(path, _from_torch(path, tensor.read()), stored_dtype(path, dtype))
        used[names(path)[0]] = tensor
    taken = {tensor.name for tensor in used.values()}
    for name in stored:
        if name not in taken and not _ignored(name):
            raise EncoderError(f"{stored[name].file}: tensor {name!r} is extra: config.json describes no such part")
    return flax.traverse_util.unflatten_dict(flat), used


def save(params: Params, config: T5Config | ClipConfig, path: str | os.PathLike) -> None:
    """Writes config.json and model.safetensors as transformers writes them, float32, so that it reads them back.

    Args:
        params: of `T5Encoder(config)` or `Clip(config)`.
        config: its sizes.
        path: folder, made if missing; tokenizer files beside are left alone.

    Raises:
        EncoderError: `params` are not those of `config`.
    """
    is_t5 = isinstance(config, T5Config)
    names, shapes = (t5_names, t5_shapes(config)) if is_t5 else (clip_names, clip_shapes(config))
    flat = flax.traverse_util.flatten_dict(jax.device_get(params))
    for leaf in sorted(shapes.keys() ^ flat.keys()):
        fault = "missing" if leaf in shapes else "extra"
        raise EncoderError(f"parameter {'/'.join(leaf)!r} is {fault} for this config")
    tensors = {}
    for leaf, shape in shapes.items():
        values = np.asarray(flat[leaf], np.float32)
        if values.shape != shape:
            raise EncoderError(f"parameter {'/'.join(leaf)!r} has shape {values.shape}, the config makes it {shape}")
        tensors[names(leaf)[0]] = np.ascontiguousarray(_to_torch(leaf, values)).reshape(_to_torch(leaf, values).shape)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{SINGLE}.partial"
    safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / SINGLE)
    described = {**config.to_json(), "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
