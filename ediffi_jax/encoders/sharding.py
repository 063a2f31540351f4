"""Where the encoders' parameters and batches lie on a mesh: an ordered list of regex -> placement rules.

T5-XXL's encoder has 4.8 billion parameters, 11.5 GB with its matrices in bfloat16 and W_2 in float32: each
device keeps one part in `fsdp` of every large leaf, and the compiler gathers a layer's weights as it comes to
them. Batches are cut over all axes that there are but `expert`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ediffi_jax.types import Params

# First match wins. "replicate" keeps a leaf whole on every device; "last" cuts the last axis that `fsdp`
# divides: output channels of a matrix, features of a table (so that looking a token up stays local).
RULES: tuple[tuple[str, str], ...] = (
    (r"(scale|bias|class_embedding)$", "replicate"),
    (r".*", "last"),
)
MIN_SHARDED_SIZE = 2**12  # smaller leaves cost more in latency than they save in memory


def leaf_spec(path: str, shape: Sequence[int], fsdp: int) -> P:
    """Placement of the parameter called `path` ("t5/block_0/attention/q/kernel"), by the first matching rule."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    spec: list[str | None] = [None] * len(shape)
    if rule == "last" and fsdp > 1 and math.prod(shape) >= MIN_SHARDED_SIZE:
        divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
        if divisible:
            spec[divisible[-1]] = "fsdp"
    return P(*spec)


def param_shardings(mesh: Mesh, params: Params) -> Any:
    """The sharding of each leaf of the parameters (or of their shapes), same tree; `mesh` has an axis `fsdp`."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, leaf_spec(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array [b, ...] of a batch."""
    return NamedSharding(mesh, P(tuple(axis for axis in mesh.axis_names if axis != "expert")))
