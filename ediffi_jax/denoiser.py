"""What is denoised: the one interface of the method, EDM's preconditioning around a network, and the loss.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)          EDM (arXiv 2206.00364), Eq. 7 and Table 1
    s = sqrt(sigma^2 + sigma_data^2)
    c_skip = sigma_data^2 / s^2     c_out = sigma sigma_data / s     c_in = 1 / s     c_noise = ln(sigma) / 4
    lambda(sigma) = 1 / c_out^2 = s^2 / (sigma sigma_data)^2
    L = 1[low <= sigma < high] lambda(sigma) mean (D(y + sigma eps; sigma) - y)^2      eDiff-I, Sec. 3

At sigma -> 0, D is the identity; at sigma -> infinity it is the network alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from ediffi_jax.types import Images, PerImage, Scalar, Sigmas

Network = Callable[[Images, Sigmas], Images]
Level = float | Scalar | Sigmas


class DenoiseFn(Protocol):
    """The expected clean images given noisy ones: all that samplers, guidance and thresholds know of a model."""

    def __call__(self, x: Images, sigma: Level) -> Images:
        """E[y | y + sigma eps = x].

        Args:
            x: noisy images [B, H, W, C], of standard deviation about sqrt(sigma^2 + sigma_data^2).
            sigma: standard deviation of their noise, one for all (always so in samplers) or one each.

        Returns:
            clean images [B, H, W, C] in about [-1, 1].
        """
        ...


def per_pixel(value: Level) -> Float[Array, "..."]:
    """A scalar as it is, [B] as [B, 1, 1, 1], so that it multiplies images."""
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value.reshape(-1, 1, 1, 1)


def precondition(network: Network, sigma_data: float = 0.5) -> DenoiseFn:
    """EDM's preconditioning: scales what goes in and out of a network to unit variance.

    Args:
        network: F(c_in x [B, H, W, C], c_noise [B]) -> [B, H, W, C].
        sigma_data: standard deviation of the data's pixels.
    """

    def denoise(x: Images, sigma: Level) -> Images:
        sigma = jnp.asarray(sigma, x.dtype)
        s = jnp.sqrt(sigma**2 + sigma_data**2)
        c_skip, c_out, c_in = sigma_data**2 / s**2, sigma * sigma_data / s, 1.0 / s
        # ln 0 would be -inf, and 0 * F(-inf) no number: keeps D(x; 0) = x.
        c_noise = jnp.log(jnp.maximum(sigma, jnp.finfo(sigma.dtype).tiny)) / 4.0
        f = network(per_pixel(c_in) * x, jnp.broadcast_to(c_noise, x.shape[:1]))
        return per_pixel(c_skip) * x + per_pixel(c_out) * f

    return denoise


def loss_weight(sigma: Level, sigma_data: float = 0.5) -> Float[Array, "..."]:
    """lambda(sigma) = 1 / c_out^2: every noise level starts training with the same loss."""
    return (jnp.asarray(sigma) ** 2 + sigma_data**2) / (sigma * sigma_data) ** 2


def interval_loss(
    denoise: DenoiseFn,
    images: Images,
    noise: Images,
    sigma: Sigmas,
    low_sigma: float | Scalar,
    high_sigma: float | Scalar,
    sigma_data: float = 0.5,
) -> PerImage:
    """Weighted denoising error of each sample; exactly 0, and of gradient 0, where sigma is outside the interval.

    Args:
        denoise: the expert.
        images: clean images [B, H, W, C].
        noise: unit normal, of the same shape.
        sigma: noise levels [B].
        low_sigma: lower edge of the expert's interval, inside it.
        high_sigma: upper edge, outside it.
        sigma_data: standard deviation of the data's pixels.

    Returns:
        [B] losses.
    """
    inside = (sigma >= low_sigma) & (sigma < high_sigma)
    # The expert never sees a level it is not for: a product with the mask would keep 0 * inf and 0 * nan,
    # in the loss or in its gradient, and a sample that does not count could spoil the batch.
    seen = jnp.where(inside, sigma, 1.0)
    error = denoise(images + per_pixel(seen) * noise, seen) - images
    error = jnp.where(per_pixel(inside), error, 0.0)
    return loss_weight(seen, sigma_data) * jnp.mean(error**2, axis=(1, 2, 3))
