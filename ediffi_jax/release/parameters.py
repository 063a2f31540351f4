"""A stage's parameters as named tensors: flattening, dtypes, and the check against its network.

A parameter tree {"down": {"conv": {"kernel": w}}} is the tensor "down/conv/kernel" in a file. Each
tensor has the expert axis first. What a network needs is known without its weights, from
`jax.eval_shape` of its initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ediffi_jax import conditioning, models
from ediffi_jax.conditioning import ConditioningSpec
from ediffi_jax.errors import nearest
from ediffi_jax.release.spec import ReleaseError, StageSpec

STORED_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """{"a": {"b": w}} -> {"a/b": w}."""
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": w} -> {"a": {"b": w}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def store(params: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """Flat host arrays in the dtype of a file.

    Raises:
        ReleaseError: a dtype that is not stored, or a weight that is not finite in it.
    """
    if dtype not in STORED_DTYPES:
        raise ReleaseError(f"unknown dtype {dtype!r}{nearest(dtype, STORED_DTYPES)}")
    flat = {}
    for name, value in flatten(params).items():
        with np.errstate(over="ignore"):
            flat[name] = np.ascontiguousarray(np.asarray(value).astype(STORED_DTYPES[dtype]))
        if not np.isfinite(flat[name].astype(np.float32)).all():
            raise ReleaseError(f"tensor {name!r} is not finite as {dtype}; expected finite weights")
    return flat


def parameter_shapes(spec: StageSpec, conditioning_spec: ConditioningSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape, expert axis first, of every tensor the stage's network needs."""
    network = models.build(spec.model)

    def init() -> Any:
        cond = conditioning.zeros(1, conditioning_spec)
        x = jnp.zeros((1, spec.resolution, spec.resolution, 3))
        extra = {}
        if spec.low_resolution:
            low_res = jnp.zeros((1, spec.low_resolution, spec.low_resolution, 3))
            extra = {"low_res": low_res, "aug_level": jnp.zeros((1,))}
        return network.init(jax.random.key(0), x, jnp.zeros((1,)), cond, **extra)["params"]

    shapes = flatten(jax.eval_shape(init))
    return {name: (spec.ensemble.num_experts, *leaf.shape) for name, leaf in shapes.items()}


def check_params(
    flat: Mapping[str, np.ndarray], spec: StageSpec, conditioning_spec: ConditioningSpec, where: str
) -> None:
    """Holds named tensors against what the stage's network needs.

    Raises:
        ReleaseError: a missing, extra or misshapen tensor; `where` names the file or checkpoint.
    """
    expected = parameter_shapes(spec, conditioning_spec)
    if missing := sorted(expected.keys() - flat.keys()):
        raise ReleaseError(f"{where} lacks {_some(missing)} of stage {spec.name!r} ({spec.model['name']})")
    if extra := sorted(flat.keys() - expected.keys()):
        raise ReleaseError(f"{where} holds {_some(extra)} unknown to stage {spec.name!r} ({spec.model['name']})")
    for name, shape in expected.items():
        if tuple(flat[name].shape) != shape:
            raise ReleaseError(
                f"{where}: tensor {name!r} has shape {tuple(flat[name].shape)}; expected {shape}"
                f" for {shape[0]} experts of stage {spec.name!r}"
            )


def _some(names: list[str]) -> str:
    return f"tensor {names[0]!r}" if len(names) == 1 else f"tensor {names[0]!r} and {len(names) - 1} more"
