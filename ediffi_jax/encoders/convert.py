"""Published pickled weights (`.bin`, `.pth`, `.pt`) into safetensors, once.

    folder/pytorch_model.bin (or its shards)  --torch.load(weights_only=True)-->  DIR/model.safetensors (or shards)
    folder/config.json, tokenizer files       --copied-->                         DIR/

A pickle can run any program when it is opened; `weights_only` opens tensors and nothing else, so a
file that needs more is refused. Everything is written into DIR.partial, which becomes DIR at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from ediffi_jax import copies, stores
from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.encoders.files import INDEX, SINGLE, read_json
from ediffi_jax.errors import install, nearest

_DTYPES = ("keep", "float32", "float16", "bfloat16")
_SETTINGS = ("*.json", "*.model", "merges.txt", "vocab.txt", "README.md", "LICENSE*")
_PICKLES = ("*.bin", "*.pth", "*.pt")
_NESTED = ("state_dict", "model_state_dict", "model")
_DECODER = ("decoder.", "lm_head.")


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    max_shard_gb: float = 5.0,
    dtype: str = "keep",
    encoder_only: bool = False,
) -> Path | epath.Path:
    """Writes a folder that `encoders.load` and transformers read.

    Args:
        source: a pickled file, or a folder with one or with shards and their index.
        output: folder to make; must not exist. Both may be in an object store.
        max_shard_gb: gigabytes (1e9 bytes) of tensors a file; more makes several and an index.
        dtype: to store floating-point tensors in: "keep", "float32", "float16", "bfloat16".
        encoder_only: leave out T5's decoder, more than half of it, which no text encoder needs.

    Returns:
        `output`.

    Raises:
        EncoderError: no torch, nothing to convert, a pickle that needs code or is damaged, `output` not writable.
        StoreError: the store refused or did not answer.
    """
    if dtype not in _DTYPES:
        raise EncoderError(f"unknown dtype {dtype!r}{nearest(dtype, _DTYPES)}")
    if not max_shard_gb > 0:
        raise EncoderError(f"max_shard_gb is {max_shard_gb}, expected more than 0")
    if stores.is_remote(output):
        return _convert_into_store(source, stores.at(output), max_shard_gb, dtype, encoder_only)
    source, output = copies.local(source), Path(output)
    files = _find(source)
    if output.exists():
        raise EncoderError(f"{output}: exists already; name a folder that does not")
    torch = _torch()
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(torch, files, partial, max_shard_gb * 1e9, dtype, encoder_only)
        _copy_settings(files[0].parent, partial)
        partial.rename(output)
    except OSError as error:
        raise EncoderError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _convert_into_store(
    source: str | os.PathLike, output: epath.Path, max_shard_gb: float, dtype: str, encoder_only: bool
) -> epath.Path:
    """Converts here, and sends what came of it."""
    if not copies.vacant(output, "", lambda name: False):
        raise EncoderError(f"{output}: exists already; name a folder that does not")
    with copies.sending(output, last="config.json") as folder:
        convert(source, folder, max_shard_gb=max_shard_gb, dtype=dtype, encoder_only=encoder_only)
    return output


def read_pickle(file: Path) -> dict[str, np.ndarray]:
    """The tensors of one pickled file as host arrays; only tensors are unpickled.

    Raises:
        EncoderError: no torch, a pickle that needs code, or is damaged.
    """
    tensors = _open(_torch(), file)
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise EncoderError(f"reading pickled weights needs torch: {install('convert')}") from error
    return torch


def _find(source: Path) -> list[Path]:
    """The pickled files of a checkpoint."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise EncoderError(f"{source}: no such file or folder; expected pytorch_model.bin or a folder with it")
    indices = sorted(source.glob("*.bin.index.json"))
    if indices:
        placed = read_json(indices[0]).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise EncoderError(f"{indices[0]}: no weight_map that says which file holds which tensor")
        return [source / name for name in sorted(set(placed.values()))]
    found = sorted({file for pattern in _PICKLES for file in source.glob(pattern)} - {source / "training_args.bin"})
    if (source / "pytorch_model.bin") in found:
        return [source / "pytorch_model.bin"]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise EncoderError(f"{source}: expected one pickled file or shards with an index, found {names}")
    return found


def _open(torch: ModuleType, file: Path) -> dict[str, Any]:
    """The tensors of one pickled file, mapped where its format allows."""
    import pickle

    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # the format of before 2020 cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "the pickle holds more than tensors, and opening it could run a program"
        raise EncoderError(f"{file}: refused: {reason}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EncoderError(f"{file}: cannot be read as PyTorch weights ({reason})") from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise EncoderError(f"{file}: expected a mapping from names to tensors, found something else")
    return dict(content)


def _untied(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """One name for each tensor that is stored once: the shortest, as transformers ties the others to it."""
    names: dict[Any, str] = {}
    for name in sorted(tensors, key=lambda name: (len(name), name)):
        tensor = tensors[name]
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        names.setdefault(place if tensor.numel() else name, name)
    kept = set(names.values())
    return {name: tensor for name, tensor in tensors.items() if name in kept}


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names in files of at most `limit` bytes; a larger tensor has one to itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write(torch: ModuleType, files: list[Path], folder: Path, limit: float, dtype: str, encoder_only: bool) -> None:
    """Safetensors of the files, one after the other: at most one of them is open, at most one shard in memory."""
    parts: list[tuple[Path, list[str], int]] = []
    for file in files:
        tensors = _untied(_open(torch, file))
        tensors = {name: t for name, t in tensors.items() if not (encoder_only and name.startswith(_DECODER))}
        for names in _shards({name: _bytes(torch, t, dtype) for name, t in tensors.items()}, limit):
            if names:
                path = folder / f"part{len(parts)}"
                parts.append((path, names, _save(torch, {name: tensors[name] for name in names}, path, dtype)))
    if not parts:
        raise EncoderError(f"{files[0]}: holds no tensors")
    _name_parts(parts, folder)


def _bytes(torch: ModuleType, tensor: Any, dtype: str) -> int:
    return tensor.numel() * _target(torch, tensor, dtype).itemsize


def _target(torch: ModuleType, tensor: Any, dtype: str) -> Any:
    return tensor.dtype if dtype == "keep" or not tensor.is_floating_point() else getattr(torch, dtype)


def _save(torch: ModuleType, tensors: Mapping[str, Any], path: Path, dtype: str) -> int:
    """One file; the number of bytes of its tensors."""
    from safetensors.torch import save_file

    # Cloned, so that views of one storage become tensors of their own.
    own = {name: t.detach().to(_target(torch, t, dtype)).contiguous().clone() for name, t in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})
    return sum(t.numel() * t.itemsize for t in own.values())


def _name_parts(parts: list[tuple[Path, list[str], int]], folder: Path) -> None:
    """The names Hugging Face gives: model.safetensors, or model-0000i-of-0000n.safetensors and an index."""
    if len(parts) == 1:
        parts[0][0].rename(folder / SINGLE)
        return
    placed = {}
    for i, (path, names, _) in enumerate(parts, 1):
        target = f"model-{i:05d}-of-{len(parts):05d}.safetensors"
        path.rename(folder / target)
        placed.update(dict.fromkeys(names, target))
    index = {"metadata": {"total_size": sum(size for *_, size in parts)}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _settings(folder: Path) -> Iterator[Path]:
    for pattern in _SETTINGS:
        yield from folder.glob(pattern)


def _copy_settings(source: Path, target: Path) -> None:
    for file in _settings(source):
        if not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
