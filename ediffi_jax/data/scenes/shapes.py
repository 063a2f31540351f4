"""Signed distances of the shapes: negative inside, positive outside, 0 on the contour.

Every shape fills the box [-1, 1]² (the longer side exactly), centred on its bounding box. Distances
are Euclidean (but for the inner corners of unions and cuts), so a contour is anti-aliased at any resolution by
``coverage = clip(1/2 - distance · pixels_per_unit, 0, 1)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "h w"]
Sdf = Callable[[Plane, Plane], Plane]

RING_HOLE = 0.52  # inner radius
CROSS_ARM = 0.36  # half width of a bar
SQUARE_HALF = 0.94


def circle(x: Plane, y: Plane) -> Plane:
    """A disc of radius 1."""
    return np.hypot(x, y) - 1


def box(x: Plane, y: Plane, half_x: float, half_y: float) -> Plane:
    """An upright rectangle around the origin."""
    qx, qy = np.abs(x) - half_x, np.abs(y) - half_y
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0)


def square(x: Plane, y: Plane) -> Plane:
    """A little smaller than its box, so that its area is nearer to the others'."""
    return box(x, y, SQUARE_HALF, SQUARE_HALF)


def cross(x: Plane, y: Plane) -> Plane:
    """Two bars; the distance near the four inner corners is inexact, as of any union."""
    return np.minimum(box(x, y, 1, CROSS_ARM), box(x, y, CROSS_ARM, 1))


def ring(x: Plane, y: Plane) -> Plane:
    """A disc with a concentric hole."""
    return np.abs(np.hypot(x, y) - (1 + RING_HOLE) / 2) - (1 - RING_HOLE) / 2


def triangle(x: Plane, y: Plane) -> Plane:
    """Apex up. The left-right symmetry leaves two edges of a half triangle to measure."""
    x = np.abs(x)
    top, bottom, half = -0.92, 0.92, 1.0
    ex, ey = half, bottom - top  # the slanted edge, from the apex
    t = np.clip((x * ex + (y - top) * ey) / (ex * ex + ey * ey), 0, 1)
    slanted = np.hypot(x - t * ex, y - top - t * ey)
    base = np.hypot(np.maximum(x - half, 0), y - bottom)
    outside = np.maximum(x * ey - (y - top) * ex, y - bottom) > 0
    return np.where(outside, 1, -1) * np.minimum(slanted, base)


def heart(x: Plane, y: Plane) -> Plane:
    """Two arcs over a right angle: the union of a square standing on its corner and two discs."""
    x, y = np.abs(x), HEART_TIP - y  # the tip is at the origin, y up
    x, y = x / SCALE_HEART, y / SCALE_HEART
    upper = np.hypot(x - 0.25, y - 0.75) - np.sqrt(0.125)
    # Below the line x + y = 1 the nearest contour is the straight side y = x or the notch (0, 1).
    along = 0.5 * np.maximum(x + y, 0)
    side = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along))
    lower = np.sign(x - y) * side
    return SCALE_HEART * np.where(x + y > 1, upper, lower)


SCALE_HEART = 1 / (0.25 + np.sqrt(0.125))  # makes the half width 1
HEART_TIP = SCALE_HEART * (0.75 + np.sqrt(0.125)) / 2  # half the height: the tip lies this far down


def moon(x: Plane, y: Plane) -> Plane:
    """A disc of radius 1 without a disc of radius 0.74 shifted to the right; centred on its box."""
    x = x - MOON_SHIFT
    return np.maximum(np.hypot(x, y) - 1, MOON_CUT - np.hypot(x - MOON_OFFSET, y))


MOON_CUT, MOON_OFFSET = 0.74, 0.56
_HORN = (1 - MOON_CUT**2 + MOON_OFFSET**2) / (2 * MOON_OFFSET)  # x where the two circles meet
MOON_SHIFT = (1 - _HORN) / 2

SDFS: dict[str, Sdf] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "cross": cross,
    "ring": ring,
    "heart": heart,
    "moon": moon,
}

# Where an object inside a container sits: the centre of the container's largest inscribed circle.
INNER_CENTRE = {"circle": 0.0, "square": 0.0, "triangle": 0.32, "heart": -0.1}


@functools.cache
def extent(shape: str) -> tuple[float, float]:
    """Half width and half height of a shape of radius 1, measured on its own rendering."""
    axis = np.linspace(-1.1, 1.1, 441)
    inside = SDFS[shape](axis[None, :], axis[:, None]) < 0
    return float(axis[inside.any(0)].max()), float(axis[inside.any(1)].max())
