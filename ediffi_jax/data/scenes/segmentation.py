"""Picture -> regions of one colour each, by classical image analysis.

    border ──least squares in y──▶ background B(y)
    |Lab − Lab(B)| > threshold ──connected components──▶ regions
    inside of a region ──nearest colour of the vocabulary──▶ its main colour
    pixels that no mixture of main colour, its tone and B explains ──▶ objects on it or touching it
    soft mask  α = clip(⟨p − B, c − B⟩ / |c − B|², 0, 1)   with c the region's measured colour

All of it happens at 128 pixels: larger pictures are box-averaged, smaller ones interpolated.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from ediffi_jax.data.scenes import rendering
from ediffi_jax.data.scenes import vocabulary as v

WORK = 128  # pixels at which pictures are analysed
COARSE = 64  # pictures below this many pixels
CONTRAST = 11.0  # Lab distance from the background that makes a pixel part of something
SMALLEST = 0.007  # share of the picture below which a region is a speck
OTHER = 36.0  # RGB distance from all mixtures of an object's tones that makes a pixel another object's

Image = Float[np.ndarray, "s s 3"]
Mask = Bool[np.ndarray, "s s"]
Soft = Float[np.ndarray, "s s"]
Colour = Float[np.ndarray, "3"]
EIGHT = np.ones((3, 3), bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """One object's pixels.

    Attributes:
        colour: name of the nearest colour.
        alpha: how much of each pixel of the 128 x 128 picture the object covers, holes left by an
            object on top of it filled.
        on: index of the region that it lies on, or -1 for the background.
    """

    colour: str
    alpha: Soft
    on: int = -1


def lab(image: Image) -> Image:
    """sRGB in 0..255 -> CIELAB."""
    return cv2.cvtColor((image / 255).astype(np.float32), cv2.COLOR_RGB2LAB)


def _palette() -> tuple[list[str], Float[np.ndarray, "n 3"]]:
    """Every colour and its texture tone, which counts as the colour; names and Lab values."""
    names, values = [], []
    for name, rgb in v.COLOURS.items():
        colour = np.array(rgb, np.float32)
        for tone in (colour, rendering.shade(colour), (colour + rendering.shade(colour)) / 2):
            names.append(name)
            values.append(tone)
    return names, lab(np.array(values)[None])[0]


RGB = np.array(list(v.COLOURS.values()), np.float32)
NAMES, PALETTE = _palette()
INDEX = np.array([list(v.COLOURS).index(name) for name in NAMES])


def prepare(image: UInt8[np.ndarray, "r r 3"]) -> Image:
    """The picture at the working resolution, as floats."""
    method = cv2.INTER_AREA if image.shape[0] >= WORK else cv2.INTER_CUBIC
    return np.clip(cv2.resize(image.astype(np.float32), (WORK, WORK), interpolation=method), 0, 255)


def _border() -> Mask:
    band = np.ones((WORK, WORK), bool)
    band[3:-3, 3:-3] = False
    return band


BORDER = _border()


def background(image: Image) -> Image:
    """A colour linear in y, fitted to the border; pixels of objects that reach it are left out."""
    rows = np.nonzero(BORDER)[0]
    basis = np.stack([np.ones(len(rows)), rows / WORK], axis=1)
    values = image[BORDER]
    # To begin with, the medians of the upper and the lower edge.
    top, bottom = (np.median(values[edge], axis=0) for edge in (rows < 12, rows >= WORK - 12))
    fit = np.stack([top, bottom - top])
    for limit in (60.0, 30.0):
        keep = np.linalg.norm(values - basis @ fit, axis=1) < limit
        if keep.sum() < 0.2 * len(rows):
            break
        fit, *_ = np.linalg.lstsq(basis[keep], values[keep], rcond=None)
    plane = fit[0] + np.arange(WORK)[:, None] / WORK * fit[1]
    return np.repeat(plane[:, None], WORK, axis=1).astype(np.float32)


def classify(colours: Float[np.ndarray, "n 3"]) -> int:
    """Index into `COLOURS` of the colour to whose tones most of the Lab values are nearest."""
    distance = np.linalg.norm(colours[:, None] - PALETTE, axis=-1)
    return int(np.bincount(INDEX[distance.argmin(-1)]).argmax())


def soft_mask(image: Image, below: Image | Colour, colour: Colour) -> Soft:
    """How far each pixel has gone from what lies below to `colour`, 0 to 1."""
    towards = colour - below
    return np.clip(((image - below) * towards).sum(-1) / np.maximum((towards**2).sum(-1), 1.0), 0, 1)


def _mixture_distance(image: Image, a: Image | Colour, b: Colour) -> Soft:
    """Distance of each pixel from the mixtures of two colours."""
    share = soft_mask(image, a, b)[..., None]
    return np.linalg.norm(image - (a + share * (b - a)), axis=-1)


def _components(mask: Mask, smallest: float) -> list[Mask]:
    labels, number = ndimage.label(mask, EIGHT)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    return [labels == i + 1 for i in range(number) if sizes[i] >= smallest * mask.size]


def _core(mask: Mask) -> Mask:
    """The pixels deepest inside, which show the colour that edges blur away."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    return mask & (depth >= 0.5 * depth.max())


def _grow(mask: Mask, pixels: int) -> Mask:
    return ndimage.binary_dilation(mask, EIGHT, iterations=pixels)


def regions(image: UInt8[np.ndarray, "r r 3"]) -> list[Region]:
    """All objects' regions, each before those that lie on it."""
    picture = prepare(image)
    below = background(picture)
    labs = lab(picture)
    contrast = np.linalg.norm(labs - lab(below), axis=-1)
    limit = max(CONTRAST, 3 * float(np.median(contrast[BORDER])))  # more where the picture is noisy
    found: list[Region] = []
    components = _components(contrast > limit, SMALLEST)
    if image.shape[0] < COARSE:
        components = [part for component in components for part in _apart(component, contrast)]
    for component in components:
        found += _split(picture, labs, below, component, len(found), image.shape[0] < COARSE)
    return found


def _apart(component: Mask, contrast: Soft) -> list[Mask]:
    """In a coarse picture neighbours blur into one another: cuts a component where its contrast halves."""
    strong = component & (contrast > 0.5 * np.quantile(contrast[component], 0.8))
    parts = sorted(_components(strong, SMALLEST), key=np.sum, reverse=True)
    apart: list[Mask] = []
    for part in parts:
        if not any((whole & part).any() for whole in apart):  # what a hole holds is found with its holder
            apart.append(ndimage.binary_fill_holes(part) & component)
    return apart if len(apart) > 1 else [component]


def _split(
    picture: Image, labs: Image, below: Image, component: Mask, first: int, coarse: bool
) -> list[Region]:
    """One component -> the object it is, and those of other colours that lie on it or touch it."""
    main, colour = _main_colour(picture, labs, component)
    if coarse:  # lines a pixel wide never reach their colour, so the measured one is too weak
        colour = RGB[main]
    tone = rendering.shade(RGB[main])
    mixtures = ((below, colour), (colour, tone), (below, tone))
    unexplained = np.min([_mixture_distance(picture, a, b) for a, b in mixtures], axis=0) > OTHER
    others = _components(ndimage.binary_opening(unexplained & component, EIGHT), SMALLEST / 2)
    alpha = soft_mask(picture, below, colour) * _grow(component, 2)
    solid = ndimage.binary_fill_holes(component & (alpha > 0.5))
    rest: list[Region] = []
    for part in others:
        core = _core(part)
        name = classify(labs[core])
        other = RGB[name] if coarse else np.median(picture[core], axis=0)
        nested = (solid & part).sum() > 0.8 * part.sum() and _enclosed(part, component)
        near = _grow(part, 3)
        ground = colour if nested else below
        mask = (soft_mask(picture, ground, other) * near).astype(np.float32)
        rest.append(_region(name, mask, first if nested else -1))
        alpha = np.where(near & solid, 1, alpha) if nested else np.where(_grow(part, 1), 0, alpha)
    return [_region(main, alpha.astype(np.float32)), *rest]


def _main_colour(picture: Image, labs: Image, component: Mask) -> tuple[int, Colour]:
    """Index and measured value of the colour that most of a component's inside has."""
    inside = ndimage.binary_erosion(component, EIGHT)
    if inside.sum() < 0.2 * component.sum():
        inside = _core(component)
    distance = np.linalg.norm(labs[inside][:, None] - PALETTE, axis=-1)
    tones = distance.argmin(-1)
    main = int(np.bincount(INDEX[tones]).argmax())
    pixels = picture[inside]
    plain = tones == 3 * main  # the colour itself rather than its texture's tone
    chosen = plain if plain.sum() > 0.2 * (INDEX[tones] == main).sum() else INDEX[tones] == main
    return main, np.median(pixels[chosen], axis=0)


def _enclosed(part: Mask, component: Mask) -> bool:
    """Whether the pixels around a part belong to the component it was found in."""
    rim = _grow(part, 2) & ~part
    return bool((rim & component).sum() > 0.9 * rim.sum())


def _region(colour: int, alpha: Soft, on: int = -1) -> Region:
    return Region(colour=list(v.COLOURS)[colour], alpha=alpha, on=on)
