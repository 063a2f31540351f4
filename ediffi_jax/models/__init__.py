"""The networks F(x; c_noise, cond): `UNet` for the base, `EfficientUNet` for super-resolution, and `build`.

Both are Linen modules whose sizes are all attributes; `build` makes one from a config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ediffi_jax.errors import nearest
from ediffi_jax.models.attention import Context, Paint
from ediffi_jax.models.efficient_unet import EfficientUNet
from ediffi_jax.models.errors import ModelError
from ediffi_jax.models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "efficient_unet": EfficientUNet}
DTYPES = ("float32", "bfloat16")

__all__ = ["Context", "DTYPES", "EfficientUNet", "MODELS", "ModelError", "Paint", "UNet", "build"]


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network that a config describes.

    Args:
        config: "name" is "unet" or "efficient_unet"; every other key is an attribute of that module.

    Raises:
        ModelError: unknown name, attribute or dtype.
    """
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    name = config.pop("name", None)
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}{nearest(str(name), MODELS)}")
    known = [key for key in MODELS[name].__dataclass_fields__ if key not in ("parent", "name")]
    for key in config:
        if key not in known:
            raise ModelError(f"model {name!r} has no attribute {key!r}{nearest(key, known)}")
    dtype = config.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}{nearest(str(dtype), DTYPES)}")
    return MODELS[name](**config)
