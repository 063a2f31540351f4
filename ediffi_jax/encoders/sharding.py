"""Where the encoders' parameters and batches lie on a mesh: an ordered list of regex -> placement rules.

T5-XXL's encoder has 4.8 billion parameters, 11.5 GB with its matrices in bfloat16 and W_2 in float32: each
device keeps one part of every large leaf, and the compiler gathers a layer's weights as it comes to them.

`launch.encode` cuts leaves along the mesh axes that its user named for it, `fsdp`. Training cuts them along
every axis of `weight_axes`, which are `data` and `fsdp`: frozen weights have no gradient to reduce and no
moments, so a copy of them for each part of the data would only take room, also on a mesh with fsdp=1. They are
whole for every expert, so that no group of devices waits for another. Batches are cut over all axes but `expert`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ediffi_jax.types import Params

# First match wins. "replicate" keeps a leaf whole on every device; "last" cuts the last axis that the
# number of parts divides: output channels of a matrix, features of a table (so that looking a token up
# stays local).
RULES: tuple[tuple[str, str], ...] = (
    (r"(scale|bias|class_embedding)$", "replicate"),
    (r".*", "last"),
)
MIN_SHARDED_SIZE = 2**12  # smaller leaves cost more in latency than they save in memory
FSDP = ("fsdp",)


def weight_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes, but `expert`, along which training cuts encoder weights: those within a slice.

    Weights are gathered in every step, for which the network between the slices of a TPU is too slow.
    """
    slices = np.vectorize(lambda device: getattr(device, "slice_index", 0), otypes=[int])(mesh.devices)
    within = ((slices == slices.take([0], axis)).all() for axis in range(slices.ndim))
    return tuple(name for name, one in zip(mesh.axis_names, within, strict=True) if one and name != "expert")


def leaf_spec(path: str, shape: Sequence[int], parts: Mapping[str, int]) -> P:
    """Placement of one parameter, by the first matching rule.

    Args:
        path: its name, such as "t5/block_0/attention/q/kernel".
        shape: its shape.
        parts: size of each mesh axis to cut along. A leaf that their product does not divide is cut along
            the later ones alone.
    """
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    spec: list[Any] = [None] * len(shape)
    axes = [axis for axis, size in parts.items() if size > 1]
    if rule == "last" and math.prod(shape) >= MIN_SHARDED_SIZE:
        for first in range(len(axes)):
            count = math.prod(parts[axis] for axis in axes[first:])
            divisible = [axis for axis, size in enumerate(shape) if size % count == 0]
            if divisible:
                spec[divisible[-1]] = axes[-1] if len(axes) == first + 1 else tuple(axes[first:])
                break
    return P(*spec)


def leaf_sharding(mesh: Mesh, path: str, shape: Sequence[int], axes: Sequence[str] = FSDP) -> NamedSharding:
    """The sharding of one parameter, cut along some axes of the mesh."""
    return NamedSharding(mesh, leaf_spec(path, shape, {axis: mesh.shape[axis] for axis in axes}))


def param_shardings(mesh: Mesh, params: Params, axes: Sequence[str] = FSDP) -> Any:
    """The sharding of each leaf of the parameters (or of their shapes), same tree."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf_sharding(mesh, name, leaf.shape, axes)

    return jax.tree_util.tree_map_with_path(place, params)


def put(values: np.ndarray, dtype: Any, sharding: NamedSharding) -> jax.Array:
    """A host array on its devices; of a mapped file each process reads only the parts that its devices hold."""
    return jax.make_array_from_callback(values.shape, sharding, lambda part: np.asarray(values[part], dtype, order="C"))


def gathered(mesh: Mesh, params: Params) -> Params:
    """Parameters as a program uses them, to be called inside `jit`: whole, each gathered where it is used.

    Without it the compiler may leave weights in parts and gather every caption instead: that begins with the
    table of tokens, and ends in sums of attention's logits over all devices.

    Args:
        mesh: where they lie; inside `shard_map` its manual axes are left alone.
        params: in parts.
    """
    around = jax.sharding.get_abstract_mesh()
    if not around.empty and jax.__version_info__ < (0, 8):
        return params  # jax 0.7 cannot say it inside `shard_map`: there the compiler chooses
    return jax.lax.with_sharding_constraint(params, NamedSharding(mesh if around.empty else around, P()))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array [b, ...] of a batch."""
    return NamedSharding(mesh, P(tuple(axis for axis in mesh.axis_names if axis != "expert")))
