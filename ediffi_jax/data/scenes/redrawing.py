"""Reading outline, neon and sketch pictures by drawing them again: the objects whose drawing is nearest.

    pixels that stand out of the background ──filled, connected──▶ where an object is
    every shape and colour, drawn there by the style's own brush ──least distance──▶ which it is
    what the drawing leaves unexplained ──the same again──▶ an object inside it

    distance = Σ w · min(‖G∗(picture − drawing)‖, CAP) / Σ w        w: 1 near the object, 0 at the others

G blurs both alike, so neither soft edges nor the phase of a hatching counts; CAP lets what lies on top of
an object count as a constant. Regions are found at 128 pixels, drawings compared at 64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from ediffi_jax.data.scenes import segmentation, shapes, styles
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.scene import Object

SIDE = 64  # pixels at which drawings are compared
SOFT = {"outline": 0.8, "neon": 0.8, "sketch": 1.5}  # standard deviation of G, in pixels of SIDE
CAP = 70.0  # RGB distance from which a pixel is simply wrong
STEPS = (0.02, 0.01, 0.005)  # of place and radius, in the search for the best drawing
SMALL = 0.03  # the least radius
ALIKE = 1.5  # only shapes whose first distance is within this factor of the least are searched
BARE = 85.0  # brightness under which nothing of a neon picture is a contour
# Of the brightest near it: a halo falls below, a contour does not. The gray light around black is weak and falls off
# sooner, to a third, and its thin contour is uneven.
RIM = ((150.0, 200.0), (0.5, 0.75))  # brightness near, share
# RGB distance from the drawing that makes a pixel another object's: half of the most, within bounds. In neon the most
# is bright, and half of it leaves the halo out.
UNEXPLAINED = {"outline": (30.0, 50.0), "neon": (30.0, 255.0), "sketch": (30.0, 50.0)}
SCALES = (0.88, 1.0, 1.1)  # of a radius, tried first
RIVALS = 3  # shapes tried for an object that seems to hold another
MORE = 1.1  # by which two objects must be nearer than one
LEAST = 0.3  # fit below which what is unexplained is no object
NEEDED = 0.2  # share of the distance that an object must take away among the others

Mask = Bool[np.ndarray, "s s"]
Image = Float[np.ndarray, "s s 3"]
Plane = Float[np.ndarray, "s s"]
Box = tuple[float, float, float, float]
SQUARE = np.ones((3, 3), bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """An object whose drawing was found in a picture.

    Attributes:
        thing: its colour, shape, place and radius; the rest is the default.
        fit: how much of the distance between picture and background the drawing explains, 0 to 1.
        on: index of the object it lies on, or -1.
    """

    thing: Object
    fit: float
    on: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Easel:
    """What candidates are drawn on and compared with, all at SIDE pixels.

    Attributes:
        style: whose brush draws.
        below: the picture so far: background and objects that lie below.
        target: the picture, blurred.
        weight: of each pixel in the distance.
    """

    style: str
    below: Image
    target: Image
    weight: Plane

    def draw(self, *things: Object) -> Image:
        """`below` with the objects on it, each on those before it."""
        canvas = self.below.copy()
        for thing in things:
            styles.BRUSHES[self.style](canvas, thing)
        return canvas

    def misses(self, *things: Object) -> Plane:
        """RGB distance of each pixel from the drawing of the objects."""
        soft = cv2.GaussianBlur(self.draw(*things), (0, 0), SOFT[self.style])
        return np.sqrt(((self.target - soft) ** 2).sum(axis=-1))

    def distance(self, *things: Object) -> float:
        """The distance at the top of this module, of the drawing of the objects."""
        return float((np.minimum(self.misses(*things), CAP) * self.weight).sum() / self.weight.sum())

    def around(self, thing: Object) -> Easel:
        """The same with weight only where an object is, and its radius's half around it."""
        axis = (np.arange(SIDE) + 0.5) / SIDE
        near = np.maximum(abs(axis - thing.x)[None, :], abs(axis - thing.y)[:, None]) < 1.5 * thing.radius
        return dataclasses.replace(self, weight=self.weight * near + 1e-6)

    def explained(self, distance: float) -> float:
        """The share of the distance between the picture and `below` that is gone when it is `distance`."""
        return max(0.0, 1 - distance / max(self.distance(), 1e-6))


def objects(image: UInt8[np.ndarray, "r r 3"], style: str) -> list[Drawn]:
    """The objects of a square picture in one of the styles of `styles.BRUSHES`, holders before what they hold."""
    picture = segmentation.prepare(image)
    below = segmentation.background(picture)
    small, ground = (cv2.resize(a, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for a in (picture, below))
    target = cv2.GaussianBlur(small, (0, 0), SOFT[style])
    masks = _regions(picture, below, style)
    easels = [Easel(style=style, below=ground, target=target, weight=_near(mask, masks)) for mask in masks]
    readings = [_reading(easel, _box(mask)) for easel, mask in zip(easels, masks)]
    found: list[Drawn] = []
    for outer, *held in _without_ghosts(easels, readings):
        found += [outer, *(dataclasses.replace(inner, on=len(found)) for inner in held)]
    return found


def _without_ghosts(easels: list[Easel], readings: list[list[Drawn]]) -> list[list[Drawn]]:
    """The readings less what the others explain already, as they do where halos meet; the smallest go first."""
    kept = {(i, j): drawn.thing for i, reading in enumerate(readings) for j, drawn in enumerate(reading)}
    for i, j in sorted(kept, key=lambda index: kept[index].radius):
        others = [thing for index, thing in kept.items() if index != (i, j)]
        around = easels[i].around(kept[i, j])
        if around.distance(*kept.values()) > (1 - NEEDED) * around.distance(*others):
            del kept[i, j]
    return [
        [drawn for j, drawn in enumerate(reading) if (i, j) in kept]
        for i, reading in enumerate(readings)
        if (i, 0) in kept
    ]


def _reading(easel: Easel, box: Box) -> list[Drawn]:
    """The object in a region, followed by the one that it holds if there is one.

    What lies inside an object can make another shape the nearest (a circle with a glowing one inside is almost a
    ring), so where the nearest leaves something unexplained others are tried too, each with what it would hold.
    """
    readings = []
    for distance, thing in drawings(easel, box)[:RIVALS]:
        outer = Drawn(thing=thing, fit=easel.explained(distance))
        part = _unexplained(easel, thing)
        held, after = _held(easel, thing, part) if part is not None else ([], distance)
        two = bool(held) and MORE * after < distance
        readings.append((MORE * after, [outer, *held]) if two else (distance, [outer]))
        if part is None:
            break
    return min(readings, key=lambda pair: pair[0])[1]


def _regions(picture: Image, below: Image, style: str) -> list[Mask]:
    """Filled masks of the objects that lie on the background, at SIDE pixels."""
    mask = _lit(picture) if style == "neon" else _apart(picture, below)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5) if style == "neon" else (3, 3))
    filled = ndimage.binary_fill_holes(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disc).astype(bool))
    labels, number = ndimage.label(ndimage.binary_opening(filled, SQUARE), SQUARE)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    parts = [labels == i + 1 for i in range(number) if sizes[i] >= segmentation.SMALLEST * labels.size]
    return [part[::2, ::2] | part[1::2, ::2] | part[::2, 1::2] | part[1::2, 1::2] for part in parts]


def _apart(picture: Image, below: Image) -> Mask:
    contrast = np.linalg.norm(segmentation.lab(picture) - segmentation.lab(below), axis=-1)
    return contrast > max(segmentation.CONTRAST, 3 * float(np.median(contrast[segmentation.BORDER])))


def _lit(picture: Image) -> Mask:
    """The contours and insides of glowing objects without their halos."""
    bright = picture.max(axis=-1)
    around = cv2.dilate(bright, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11)))
    return bright > np.maximum(BARE, np.interp(around, *RIM) * around)


def _near(mask: Mask, others: list[Mask]) -> Plane:
    """1 on the region and up to 3 pixels around it, 0 on the other regions and around them."""
    near = ndimage.binary_dilation(mask, SQUARE, iterations=3)
    for other in others:
        if other is not mask:
            near &= ~ndimage.binary_dilation(other, SQUARE, iterations=1)
    return (near | mask).astype(np.float32)


def _box(mask: Mask) -> Box:
    """Centre x, y, half width and half height of a mask, in fractions of the picture."""
    columns, rows = np.nonzero(mask.any(0))[0], np.nonzero(mask.any(1))[0]
    x0, x1, y0, y1 = (float(a) / len(mask) for a in (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1))
    return (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2


def drawings(easel: Easel, box: Box) -> list[tuple[float, Object]]:
    """The objects whose drawings are nearest to the picture, one of a shape, with their distances; the nearest first.

    Args:
        easel: what to draw on and compare with.
        box: centre x, y, half width, half height of where it is, roughly; fractions of the picture.
    """
    starts = []
    for shape in v.SHAPES:
        half_x, half_y = shapes.extent(shape)
        radii = [scale * (box[2] + box[3]) / (half_x + half_y) for scale in SCALES]
        drawn = (
            Object(colour=colour, shape=shape, x=box[0], y=box[1], radius=radius)
            for radius in radii
            for colour in v.COLOURS
        )
        starts.append(_nearest(easel, drawn))
    limit = ALIKE * min(distance for distance, _ in starts)
    moved = sorted((_search(easel, *start) for start in starts if start[0] <= limit), key=_distance)
    return [min(moved[0], _nearest(easel, _recoloured(moved[0][1])), key=_distance), *moved[1:]]


def _distance(pair: tuple[float, Object]) -> float:
    return pair[0]


def _nearest(easel: Easel, things: Iterable[Object]) -> tuple[float, Object]:
    return min(((easel.distance(thing), thing) for thing in things), key=_distance)


def _recoloured(thing: Object) -> Iterator[Object]:
    return (dataclasses.replace(thing, colour=colour) for colour in v.COLOURS if colour != thing.colour)


def _search(easel: Easel, distance: float, thing: Object) -> tuple[float, Object]:
    """Moves and scales an object, always by the best of the six steps, while that makes its drawing nearer."""
    for step in STEPS:
        while True:
            least, other = _nearest(easel, _moved(thing, step))
            if least > distance - 1e-3:
                break
            distance, thing = least, other
    return distance, thing


def _moved(thing: Object, step: float) -> Iterator[Object]:
    for change in (-step, step):
        yield dataclasses.replace(thing, x=thing.x + change)
        yield dataclasses.replace(thing, y=thing.y + change)
        yield dataclasses.replace(thing, radius=max(SMALL, thing.radius + change))


def _unexplained(easel: Easel, holder: Object) -> Mask | None:
    """The largest part of a region that an object's drawing leaves unexplained, if it is more than a speck."""
    misses = easel.misses(holder) * easel.weight
    mask = misses > np.clip(0.5 * misses.max(), *UNEXPLAINED[easel.style])
    mask = ndimage.binary_opening(ndimage.binary_fill_holes(mask), SQUARE)
    labels, number = ndimage.label(mask, SQUARE)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    if not number or sizes.max() < segmentation.SMALLEST / 2 * mask.size:
        return None
    return labels == 1 + int(sizes.argmax())


def _held(easel: Easel, holder: Object, part: Mask) -> tuple[list[Drawn], float]:
    """The object inside another, if there is one that explains the part; and the distance of both from the region."""
    on_top = dataclasses.replace(easel, below=easel.draw(holder), weight=easel.weight * _near(part, []))
    distance, inner = drawings(on_top, _box(part))[0]
    fit = on_top.explained(distance)
    both = dataclasses.replace(on_top, weight=easel.weight).distance(inner)
    seen = fit > LEAST and inner.colour != holder.colour  # one of the holder's colour is a fault in its drawing
    return ([Drawn(thing=inner, fit=fit)] if seen else []), both
