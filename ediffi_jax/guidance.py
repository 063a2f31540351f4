"""Guidance and thresholds: transforms DenoiseFn -> DenoiseFn, to be nested in any order.

    classifier-free        D = D_c + w (D_c - D_0)            w = 0 is none; Imagen's scale is 1 + w
    text and style apart   D = D_ts + w (D_t - D_0) + s (D_ts - D_t)                          arXiv 2211.09800, Eq. 3
    limited to [lo, hi)    D = D_c outside                    arXiv 2404.07724
    dynamic threshold      D = clip(D_c, -s, s) / s,  s = max(1, quantile_p |D|) per image     Imagen, Sec. 2.3
    prompt switching       D = D_1 where sigma >= s, else D_2                                  eDiff-I, Fig. 4

Conditioning is an opaque pytree of rows [B, ...]: what it holds is the network's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ediffi_jax.denoiser import DenoiseFn, Level, per_pixel
from ediffi_jax.errors import UserError
from ediffi_jax.types import Images, PerImage, Scalar

DenoiseOf = Callable[[PyTree], DenoiseFn]
Weight = float | Scalar | PerImage
Limit = Callable[[Weight], Weight]


class GuidanceError(UserError):
    """An impossible interval or percentile, or conditionings that do not match."""


def classifier_free(
    denoise_of: DenoiseOf,
    cond: PyTree,
    null: PyTree,
    weight: Weight,
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
    _check(interval, cond, null)
    if isinstance(weight, (int, float)) and weight == 0:
        return denoise_of(cond)

    def combine(limit: Limit, d_c: Images, d_0: Images) -> Images:
        return d_c + per_pixel(limit(weight)) * (d_c - d_0)

    return _in_one_batch(denoise_of, (cond, null), combine, interval)


def text_and_style(
    denoise_of: DenoiseOf,
    cond: PyTree,
    text: PyTree,
    null: PyTree,
    weight: Weight,
    style_weight: Weight,
    interval: tuple[float, float] = (0.0, math.inf),
) -> DenoiseFn:
    """Guidance by text and by style image with weights of their own, three passes in one tripled batch.

    D = D_ts + w (D_t - D_0) + s (D_ts - D_t), the form of InstructPix2Pix with the text as the first of its two
    conditions: s = w is plain guidance by both, s = 0 takes the style as it comes and guides by the text alone.

    Args:
        denoise_of: conditioning of n rows -> denoiser of n images.
        cond: text and style image, rows [B, ...]: D_ts.
        text: the same without the style image: D_t.
        null: what to lead away from: D_0.
        weight: w, one for all or one per image. The Python number 0 costs two passes, which leave out D_0.
        style_weight: s, likewise.
        interval: [lo, hi) of sigma in which guidance acts; outside it only D_ts is computed.

    Raises:
        GuidanceError: interval out of order, or conditionings of different structure or shapes.
    """
    _check(interval, cond, text)
    _check(interval, cond, null)
    if isinstance(weight, (int, float)) and weight == 0:
        return classifier_free(denoise_of, cond, text, style_weight, interval)

    def combine(limit: Limit, d_ts: Images, d_t: Images, d_0: Images) -> Images:
        by_text = per_pixel(limit(weight)) * (d_t - d_0)
        return d_ts + by_text + per_pixel(limit(style_weight)) * (d_ts - d_t)

    return _in_one_batch(denoise_of, (cond, text, null), combine, interval)


def _in_one_batch(
    denoise_of: DenoiseOf, conds: Sequence[PyTree], combine: Callable[..., Images], interval: tuple[float, float]
) -> DenoiseFn:
    """combine(limit, D_0, D_1, ...) of all conditionings in one batch; outside the interval the first alone.

    `limit` makes a weight 0 for those images whose own sigma lies outside.
    """
    low, high = interval
    count, alone = len(conds), denoise_of(conds[0])
    together = denoise_of(jax.tree.map(lambda *rows: jnp.concatenate(rows), *conds))

    def guided(x: Images, sigma: Level) -> Images:
        levels = sigma if jnp.ndim(sigma) == 0 else jnp.concatenate([sigma] * count)
        passes = jnp.split(together(jnp.concatenate([x] * count), levels), count)
        inside = (sigma >= low) & (sigma < high) if jnp.ndim(sigma) else None
        return combine(lambda w: w if inside is None else jnp.where(inside, w, 0.0), *passes)

    def limited(x: Images, sigma: Level) -> Images:
        if jnp.ndim(sigma) != 0:
            return guided(x, sigma)
        sigma = jnp.asarray(sigma, x.dtype)
        return jax.lax.cond((sigma >= low) & (sigma < high), guided, alone, x, sigma)

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


def switch_prompt(before: DenoiseFn, after: DenoiseFn, sigma: float | Scalar) -> DenoiseFn:
    """One denoiser down to a noise level, another below it: what the later steps still take from their prompt.

    Args:
        before: denoiser of the first prompt, for levels >= sigma; sampling begins with it.
        after: denoiser of the second prompt, for levels below.
        sigma: where to switch. 0 never does; infinity does at once. May be traced; then it is not checked.

    Raises:
        GuidanceError: sigma is negative or no number.
    """
    if not isinstance(sigma, jax.core.Tracer) and not sigma >= 0.0:
        raise GuidanceError(f"sigma is {sigma}; expected a noise level >= 0, 0 for no switch")

    def switched(x: Images, level: Level) -> Images:
        if jnp.ndim(level) != 0:
            return jnp.where(per_pixel(level) >= sigma, before(x, level), after(x, level))
        level = jnp.asarray(level, x.dtype)
        return jax.lax.cond(level >= sigma, before, after, x, level)

    return switched


def _check(interval: tuple[float, float], cond: PyTree, null: PyTree) -> None:
    low, high = interval
    if not 0.0 <= low < high:
        raise GuidanceError(f"guidance interval is {tuple(interval)}; expected 0 <= low < high, in sigma")
    if jax.tree.structure(cond) != jax.tree.structure(null):
        raise GuidanceError("cond and null hold different encoders; expected the same structure")
    for (path, c), n in zip(jax.tree_util.tree_leaves_with_path(cond), jax.tree.leaves(null), strict=True):
        if jnp.shape(c) != jnp.shape(n):
            where = jax.tree_util.keystr(path)
            raise GuidanceError(
                f"cond{where} is {jnp.shape(c)} but null{where} is {jnp.shape(n)}; expected equal shapes"
            )
