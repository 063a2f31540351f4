"""Scene -> picture, at any resolution, by signed distances and analytic anti-aliasing.

For a pixel of width 1/R the coverage of a region with signed distance d is
``clip(1/2 - d·R, 0, 1)``: the share of the pixel that a straight contour at distance d leaves
inside. Objects are painted in reverse order, each only within the window it can touch. Below 64
pixels a picture is the box average of a larger one, so fine patterns (stripes, hatching) average
out instead of aliasing and every resolution shows the same scene.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

from ediffi_jax.data.scenes import shapes
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.scene import Object, Scene

Canvas = Float[np.ndarray, "r r 3"]
Picture = UInt8[np.ndarray, "r r 3"]
Plane = Float[np.ndarray, "h w"]

SMALLEST = 64  # rendered directly from here on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a picture that an object (and `margin` around it) touches.

    Attributes:
        rows, columns: slices into the canvas.
        x, y: pixel centres relative to the object's centre, in radii of the object.
        px, py: pixel centres in fractions of the picture.
        scale: pixels per radius.
    """

    rows: slice
    columns: slice
    x: Plane
    y: Plane
    px: Plane
    py: Plane
    scale: float


def window(thing: Object, resolution: int, margin: float = 0.0) -> Window:
    """The window of `thing` in a picture of `resolution` pixels; `margin` in fractions of it."""
    reach = thing.radius + margin + 1 / resolution

    def span(centre: float) -> tuple[int, int]:
        low = max(0, int((centre - reach) * resolution))
        return low, max(low, min(resolution, int((centre + reach) * resolution) + 1))

    (x0, x1), (y0, y1) = span(thing.x), span(thing.y)
    px = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / resolution)[None, :]
    py = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / resolution)[:, None]
    return Window(
        rows=slice(y0, y1),
        columns=slice(x0, x1),
        x=(px - thing.x) / thing.radius,
        y=(py - thing.y) / thing.radius,
        px=px,
        py=py,
        scale=thing.radius * resolution,
    )


def coverage(distance: Plane, pixels: float) -> Plane:
    """The share of each pixel inside a contour; `pixels` per unit of `distance`."""
    return np.clip(0.5 - distance * pixels, 0, 1)


def paint(canvas: Canvas, where: Window, colour: np.ndarray, alpha: Plane) -> None:
    """Blends `colour` ([3] or [h, w, 3]) over the window of `canvas`, in place."""
    area = canvas[where.rows, where.columns]
    area += alpha[..., None] * (colour - area)


def rgb(thing: Object) -> np.ndarray:
    """An object's colour, float32 [3]."""
    return np.array(v.COLOURS[thing.colour], np.float32)


def shade(colour: np.ndarray) -> np.ndarray:
    """The second tone of a texture: darker, or lighter where the colour is dark already."""
    dark = colour.mean() < 60
    return colour + (255 - colour) * 0.25 if dark else colour * 0.62


def texture(thing: Object, where: Window) -> Plane | None:
    """Coverage of the texture's second tone, or None for a solid object."""
    if thing.texture == "striped":
        period = 0.5
        distance = np.abs((where.x + where.y) / np.sqrt(2) % period - period / 2) - period * 0.22
        return coverage(distance, where.scale)
    if thing.texture == "dotted":
        period = 0.5
        x, y = (np.abs(a % period - period / 2) for a in (where.x, where.y))
        return coverage(np.hypot(x, y) - period * 0.3, where.scale)
    return None


def backdrop(scene: Scene, resolution: int) -> Canvas:
    """The plain or vertically graded background."""
    top = np.array(v.BACKGROUNDS[scene.background], np.float32)
    bottom = np.array(v.BACKGROUNDS[scene.gradient_to or scene.background], np.float32)
    t = ((np.arange(resolution, dtype=np.float32) + 0.5) / resolution)[:, None, None]
    return np.repeat(top + t * (bottom - top), resolution, axis=1)


def flat(scene: Scene, resolution: int) -> Canvas:
    """The default style: plain fills, with the texture's second tone."""
    canvas = backdrop(scene, resolution)
    for thing in reversed(scene.objects):
        where = window(thing, resolution)
        colour = rgb(thing)
        second = texture(thing, where)
        if second is not None:
            colour = colour + second[..., None] * (shade(colour) - colour)
        distance = shapes.SDFS[thing.shape](where.x, where.y)
        paint(canvas, where, colour, coverage(distance, where.scale))
    return canvas


def render(scene: Scene, resolution: int) -> Picture:
    """The picture of a scene.

    Args:
        scene: what to draw.
        resolution: side in pixels, at least 8.

    Returns:
        uint8 RGB [resolution, resolution, 3].

    Raises:
        SceneError: the resolution is below 8.
    """
    from ediffi_jax.data.scenes import styles  # the styles are made of this module's brushes

    if resolution < 8:
        raise v.SceneError(f"a scene needs a resolution of at least 8 pixels, got {resolution}")
    factor = -(-SMALLEST // resolution)
    canvas = styles.STYLES[scene.style](scene, resolution * factor)
    if factor > 1:
        shape = (resolution, factor, resolution, factor, 3)
        canvas = canvas.reshape(shape).mean(axis=(1, 3))
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
