"""Masks made in code: rectangles of the picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ediffi_jax.paint.errors import PaintError

FINE = 256  # side of the masks, whatever the cascade's resolution
SIDES = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)}

Soft = Float[np.ndarray, "h w"]


def box(x0: float, y0: float, x1: float, y1: float) -> Soft:
    """The rectangle from (x0, y0) to (x1, y1), fractions of the picture from its top left corner, edges exact.

    Raises:
        PaintError: not 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1.
    """
    try:
        edges = tuple(float(edge) for edge in (x0, y0, x1, y1))
    except (TypeError, ValueError) as error:
        raise PaintError(f"box {(x0, y0, x1, y1)}: expected four numbers x0, y0, x1, y1") from error
    if not (0 <= edges[0] < edges[2] <= 1 and 0 <= edges[1] < edges[3] <= 1):
        raise PaintError(f"box {edges}: expected 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, fractions of the picture")

    def covered(low: float, high: float) -> np.ndarray:
        pixels = np.arange(FINE)
        return np.clip(np.minimum(pixels + 1, high * FINE) - np.maximum(pixels, low * FINE), 0, 1)

    return np.outer(covered(edges[1], edges[3]), covered(edges[0], edges[2])).astype(np.float32)


def left() -> Soft:
    """The left half of the picture."""
    return box(*SIDES["left"])


def right() -> Soft:
    """The right half of the picture."""
    return box(*SIDES["right"])


def top() -> Soft:
    """The upper half of the picture."""
    return box(*SIDES["top"])


def bottom() -> Soft:
    """The lower half of the picture."""
    return box(*SIDES["bottom"])
