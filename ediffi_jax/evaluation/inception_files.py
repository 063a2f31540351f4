"""Reads the published FID Inception weights from a file of the user's.

    pt_inception-2015-12-05-6726825d.pth          pytorch-fid's     names such as Mixed_5b.branch1x1.conv.weight
    weights-inception-2015-12-05-6726825d.pth     torch-fidelity's  the same names
    what pytorch-fid's InceptionV3 saves          blocks.2.0.branch1x1.conv.weight, without the classifier

each as it is (which needs PyTorch, extra [convert]) or as safetensors (`launch.convert` makes them, once).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ediffi_jax import copies
from ediffi_jax.encoders.convert import read_pickle
from ediffi_jax.encoders.files import open_folder, open_safetensors
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.inception import SIZE, Inception
from ediffi_jax.types import Params

CLASSES = 1008  # of the 2015 network; torchvision's ImageNet network has 1000
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), ("Conv2d_3b_1x1", "Conv2d_4a_3x3")
_MIXED = tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e"))
_BLOCKS = (*_STEM, _MIXED, ("Mixed_7a", "Mixed_7b", "Mixed_7c"))  # of pytorch-fid's wrapper
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def load(path: str | os.PathLike) -> tuple[Params, str]:
    """Variables of `Inception`, and a fingerprint of them (16 hex digits, the same from every layout).

    Args:
        path: a pickled state dict, a safetensors file, or a folder with one; on a disk or in an object store.

    Raises:
        EvaluationError: another network's weights, or tensors missing or misshapen.
        EncoderError: an unreadable file, or a pickle without PyTorch installed.
    """
    file = copies.local(path)
    tensors = _named(_read(file))
    _refuse_torchvision(tensors, file)
    digest, flat = hashlib.sha256(), {}
    for leaf, shape in sorted(_shapes().items()):
        name = tensor_name(leaf)
        if name not in tensors:
            raise EvaluationError(f"{file}: tensor {name!r} is missing; expected the FID Inception of 2015-12-05")
        values = np.asarray(tensors[name], np.float32)
        values = values.transpose(2, 3, 1, 0) if leaf[-1] == "kernel" else values
        if values.shape != shape:
            expected = f"expected {list(shape)} as of the FID Inception of 2015-12-05"
            raise EvaluationError(f"{file}: tensor {name!r} has shape {list(values.shape)} (channels last), {expected}")
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        flat[leaf] = jnp.asarray(values)
    return flax.traverse_util.unflatten_dict(flat), digest.hexdigest()[:16]


def tensor_name(leaf: tuple[str, ...]) -> str:
    """The published name of a variable of `Inception`, such as Mixed_5b.branch1x1.bn.running_mean."""
    collection, *place, kind = leaf
    return ".".join((*place, _LEAVES[collection, kind]))


def _shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    return {leaf: value.shape for leaf, value in flax.traverse_util.flatten_dict(shapes).items()}


def _read(file: Path) -> Mapping[str, np.ndarray]:
    if not file.exists():
        raise EvaluationError(f"no Inception weights in {file}; expected pt_inception-2015-12-05-6726825d.pth")
    if file.is_dir() or file.suffix == ".safetensors":
        stored = open_folder(file) if file.is_dir() else open_safetensors(file)
        return {name: tensor.read() for name, tensor in stored.items()}
    return read_pickle(file)


def _named(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the names of the bare network."""

    def bare(match: re.Match[str]) -> str:
        block, index = int(match[1]), int(match[2])
        names = _BLOCKS[block] if block < len(_BLOCKS) else ()
        return f"{names[index]}." if index < len(names) else match[0]

    return {re.sub(r"^blocks\.(\d+)\.(\d+)\.", bare, name): values for name, values in tensors.items()}


def _refuse_torchvision(tensors: Mapping[str, np.ndarray], file: Path) -> None:
    """torchvision's network has the same names and shapes but for its classifier, and other features."""
    classes = len(tensors.get("fc.weight", ())) or CLASSES
    if classes != CLASSES or any(name.startswith("AuxLogits") for name in tensors):
        raise EvaluationError(
            f"{file}: these are torchvision's ImageNet weights ({classes} classes), whose features give other numbers;"
            " expected the FID Inception, pt_inception-2015-12-05-6726825d.pth"
        )
