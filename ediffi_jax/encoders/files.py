"""Reading JSON and safetensors files, every fault named in one line.

A safetensors file is an 8-byte little-endian length, a JSON header of that length that gives each
tensor's dtype, shape and byte range, and the bytes. Large checkpoints are several such files and an
index. Tensors are views of the mapped file: nothing is read before it is used, nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ediffi_jax.encoders.errors import EncoderError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLED = ("*.bin", "*.bin.index.json", "*.pth", "*.pt")
_MAX_HEADER = 100_000_000

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, {} when there is none.

    Raises:
        EncoderError: unreadable, or not a mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise EncoderError(f"{path}: expected a JSON mapping, found a {type(content).__name__}")
    return content


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: bytes [begin, end) of `file`."""

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self) -> np.ndarray:
        """The values: a read-only view of the mapped file.

        Raises:
            EncoderError: the file cannot be read any more.
        """
        if self.begin == self.end:
            return np.zeros(self.shape, self.dtype)
        try:
            flat = np.memmap(self.file, np.uint8, "r", offset=self.begin, shape=(self.end - self.begin,))
        except (OSError, ValueError) as error:
            raise EncoderError(f"{self.file}: tensor {self.name!r} cannot be read ({error})") from error
        return np.asarray(flat).view(self.dtype).reshape(self.shape)


def _stored(path: Path, name: str, entry: Any, data: int) -> StoredTensor:
    """One entry of a header whose file's bytes start at `data`, checked against itself."""
    try:
        dtype, shape = _DTYPES.get(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"{path}: the header's entry of tensor {name!r} is damaged") from error
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise EncoderError(f"{path}: tensor {name!r} is stored as {entry['dtype']}, expected one of {known}")
    needed = math.prod(shape) * dtype.itemsize
    if begin < 0 or end - begin != needed:
        raise EncoderError(f"{path}: tensor {name!r} has {end - begin} bytes, its shape {list(shape)} needs {needed}")
    return StoredTensor(file=path, name=name, dtype=dtype, shape=shape, begin=data + begin, end=data + end)


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file.

    Raises:
        EncoderError: missing, unreadable, cut off, or not a safetensors file.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise EncoderError(f"{path}: not a safetensors file, or cut off within its header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise EncoderError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise EncoderError(f"{path}: not a safetensors file: its header is no JSON") from error
    if not isinstance(header, dict):
        raise EncoderError(f"{path}: not a safetensors file: its header is no mapping")
    header.pop("__metadata__", None)
    tensors = [_stored(path, name, entry, 8 + length) for name, entry in header.items()]
    for tensor in sorted(tensors, key=lambda tensor: tensor.end):  # so that the first one lost is named
        if tensor.end > size:
            ends = f"tensor {tensor.name!r} ends at byte {tensor.end}, the file at {size}"
            raise EncoderError(f"{path}: the file is cut off: {ends}")
    return {tensor.name: tensor for tensor in tensors}


def open_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint's folder: one file, or the shards its index names.

    Raises:
        EncoderError: no weights, only pickled ones, a shard missing, or a tensor not where the index says.
    """
    if (folder / INDEX).is_file():
        return _open_shards(folder / INDEX)
    if (folder / SINGLE).is_file():
        return open_safetensors(folder / SINGLE)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return open_safetensors(others[0])
    if others:
        names = ", ".join(file.name for file in others)
        raise EncoderError(f"{folder}: expected {SINGLE} or {INDEX}, found {len(others)} files: {names}")
    if any(file for pattern in _PICKLED for file in folder.glob(pattern)):
        command = f"python -m launch.convert --input={folder} --output=DIR"
        raise EncoderError(f"{folder}: the weights are pickled; first run: {command}")
    raise EncoderError(f"{folder}: no weights; expected {SINGLE} or {INDEX}")


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict):
        raise EncoderError(f"{index}: no weight_map that says which file holds which tensor")
    shards = {file: open_safetensors(index.parent / file) for file in sorted(set(placed.values()))}
    for name, file in placed.items():
        if name not in shards[file]:
            path = index.parent / file
            raise EncoderError(f"{path}: tensor {name!r} is missing, though {index.name} places it there")
    return {name: shards[file][name] for name, file in placed.items()}
