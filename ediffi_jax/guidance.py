"""Guidance and thresholds: transforms DenoiseFn -> DenoiseFn, to be nested in any order.

    classifier-free        D = D_c + w (D_c - D_0)            w = 0 is none; Imagen's scale is 1 + w
    limited to [lo, hi)    D = D_c outside                    arXiv 2404.07724
    dynamic threshold      D = clip(D_c, -s, s) / s,  s = max(1, quantile_p |D|) per image     Imagen, Sec. 2.3

Conditioning is an opaque pytree of rows [B, ...]: what it holds is the network's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ediffi_jax.denoiser import DenoiseFn, Level, per_pixel
from ediffi_jax.errors import UserError
from ediffi_jax.types import Images, PerImage, Scalar

DenoiseOf = Callable[[PyTree], DenoiseFn]


class GuidanceError(UserError):
    """An impossible interval or percentile, or conditionings that do not match."""


def classifier_free(
    denoise_of: DenoiseOf,
    cond: PyTree,
    null: PyTree,
    weight: float | Scalar | PerImage,
    interval: tuple[float, float] = (0.0, math.inf),
) -> DenoiseFn:
    """Classifier-free guidance, D = D_c + w (D_c - D_0), both passes in one doubled batch.

    Args:
        denoise_of: conditioning of n rows -> denoiser of n images. Anything else with a row per image
            (a low-resolution input) can travel in the same pytree.
        cond: conditioning, rows [B, ...].
        null: what to lead away from: no conditioning, or a negative prompt. Same structure and shapes.
        weight: w, one for all or one per image. The Python number 0 costs a single pass.
        interval: [lo, hi) of sigma in which guidance acts; outside it the null pass is not computed.

    Raises:
        GuidanceError: interval out of order, or cond and null of different structure or shapes.
    """
    low, high = interval
    if not 0.0 <= low < high:
        raise GuidanceError(f"guidance interval is {tuple(interval)}; expected 0 <= low < high, in sigma")
    _check_alike(cond, null)
    conditional = denoise_of(cond)
    if isinstance(weight, (int, float)) and weight == 0:
        return conditional
    doubled = denoise_of(jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null))

    def guided(x: Images, sigma: Level) -> Images:
        levels = sigma if jnp.ndim(sigma) == 0 else jnp.concatenate([sigma, sigma])
        d_c, d_0 = jnp.split(doubled(jnp.concatenate([x, x]), levels), 2)
        w = jnp.where((sigma >= low) & (sigma < high), weight, 0.0) if jnp.ndim(sigma) else weight
        return d_c + per_pixel(w) * (d_c - d_0)

    def limited(x: Images, sigma: Level) -> Images:
        if jnp.ndim(sigma) != 0:
            return guided(x, sigma)
        sigma = jnp.asarray(sigma, x.dtype)
        return jax.lax.cond((sigma >= low) & (sigma < high), guided, conditional, x, sigma)

    return guided if (low, high) == (0.0, math.inf) else limited


def dynamic_threshold(denoise: DenoiseFn, percentile: float = 0.995) -> DenoiseFn:
    """Imagen's dynamic threshold: an image that leaves [-1, 1] is clipped at its own percentile, and scaled back.

    Args:
        denoise: what to bound.
        percentile: p in (0, 1], of the absolute values of one image.

    Raises:
        GuidanceError: percentile outside (0, 1].
    """
    if not 0.0 < percentile <= 1.0:
        raise GuidanceError(f"percentile is {percentile}; expected a fraction in (0, 1], such as 0.995")

    def thresholded(x: Images, sigma: Level) -> Images:
        x0 = denoise(x, sigma)
        s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        s = per_pixel(jnp.maximum(1.0, s))
        return jnp.clip(x0, -s, s) / s

    return thresholded


def static_threshold(denoise: DenoiseFn) -> DenoiseFn:
    """Clips every x0 to [-1, 1]."""
    return lambda x, sigma: jnp.clip(denoise(x, sigma), -1.0, 1.0)


def _check_alike(cond: PyTree, null: PyTree) -> None:
    if jax.tree.structure(cond) != jax.tree.structure(null):
        raise GuidanceError("cond and null hold different encoders; expected the same structure")
    for (path, c), n in zip(jax.tree_util.tree_leaves_with_path(cond), jax.tree.leaves(null), strict=True):
        if jnp.shape(c) != jnp.shape(n):
            where = jax.tree_util.keystr(path)
            raise GuidanceError(
                f"cond{where} is {jnp.shape(c)} but null{where} is {jnp.shape(n)}; expected equal shapes"
            )
