"""Hard negatives: a scene changed in one respect, so that only its caption's structure tells it apart.

    colour    the colours of two objects exchanged          "a blue circle left of a red square"
    shape     their shapes exchanged
    relation  the relation reversed, or a lone object's place mirrored
    count     one identical object more or fewer
    replace   one attribute, the background or the style replaced by another word

A change acts on the *scene*; the caption is then written in the same phrasing. Changes that would show a
held-out combination are never made in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.captions import caption
from ediffi_jax.data.scenes.heldout import held_out
from ediffi_jax.data.scenes.sampling import QUARTERS
from ediffi_jax.data.scenes.scene import Object, Scene

Rng = np.random.Generator
Change = Callable[[Scene, Rng], Scene | None]


def _with_objects(scene: Scene, objects: Sequence[Object]) -> Scene:
    return dataclasses.replace(scene, objects=tuple(objects))


def _exchange(scene: Scene, rng: Rng, fields: tuple[str, ...]) -> Scene | None:
    """Exchanges `fields` between two objects that differ in them; None if no two do."""
    objects = list(scene.objects)
    pairs = [
        (i, j)
        for i in range(len(objects))
        for j in range(i)
        if any(getattr(objects[i], f) != getattr(objects[j], f) for f in fields)
    ]
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    a, b = objects[i], objects[j]
    objects[i] = dataclasses.replace(a, **{f: getattr(b, f) for f in fields})
    objects[j] = dataclasses.replace(b, **{f: getattr(a, f) for f in fields})
    return _with_objects(scene, objects)


def colour_swap(scene: Scene, rng: Rng) -> Scene | None:
    return _exchange(scene, rng, ("colour",))


def shape_swap(scene: Scene, rng: Rng) -> Scene | None:
    return _exchange(scene, rng, ("shape",))


def _mirror(scene: Scene, axis: str) -> Scene:
    return _with_objects(scene, [dataclasses.replace(o, **{axis: 1 - getattr(o, axis)}) for o in scene.objects])


def reverse(scene: Scene, rng: Rng) -> Scene | None:
    """The relation reversed (inside: the roles exchanged); otherwise left and right or top and bottom mirrored."""
    if scene.relation == "inside":
        return _exchange(scene, rng, ("colour", "shape", "size", "texture"))
    if scene.relation:
        mirrored = _mirror(scene, "x" if scene.relation in ("left of", "right of") else "y")
        return dataclasses.replace(mirrored, relation=v.INVERSE[scene.relation])
    return _mirror(scene, "x" if rng.random() < 0.5 else "y")


def recount(scene: Scene, rng: Rng) -> Scene | None:
    """Another number of the same object: in quarters of the picture, or one in the middle."""
    if scene.kind not in ("count", "single"):
        return None
    count = int(rng.choice([n for n in range(1, 5) if n != len(scene.objects)]))
    spots = [(0.5, 0.5)] if count == 1 else [QUARTERS[i] for i in rng.permutation(4)[:count]]
    thing = dataclasses.replace(scene.objects[0], radius=0.26 if count == 1 else 0.17)
    return _with_objects(scene, [dataclasses.replace(thing, x=x, y=y) for x, y in spots])


def _other(words: Sequence[str], word: str, rng: Rng) -> str:
    rest = [w for w in words if w != word]
    return rest[int(rng.integers(len(rest)))]


def replace(scene: Scene, rng: Rng) -> Scene | None:
    """One word replaced: most often an object's colour or shape."""
    fields = ["colour", "shape", "size", "texture", "background", "style"]
    field = str(rng.choice(fields, p=(0.3, 0.3, 0.1, 0.1, 0.1, 0.1)))
    if field in ("background", "style"):
        words = v.STYLES if field == "style" else tuple(v.BACKGROUNDS)
        word = _other(words, getattr(scene, field), rng)
        return None if word == scene.gradient_to else dataclasses.replace(scene, **{field: word})
    words = {"colour": tuple(v.COLOURS), "shape": v.SHAPES, "size": v.SIZES, "texture": v.TEXTURES}[field]
    chosen = scene.objects[int(rng.integers(len(scene.objects)))]
    word = _other(words, getattr(chosen, field), rng)
    alike = [o.look == chosen.look for o in scene.objects]
    objects = [dataclasses.replace(o, **{field: word}) if same else o for o, same in zip(scene.objects, alike)]
    return _with_objects(scene, objects)


CHANGES: dict[str, Change] = {
    "colour": colour_swap,
    "shape": shape_swap,
    "relation": reverse,
    "count": recount,
    "replace": replace,
}


def change(scene: Scene, kind: str, rng: Rng, *, seen_only: bool = True) -> Scene | None:
    """The scene changed in one respect, or None where the change is impossible or says nothing.

    Args:
        scene: the true scene.
        kind: a key of `CHANGES`.
        rng: chooses among the possible changes.
        seen_only: refuse changes that make a held-out combination (for training).
    """
    other = CHANGES[kind](scene, rng)
    if other is None or (seen_only and held_out(other)):
        return None
    return None if caption(other) == caption(scene) else other


def draw(scene: Scene, number: int, rng: Rng) -> list[Scene]:
    """`number` changed scenes, each kind tried in random order, kinds repeated only when they run out."""
    found: list[Scene] = []
    for _ in range(20):
        kinds = list(CHANGES)
        rng.shuffle(kinds)
        for kind in kinds:
            other = change(scene, kind, rng)
            if other is not None:
                found.append(other)
            if len(found) == number:
                return found
    return (found + [scene])[:1] * number
