"""Blur kernels, on the grid of whole pixels x around the centre, each divided by its sum.

    q(x) = xᵀ Σ⁻¹ x,   Σ = R(θ) diag(σ₁², σ₂²) R(θ)ᵀ,   r = |x|

    Gaussian      exp(-q / 2)                        isotropic for σ₁ = σ₂
    generalized   exp(-q^β / 2)                      β < 1 heavier tails, β > 1 flatter top
    plateau       1 / (1 + q^β)
    sinc          ω J₁(ω r) / (2π r), ω² / 4π at 0   low-pass: keeps frequencies below ω radians a pixel, and rings

From Real-ESRGAN (arXiv 2107.10833, Sec. 3.2 and 3.3), kernels that are not sinc after BSRGAN (arXiv 2103.14006).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import special

Kernel = Float[np.ndarray, "size size"]


def gaussian(size: int, sigmas: tuple[float, float], angle: float = 0.0, beta: float = 1.0) -> Kernel:
    """Gaussian, or with another `beta` generalized; float32.

    Args:
        size: side in pixels, odd.
        sigmas: σ₁ along the turned x axis and σ₂ along the y axis, pixels.
        angle: θ, radians.
        beta: the exponent.
    """
    return _normalised(np.exp(-0.5 * _quadratic(size, sigmas, angle) ** beta))


def plateau(size: int, sigmas: tuple[float, float], angle: float, beta: float) -> Kernel:
    """Arguments as in `gaussian`."""
    return _normalised(1 / (1 + _quadratic(size, sigmas, angle) ** beta))


def sinc(size: int, cutoff: float) -> Kernel:
    """The circular low-pass filter that keeps frequencies up to `cutoff`, in radians a pixel, as far as it fits."""
    y, x = _grid(size)
    radius = np.hypot(x, y)
    ringing = cutoff * special.j1(cutoff * radius) / (2 * np.pi * np.where(radius == 0, 1, radius))
    return _normalised(np.where(radius == 0, cutoff**2 / (4 * np.pi), ringing))


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"a kernel has an odd side, got {size}")
    steps = np.arange(size, dtype=np.float64) - size // 2
    return np.meshgrid(steps, steps, indexing="ij")


def _quadratic(size: int, sigmas: tuple[float, float], angle: float) -> Float[np.ndarray, "size size"]:
    """q: squared distance from the centre in standard deviations."""
    y, x = _grid(size)
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    return (along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2


def _normalised(kernel: np.ndarray) -> Kernel:
    return (kernel / kernel.sum()).astype(np.float32)
