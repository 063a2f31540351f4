"""Picture -> what is in it; picture and scene -> what of it is right.

A region's shape is the one whose signed-distance rendering, fitted to the region's bounding box,
overlaps its soft mask best:  IoU(α, t) = Σ min(α, t) / Σ max(α, t), less a penalty for stretching it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from ediffi_jax.data.scenes import redrawing, segmentation, shapes, styles, unstyle
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.scene import Object, Scene

Soft = Float[np.ndarray, "s s"]
WORK = segmentation.WORK
SMEAR = 0.38  # standard deviation of a pixel averaged and interpolated again, in its widths
APART = 0.06  # of the picture: the least distance of centres that makes a "left of"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """An object as read from a picture.

    Attributes:
        colour, shape: words of the vocabulary.
        x, y: centre of its bounding box, fractions of the picture (y down).
        width, height: of the bounding box, fractions of the picture.
        fit: how well the shape explains what is there, 0 to 1.
        on: index of the object it lies on, or -1.
    """

    colour: str
    shape: str
    x: float
    y: float
    width: float
    height: float
    fit: float
    on: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Which of the things asked for are right. A scene without a relation has it right."""

    count: bool
    colours: bool
    shapes: bool
    relation: bool

    @property
    def all(self) -> bool:
        return self.count and self.colours and self.shapes and self.relation


def _template(shape: str, x: np.ndarray, y: np.ndarray, box: Sequence[float], blur: float) -> Soft:
    """Coverage of a shape stretched to `box` (centre x, y, half width, half height; pixels)."""
    half_x, half_y = shapes.extent(shape)
    scale_x, scale_y = box[2] / half_x, box[3] / half_y
    distance = shapes.SDFS[shape]((x - box[0]) / scale_x, (y - box[1]) / scale_y)
    sharp = np.clip(0.5 - distance * min(scale_x, scale_y), 0, 1)
    return cv2.GaussianBlur(sharp, (0, 0), SMEAR * blur / (x[0, 1] - x[0, 0])) if blur > 1 else sharp


def _overlap(alpha: Soft, template: Soft) -> float:
    return float(np.minimum(alpha, template).sum() / np.maximum(alpha, template).sum())


def _undistorted(shape: str, box: Sequence[float]) -> float:
    """1 if the box has the shape's own proportions, less the more it is stretched."""
    half_x, half_y = shapes.extent(shape)
    return float(np.exp(-0.5 * abs(np.log(box[2] * half_y / (box[3] * half_x)))))


def bounding_box(alpha: Soft) -> tuple[float, float, float, float]:
    """Centre x, y, half width, half height of a soft mask in pixels: where it passes one half."""
    mask = alpha > 0.5
    columns, rows = np.nonzero(mask.any(0))[0], np.nonzero(mask.any(1))[0]
    x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2


def fit_shape(alpha: Soft, blur: float) -> tuple[str, float, tuple[float, float, float, float]]:
    """The best shape, its overlap, and its bounding box in pixels.

    Args:
        alpha: a region's soft mask.
        blur: width in pixels over which contours are smeared; tips look shorter by about as much,
            so boxes a little larger than the measured one are tried too.
    """
    box = bounding_box(alpha)
    reach = 1.3 * max(box[2:]) + blur
    x0, x1 = max(0, int(box[0] - reach)), min(WORK, int(box[0] + reach) + 1)
    y0, y1 = max(0, int(box[1] - reach)), min(WORK, int(box[1] + reach) + 1)
    step = 2 if blur > 2 else 1  # a smeared contour needs fewer samples
    part = alpha[y0:y1:step, x0:x1:step]
    x, y = np.arange(x0, x1, step)[None, :] + 0.5, np.arange(y0, y1, step)[:, None] + 0.5
    # Room at each end of its own: a triangle's tip fades at the top, a heart's at the bottom.
    grow = [0.0, 0.5 * blur] if blur > 2 else [0.0]
    best = ("circle", -1.0, box)
    for shape in v.SHAPES:
        for wide, up, down in itertools.product(grow, grow, grow):
            tried = (box[0], box[1] + (down - up) / 2, box[2] + wide / 2, box[3] + (up + down) / 2)
            overlap = _overlap(part, _template(shape, x, y, tried, blur)) * _undistorted(shape, tried)
            if overlap > best[1]:
                best = (shape, overlap, tried)
    return best


def read(image: UInt8[np.ndarray, "r r 3"], style: str = v.DEFAULT_STYLE) -> list[Seen]:
    """The objects of a picture, at any resolution from 16 (256 is best; from 64 for other styles than flat).

    Args:
        image: uint8 RGB, square.
        style: the picture's.

    Raises:
        SceneError: not a square uint8 RGB picture, or a style that the vocabulary does not have.
    """
    v.check(style, v.STYLES, "style")
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or image.dtype != np.uint8:
        raise v.SceneError(f"expected a square uint8 RGB picture, got {image.dtype} {image.shape}")
    if style in styles.BRUSHES:
        return [_seen(drawn) for drawn in redrawing.objects(image, style)]
    return _read_flat(unstyle.INVERSE[style](image) if style in unstyle.INVERSE else image)


def _seen(drawn: redrawing.Drawn) -> Seen:
    thing = drawn.thing
    half_x, half_y = shapes.extent(thing.shape)
    return Seen(
        colour=thing.colour,
        shape=thing.shape,
        x=thing.x,
        y=thing.y,
        width=2 * half_x * thing.radius,
        height=2 * half_y * thing.radius,
        fit=drawn.fit,
        on=drawn.on,
    )


def _read_flat(image: UInt8[np.ndarray, "r r 3"]) -> list[Seen]:
    blur = max(1.0, WORK / image.shape[0])
    seen = []
    for region in segmentation.regions(image):
        if (region.alpha > 0.5).sum() < segmentation.SMALLEST * region.alpha.size:
            continue
        shape, fit, box = fit_shape(region.alpha, blur)
        x, y, half_width, half_height = (float(value) / WORK for value in box)
        seen.append(
            Seen(
                colour=region.colour,
                shape=shape,
                x=x,
                y=y,
                width=2 * half_width,
                height=2 * half_height,
                fit=fit,
                on=region.on,
            )
        )
    return seen


def holds(relation: str, a: Seen, b: Seen) -> bool:
    """Whether `a` stands in the relation to `b`."""
    dx, dy = b.x - a.x, b.y - a.y
    if relation == "inside":
        centred = abs(dx) < 0.3 * b.width and abs(dy) < 0.4 * b.height
        return centred and max(a.width, a.height) < 0.8 * max(b.width, b.height)
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    across = dy if relation in ("left of", "right of") else dx
    return along > APART and along > abs(across)


def _assign(seen: list[Seen], scene: Scene) -> list[tuple[Object, Seen]]:
    """Pairs expected and seen objects so that most attributes agree, then the relation."""
    wanted = scene.objects
    best: tuple[float, list[tuple[Object, Seen]]] = (-1.0, [])
    for chosen in itertools.permutations(seen, min(len(wanted), len(seen))):
        pairs = list(zip(wanted, chosen))
        agree = sum((o.colour == s.colour) + (o.shape == s.shape) for o, s in pairs)
        right = scene.relation and len(pairs) == 2 and holds(scene.relation, pairs[0][1], pairs[1][1])
        best = max(best, (agree + 0.5 * bool(right), pairs), key=lambda item: item[0])
    return best[1]


def score(image: UInt8[np.ndarray, "r r 3"], scene: Scene) -> Score:
    """Compares a picture with the scene it was asked to show.

    Args:
        image: uint8 RGB, square, in the scene's style.
        scene: what was asked for; only its words count, not its coordinates or its background.

    Returns:
        Which of count, colours, shapes and relation are right. Colours and shapes are right if
        every object asked for is there with its colour, with its shape; the same pairing of
        objects serves both and the relation, so a swap of attributes is an error.
    """
    # The largest first, so that specks in a bad picture do not make the pairing expensive.
    seen = sorted(read(image, scene.style), key=lambda s: -s.width * s.height)[:6]
    pairs = _assign(seen, scene)
    full = len(pairs) == len(scene.objects)
    return Score(
        count=len(seen) == len(scene.objects),
        colours=full and all(o.colour == s.colour for o, s in pairs),
        shapes=full and all(o.shape == s.shape for o, s in pairs),
        relation=not scene.relation or (full and holds(scene.relation, pairs[0][1], pairs[1][1])),
    )
