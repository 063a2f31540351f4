"""Activations by the names Hugging Face configs use.

quick_gelu(x) = x sigmoid(1.702 x)          gelu_new = gelu by its tanh approximation
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.errors import nearest

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]

_ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def activation(name: str) -> Activation:
    """The function of that name.

    Raises:
        EncoderError: no such activation.
    """
    if name not in _ACTIVATIONS:
        raise EncoderError(f"unknown activation {name!r}{nearest(name, _ACTIVATIONS)}")
    return _ACTIVATIONS[name]
