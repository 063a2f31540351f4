"""What is done to a picture: float32 RGB [h, w, 3] in [0, 1]; noise, bicubic resizing and sinc leave that range."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

from ediffi_jax.data.degrade.kernels import Kernel

Image = Float[np.ndarray, "h w 3"]

RESIZERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def blur(image: Image, kernel: Kernel) -> Image:
    """The picture, mirrored at its borders, filtered with a kernel."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize(image: Image, height: int, width: int, resizer: int) -> Image:
    """Another size by one of `RESIZERS`. Bilinear and bicubic alias when they shrink, which is meant."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=resizer)


def gaussian_noise(image: Image, sigma: float, gray: bool, rng: np.random.Generator) -> Image:
    """Plus normal noise of standard deviation `sigma`; the same in all channels if `gray`."""
    shape = (*image.shape[:2], 1 if gray else 3)
    return image + np.float32(sigma) * rng.standard_normal(shape, np.float32)


def poisson_noise(image: Image, scale: float, gray: bool, rng: np.random.Generator) -> Image:
    """Plus `scale` times the noise of counting photons, P(n·x)/n - x for a value x in [0, 1].

    Its mean is 0 and its variance scale²·x/n, where n is the number of 8-bit levels that the picture has, rounded up
    to a power of two: what Real-ESRGAN's training does, though its paper does not say so.

    Args:
        image: values are read as 8-bit levels.
        scale: of the noise.
        gray: count in the picture's luma, and add the same noise to all channels.
        rng: the draws.
    """
    seen = image @ LUMA if gray else image
    levels = to_levels(seen)
    photons = 1 << int(len(np.unique(levels)) - 1).bit_length()
    expected = levels.astype(np.float32) / 255
    noise = (rng.poisson(expected * photons) / photons - expected).astype(np.float32)
    return image + np.float32(scale) * (noise[..., None] if gray else noise)


def jpeg(image: Image, quality: int) -> Image:
    """Through a JPEG of a quality from 1 to 100 and back, chroma at half the resolution."""
    return cv2.cvtColor(cv2.imdecode(encode(image, quality), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) / np.float32(255)


def encode(image: Image, quality: int) -> np.ndarray:
    """The JPEG's bytes, uint8 [n]."""
    settings = (
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    )
    return cv2.imencode(".jpg", cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR), settings)[1]


def mean_colour(image: np.ndarray) -> Float[np.ndarray, "3"]:
    """Of a picture [h, w, 3] of any type, float32; OpenCV's is many times faster than numpy's here."""
    return np.array(cv2.mean(np.ascontiguousarray(image))[:3], np.float32)


def to_levels(image: np.ndarray) -> np.ndarray:
    """[0, 1], what lies outside cut off, to uint8."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
