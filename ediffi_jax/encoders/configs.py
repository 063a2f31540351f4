"""Config dataclasses from the mappings in config.json, each value checked against the type of its default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ediffi_jax.encoders.errors import EncoderError

Config = TypeVar("Config")


def read_fields(cls: type[Config], *levels: Mapping[str, Any]) -> Config:
    """`cls` from mappings, later ones winning; null and keys that `cls` does not have are left.

    Raises:
        EncoderError: a value of another type than the default's, or a size below 1.
    """
    values = {}
    for field in dataclasses.fields(cls):
        for level in levels:
            if level.get(field.name) is not None:
                values[field.name] = _checked(field.name, level[field.name], type(field.default))
    return cls(**values)


def _checked(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise EncoderError(f"config.json: {name} is {value!r}, expected {kind.__name__}")
    if kind is int and value < (0 if name.endswith("_id") else 1):
        raise EncoderError(f"config.json: {name} is {value}, expected at least 1")
    return value
