"""Drawing scenes: which kinds, where things stand, and what training never sees.

Layouts in fractions of the picture. Along a relation's axis two objects keep a clear gap, across it
they differ by a small jitter; a counted or mixed group stands in a row or in the four quarters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ediffi_jax.data.scenes import captions, heldout, shapes
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.scene import Binding, Object, Scene

KINDS = {"relation": 0.63, "single": 0.15, "count": 0.12, "mixed": 0.10}
FLAT_SHARE = 0.65
GRAY_SHARE = 0.45
GRADIENT_SHARE = 0.08

MARGIN = 0.04  # between an object and the frame
GAP = 0.07  # at least, between two objects: more than a pixel of a 16-pixel picture
RADII = {"small": 0.135, "medium": 0.185, "large": 0.225}  # two objects
ALONE_RADII = {"small": 0.15, "medium": 0.26, "large": 0.38}
PLACES = {
    "": (0.5, 0.5),
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
    "top": (0.5, 0.27),
    "bottom": (0.5, 0.73),
}
QUARTERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))

Rng = np.random.Generator


def _pick(rng: Rng, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _weighted(rng: Rng, weights: dict[str, float]) -> str:
    return list(weights)[int(rng.choice(len(weights), p=list(weights.values())))]


def _object(binding: Binding, size: str, texture: str, x: float, y: float, radius: float) -> Object:
    """An object moved inside the frame, its numbers rounded so that JSON is short and exact."""
    low, high = MARGIN + radius, 1 - MARGIN - radius
    x, y = float(np.clip(x, low, high)), float(np.clip(y, low, high))
    return Object(
        colour=binding[0],
        shape=binding[1],
        size=size,
        texture=texture,
        x=round(x, 4),
        y=round(y, 4),
        radius=round(radius, 4),
    )


def _binding(rng: Rng) -> Binding:
    return _pick(rng, list(v.COLOURS)), _pick(rng, v.SHAPES)


def _bindings(rng: Rng, count: int) -> list[Binding]:
    chosen: list[Binding] = []
    while len(chosen) < count:
        binding = _binding(rng)
        if binding not in chosen:
            chosen.append(binding)
    return chosen


def _free_pair(rng: Rng) -> list[Binding]:
    return _bindings(rng, 2)


def _held_out_pair(rng: Rng) -> list[Binding]:
    """Known bindings whose pair is held out."""
    while True:
        pair = _bindings(rng, 2)
        if heldout.pair_held_out(*pair) and not v.HELD_OUT_BINDINGS & set(pair):
            return pair


def _held_out_binding(rng: Rng) -> list[Binding]:
    """A pair that is not held out as such, one of its bindings is."""
    while True:
        pair = _bindings(rng, 2)
        if len(v.HELD_OUT_BINDINGS & set(pair)) == 1 and not heldout.pair_held_out(*pair):
            return pair


Pairs = Callable[[Rng], list[Binding]]


def _size(rng: Rng) -> str:
    return _weighted(rng, {"medium": 0.76, "small": 0.12, "large": 0.12})


def _texture(rng: Rng) -> str:
    return _weighted(rng, {"solid": 0.9, "striped": 0.05, "dotted": 0.05})


def inside(rng: Rng, inner: Binding, outer: Binding) -> tuple[Object, Object]:
    """A small object centred in a large one that has room for it."""
    radius = rng.uniform(0.37, 0.43)
    x, y = 0.5 + rng.uniform(-0.05, 0.05, 2)
    big = _object(outer, v.DEFAULT_SIZE, v.DEFAULT_TEXTURE, x, y, radius)
    small = radius * rng.uniform(0.38, 0.44)
    y = big.y + shapes.INNER_CENTRE[outer[1]] * radius
    return _object(inner, v.DEFAULT_SIZE, v.DEFAULT_TEXTURE, big.x, y, small), big


def beside(
    rng: Rng, first: Binding, second: Binding, relation: str, plain: bool
) -> tuple[Object, Object]:
    """Two objects apart along one axis, about level on the other.

    Args:
        rng: where the chance comes from.
        first, second: the bindings; ``first relation second`` will hold.
        relation: any of the vocabulary's but "inside".
        plain: whether both have the default size and texture.
    """
    sizes = [v.DEFAULT_SIZE] * 2 if plain else [_size(rng), _size(rng)]
    if sizes == ["large", "large"]:
        sizes[int(rng.integers(2))] = v.DEFAULT_SIZE
    textures = [v.DEFAULT_TEXTURE if plain else _texture(rng) for _ in range(2)]
    radii = [RADII[size] * rng.uniform(0.96, 1.04) for size in sizes]
    swap = relation in ("right of", "below")
    a, b = (1, 0) if swap else (0, 1)  # a comes first along the axis
    free = 1 - 2 * MARGIN - 2 * sum(radii)
    gap = rng.uniform(min(GAP, free), max(GAP, min(free, 0.22)))
    start = MARGIN + rng.uniform(0, max(free - gap, 0))
    along = {a: start + radii[a], b: start + 2 * radii[a] + gap + radii[b]}
    common = 0.5 + rng.uniform(-0.12, 0.12)
    across = [common + rng.uniform(-0.05, 0.05) for _ in range(2)]
    things = []
    for i, binding in enumerate((first, second)):
        place = (along[i], across[i]) if relation in ("left of", "right of") else (across[i], along[i])
        things.append(_object(binding, sizes[i], textures[i], *place, radii[i]))
    return things[0], things[1]


def _relation(rng: Rng, pairs: Pairs = _free_pair, plain: bool = False) -> dict:
    """A relation drawn evenly, then bindings that can stand in it."""
    relation = _pick(rng, v.RELATIONS)
    first, second = pairs(rng)
    if relation != "inside":
        return {"objects": beside(rng, first, second, relation, plain), "relation": relation}
    while second[1] not in v.CONTAINERS or first[0] == second[0]:
        first, second = pairs(rng)
    return {"objects": inside(rng, first, second), "relation": relation}


def _single(rng: Rng) -> dict:
    size, texture = _size(rng), _texture(rng)
    place = _pick(rng, list(PLACES)[1:]) if size != "large" and rng.random() < 0.4 else ""
    radius = ALONE_RADII[size] * rng.uniform(0.92, 1.08)
    if place:
        radius = min(radius, 0.2)
    x, y = np.array(PLACES[place]) + rng.uniform(-0.05, 0.05, 2)
    return {"objects": (_object(_binding(rng), size, texture, x, y, radius),)}


def _spots(rng: Rng, count: int) -> tuple[list[tuple[float, float]], float]:
    """`count` places and the radius that fits them: a row, a column, or quarters of the picture."""
    if count == 2 or (count == 3 and rng.random() < 0.5):
        step, radius = (0.46, 0.18) if count == 2 else (0.32, 0.13)
        line = [0.5 + step * (i - (count - 1) / 2) for i in range(count)]
        level = 0.5 + rng.uniform(-0.15, 0.15)
        spots = [(place, level) for place in line]
        return (spots if rng.random() < 0.5 else [(y, x) for x, y in spots]), radius
    chosen = sorted(rng.permutation(4)[:count])
    jitter = rng.uniform(-0.03, 0.03, (count, 2))
    return [(QUARTERS[i][0] + a, QUARTERS[i][1] + b) for i, (a, b) in zip(chosen, jitter)], 0.17


def _group(rng: Rng, bindings: list[Binding], texture: str) -> tuple[Object, ...]:
    spots, radius = _spots(rng, len(bindings))
    radius *= rng.uniform(0.95, 1.02)
    return tuple(
        _object(binding, v.DEFAULT_SIZE, texture, x, y, radius)
        for binding, (x, y) in zip(bindings, spots)
    )


def _count(rng: Rng) -> dict:
    return {"objects": _group(rng, [_binding(rng)] * int(rng.integers(2, 5)), _texture(rng))}


def _mixed(rng: Rng) -> dict:
    count = int(rng.integers(3, 5))
    bindings = _bindings(rng, count)
    if rng.random() < 0.3:  # two alike and the rest different
        bindings[1] = bindings[0]
    return {"objects": _group(rng, bindings, v.DEFAULT_TEXTURE)}


DRAW = {"relation": _relation, "single": _single, "count": _count, "mixed": _mixed}


def _surroundings(rng: Rng) -> dict[str, str]:
    style = v.DEFAULT_STYLE if rng.random() < FLAT_SHARE else _pick(rng, v.STYLES[1:])
    others = list(v.BACKGROUNDS)[1:]
    background = v.DEFAULT_BACKGROUND if rng.random() < GRAY_SHARE else _pick(rng, others)
    gradient = _pick(rng, list(v.BACKGROUNDS)) if rng.random() < GRADIENT_SHARE else ""
    if gradient == background:
        gradient = ""
    return {"style": style, "background": background, "gradient_to": gradient}


def sample_scene(rng: Rng, *, held_out: bool = False, binding: bool = False) -> Scene:
    """Draws a scene.

    Args:
        rng: where the chance comes from.
        held_out: False: any kind of scene, never a held-out combination (what training sees).
            True: two objects in a relation, flat style, medium and solid, whose combination is
            held out.
        binding: with `held_out`, hold out a (colour, shape) binding instead of a pair of them.

    Returns:
        The scene; `heldout.held_out(scene)` equals `held_out`.
    """
    if held_out:
        surroundings = {**_surroundings(rng), "style": v.DEFAULT_STYLE, "gradient_to": ""}
        pairs = _held_out_binding if binding else _held_out_pair
        return Scene(**_relation(rng, pairs, plain=True), **surroundings)
    draw = DRAW[_weighted(rng, KINDS)]
    while True:
        scene = Scene(**draw(rng), **_surroundings(rng))
        if not heldout.held_out(scene):
            return scene


def heldout_prompts(
    number: int, seed: int = 0, binding: bool = False
) -> list[tuple[str, Scene]]:
    """The evaluation's prompts: canonical captions of held-out scenes of two objects, all different.

    Args:
        number: how many.
        seed: another seed, other prompts.
        binding: as in `sample_scene`.

    Returns:
        Pairs of (caption, the scene it was made from).
    """
    rng = np.random.default_rng((seed, 0xED1FF))
    prompts: dict[str, Scene] = {}
    while len(prompts) < number:
        scene = sample_scene(rng, held_out=True, binding=binding)
        prompts.setdefault(captions.canonical(scene), scene)
    return list(prompts.items())
