"""What a base network looks at: its cross-attention's weights at one noise level (eDiff-I, Fig. 3).

    maps = maps_fn(stage, conditioning)(x, sigma)      {layer: [b, heads, pixels, tokens]}, softmax(Q K^T / sqrt(d))
    shares(maps, conditioning)                         {clip_text, t5, clip_image, null}, which sum to 1

Tokens are those of the context: CLIP text, T5, CLIP image, null. The null token is learned and always there: what rests
on it is attention that the network does not spend on the condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ediffi_jax import experts
from ediffi_jax.conditioning import Conditioning
from ediffi_jax.denoiser import precondition
from ediffi_jax.models.attention import ATTENTION, Weights
from ediffi_jax.stage import CascadeError, Stage
from ediffi_jax.types import Images

Maps = dict[str, Weights]


def maps_fn(stage: Stage, conditioning: Conditioning) -> Callable[[Images, float], Maps]:
    """A function from noisy images [B, R, R, 3] and one sigma to the weights of every cross-attention, by block.

    The expert that owns sigma is asked. Compiled once, at the first call.

    Args:
        stage: a base stage with cross-attention.
        conditioning: rows [B, ...].

    Raises:
        CascadeError: a super-resolution stage, or one without cross-attention.
    """
    if stage.spec.low_resolution or not stage.has_cross_attention:
        raise CascadeError(f"stage {stage.spec.name!r} is no base stage with cross-attention; expected one")

    @jax.jit
    def program(params: PyTree, cond: Conditioning, x: Images, sigma: Float[Array, ""]) -> Maps:
        found: Maps = {}

        def network(scaled: Images, c_noise: Array) -> Images:
            f, sown = stage.network.apply({"params": params}, scaled, c_noise, cond, mutable=ATTENTION)
            found.update({block: layer["cross_attention"]["weights"][0] for block, layer in sown[ATTENTION].items()})
            return f

        precondition(network, stage.spec.sigma_data)(x, sigma)
        return found

    own = [stage.at_compute_dtype(params) for params in experts.unstack(stage.params)]

    def maps(x: Images, sigma: float) -> Maps:
        return program(own[int(stage.ensemble.route(sigma))], conditioning, x, jnp.float32(sigma))

    return maps


def shares(maps: Mapping[str, Weights], conditioning: Conditioning) -> dict[str, Float[np.ndarray, "b"]]:
    """Where attention goes: of every image the share of each part of its context, over layers, heads and pixels."""
    columns = np.mean([np.asarray(weights, np.float64).mean(axis=(1, 2)) for weights in maps.values()], axis=0)
    text = conditioning.clip_text.shape[1]
    ends = np.cumsum([text, conditioning.t5.shape[1], 1])
    parts = np.split(columns, ends, axis=1)
    return {name: part.sum(axis=1) for name, part in zip(("clip_text", "t5", "clip_image", "null"), parts, strict=True)}
