"""To which prompt does a picture belong that was begun with one and finished with another? Read by the exact scorer.

A case is two prompts of two objects. They share no colour and no shape; in one the objects stand side by side, in the
other one above the other. So whatever is read in a picture belongs to one prompt, to the other, or to neither:

    colours   both objects of the prompt are there in their colours
    shapes    both are there in their shapes
    objects   both: every object has its colour and its shape
    layout    the two largest things in the picture stand along the prompt's axis
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import vocabulary as v

AXES = (("left of", "right of"), ("above", "below"))
PARTS = ("objects", "colours", "shapes", "layout")

Read = dict[str, Bool[np.ndarray, "n 2"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Two prompts that share no colour, no shape and no axis.

    Attributes:
        prompts: the first and the second.
        scenes: what they ask for; only its words count.
    """

    prompts: tuple[str, str]
    scenes: tuple[scenes.Scene, scenes.Scene]


def make_cases(number: int, seed: int = 0) -> list[Case]:
    """Cases of bindings and pairs that training showed, on plain gray.

    Args:
        number: how many.
        seed: another seed, other cases.
    """
    rng = np.random.default_rng((seed, 0x5317C4))
    return [_case(rng) for _ in range(number)]


def _case(rng: np.random.Generator) -> Case:
    while True:
        colours, shapes = rng.permutation(list(v.COLOURS))[:4], rng.permutation(v.SHAPES)[:4]
        things = [scenes.Object(colour=str(c), shape=str(s)) for c, s in zip(colours, shapes)]
        axes = rng.permutation(2)
        asked = tuple(
            scenes.Scene(objects=tuple(pair), relation=AXES[axis][rng.integers(2)])
            for pair, axis in zip((things[:2], things[2:]), axes)
        )
        if not any(scenes.held_out(scene) for scene in asked):
            return Case(prompts=tuple(scenes.canonical(scene) for scene in asked), scenes=asked)


def read(pictures: UInt8[np.ndarray, "n r r 3"], cases: Sequence[Case]) -> Read:
    """Of picture i, what belongs to the first and to the second prompt of case i: part of `PARTS` -> [n, 2]."""
    rows = [_parts(picture, case) for picture, case in zip(pictures, cases, strict=True)]
    found = np.array(rows, bool).reshape(-1, 2, len(PARTS))
    return {part: found[:, :, index] for index, part in enumerate(PARTS)}


def _parts(picture: UInt8[np.ndarray, "r r 3"], case: Case) -> list[tuple[bool, ...]]:
    """For each prompt what of `PARTS` is found."""
    axis, found = _axis(picture), []
    for scene in case.scenes:
        score = scenes.score(picture, scene)
        found.append((score.colours and score.shapes, score.colours, score.shapes, scene.relation in axis))
    return found


def _axis(picture: UInt8[np.ndarray, "r r 3"]) -> tuple[str, ...]:
    """The relations along which the two largest things stand; none where there are fewer."""
    seen = sorted(scenes.read(picture), key=lambda thing: -thing.width * thing.height)[:2]
    if len(seen) < 2:
        return ()
    across, down = abs(seen[0].x - seen[1].x), abs(seen[0].y - seen[1].y)
    return AXES[0] if across > down else AXES[1]
