"""The visual styles: each is a function (scene, resolution) -> canvas that changes the whole picture.

Outline, neon and sketch draw object by object on a changed background: a function (canvas, object) for each
is in `BRUSHES`, for whoever looks for the object whose drawing a picture shows.

    flat     plain fills on a plain background            (rendering.flat)
    outline  thick coloured contours, their inside and the background pale
    pastel   everything mixed with white
    neon     glowing contours in the dark
    mosaic   16 x 16 tiles with dark joints
    sketch   coloured hatching with pencil contours on paper
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ediffi_jax.data.scenes import rendering as r
from ediffi_jax.data.scenes import shapes
from ediffi_jax.data.scenes.scene import Object, Scene

PAPER = np.array((248, 244, 232), np.float32)
PENCIL = np.array((62, 58, 64), np.float32)
JOINT = np.array((46, 40, 38), np.float32)
TILES = 16
JOINT_HALF = 0.09  # half of a joint's width, in tiles
# A quiet chequer of light and dark makes the tiles visible on a plain background.
LIFT = 1 + 0.05 * (-1.0) ** np.add.outer(np.arange(TILES), np.arange(TILES))

Brush = Callable[[r.Canvas, Object], None]


def _draw_all(canvas: r.Canvas, scene: Scene, brush: Brush) -> r.Canvas:
    for thing in reversed(scene.objects):
        brush(canvas, thing)
    return canvas


def outline(scene: Scene, resolution: int) -> r.Canvas:
    """The background pales to a tint, every object is a thick contour around a pale fill."""
    canvas = r.backdrop(scene, resolution)
    canvas += 0.45 * (PAPER - canvas)
    return _draw_all(canvas, scene, draw_outline)


def draw_outline(canvas: r.Canvas, thing: Object) -> None:
    """A thick contour, inside the object's edge, around a pale fill; in place."""
    where = r.window(thing, canvas.shape[0])
    distance = shapes.SDFS[thing.shape](where.x, where.y)
    r.paint(canvas, where, 0.3 * r.rgb(thing) + 0.7 * PAPER, r.coverage(distance, where.scale))
    half = max(0.11, 0.018 / thing.radius)  # half of the line's width, which lies inside
    line = r.coverage(np.abs(distance + half) - half, where.scale)
    r.paint(canvas, where, r.rgb(thing), line)


def pastel(scene: Scene, resolution: int) -> r.Canvas:
    """The flat picture, about half of it white."""
    canvas = r.flat(scene, resolution)
    return canvas + 0.52 * (255 - canvas)


def neon(scene: Scene, resolution: int) -> r.Canvas:
    """A darkened background; the contour is white-hot and a halo of the colour falls off around."""
    return _draw_all(r.backdrop(scene, resolution) * 0.16, scene, draw_neon)


def draw_neon(canvas: r.Canvas, thing: Object) -> None:
    """The halo, the object's inside and its white-hot contour; in place."""
    resolution = canvas.shape[0]
    where = r.window(thing, resolution, margin=0.14)
    colour = r.rgb(thing)
    # Black cannot glow: it is the one that stays dark inside a thin gray light.
    glow = colour * 0.8 + 0.2 * 255 if colour.max() > 60 else np.full(3, 96, np.float32)
    distance = shapes.SDFS[thing.shape](where.x, where.y)
    halo = 0.65 * np.exp(-np.maximum(distance, 0) * thing.radius / 0.04)
    fade = np.clip((0.14 - distance * thing.radius) / 0.05, 0, 1)
    r.paint(canvas, where, glow, halo * fade)
    r.paint(canvas, where, colour, r.coverage(distance, where.scale) * 0.8)
    core = r.coverage(np.abs(distance * thing.radius + 0.014) - 0.007, resolution)
    r.paint(canvas, where, glow * 0.4 + 0.6 * 255, core)


def mosaic(scene: Scene, resolution: int) -> r.Canvas:
    """The flat picture averaged over tiles; joints are drawn with exact coverage per pixel."""
    tiles = r.flat(scene, TILES * 4).reshape(TILES, 4, TILES, 4, 3).mean(axis=(1, 3))
    tiles = np.clip(tiles * LIFT[..., None], 0, 255).astype(np.float32)
    edges = np.arange(resolution + 1) / resolution * TILES
    index = np.minimum(((edges[:-1] + edges[1:]) / 2).astype(int), TILES - 1)
    canvas = tiles[index[:, None], index[None, :]]
    # Length of joint left of position e is an integral of the joint's indicator function.
    whole = np.floor(edges + 0.5)
    joint = 2 * JOINT_HALF * whole - JOINT_HALF + np.clip(edges + 0.5 - whole, 0.5 - JOINT_HALF, 0.5 + JOINT_HALF) - 0.5
    share = np.clip(np.diff(joint) * resolution / TILES, 0, 1).astype(np.float32)
    cover = 1 - np.multiply.outer(1 - share, 1 - share)
    return canvas + cover[..., None] * (JOINT - canvas)


def sketch(scene: Scene, resolution: int) -> r.Canvas:
    """Paper with a breath of the background colour; objects are hatched and drawn around."""
    canvas = r.backdrop(scene, resolution)
    canvas += 0.72 * (PAPER - canvas)
    return _draw_all(canvas, scene, draw_sketch)


def draw_sketch(canvas: r.Canvas, thing: Object) -> None:
    """Hatching in the object's colour and a pencil contour; in place."""
    resolution = canvas.shape[0]
    where = r.window(thing, resolution, margin=0.02)
    distance = shapes.SDFS[thing.shape](where.x, where.y)
    inside = r.coverage(distance, where.scale)
    r.paint(canvas, where, PAPER, inside * 0.5)
    period = 0.058
    lines = np.abs((where.px - where.py) / np.sqrt(2) % period - period / 2) - 0.3 * period
    r.paint(canvas, where, r.rgb(thing), inside * r.coverage(lines, resolution))
    contour = np.abs(distance) * thing.radius - 0.009
    r.paint(canvas, where, PENCIL, 0.9 * r.coverage(contour, resolution))


BRUSHES: dict[str, Brush] = {
    "outline": draw_outline,
    "neon": draw_neon,
    "sketch": draw_sketch,
}


STYLES: dict[str, Callable[[Scene, int], r.Canvas]] = {
    "flat": r.flat,
    "outline": outline,
    "pastel": pastel,
    "neon": neon,
    "mosaic": mosaic,
    "sketch": sketch,
}
