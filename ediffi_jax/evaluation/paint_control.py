"""How well painted objects go where they are painted, and what that costs them: read by the exact scorer.

A case is a prompt of two objects without a relation, and a mask for each; the masks do not overlap. Objects asked
for and objects seen are paired by colour and shape alone, never by place:

    inside   the pair agrees in colour or shape, and the centre of what is seen (of its bounding box) lies in the mask
    right    colour and shape of the pair are right
    whole    (of pictures) both objects right, and no third one

With n objects a share p has a standard error of about sqrt(p (1 - p) / n).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.captions import article
from ediffi_jax.data.scenes.heldout import pair_held_out
from ediffi_jax.data.scenes.scoring import Seen

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, fractions of the picture, y down
HALVES: tuple[tuple[Box, Box], ...] = (((0, 0, 0.5, 1), (0.5, 0, 1, 1)), ((0, 0, 1, 0.5), (0, 0.5, 1, 1)))
QUARTERS: tuple[Box, ...] = ((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1))
SIDES = (0.4, 0.6)  # of random boxes; a medium object of two is 0.37 of the picture across
LAYOUTS = ("halves", "quarters", "boxes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A prompt with a place for each of its objects.

    Attributes:
        prompt: text.
        bindings: (colour, shape) of the two objects.
        boxes: where each belongs.
        layout: of `LAYOUTS`.
    """

    prompt: str
    bindings: tuple[tuple[str, str], tuple[str, str]]
    boxes: tuple[Box, Box]
    layout: str

    def paint(self) -> dict[str, str]:
        """For `Cascade.sample`."""
        return {" ".join(b): f"box:{','.join(map(str, box))}" for b, box in zip(self.bindings, self.boxes)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """Shares in [0, 1]; see the top of this module.

    Attributes:
        number: pictures.
        inside, right: of objects.
        inside_right: of objects, both.
        whole: of pictures.
        inside_by_layout: layout -> share of its objects inside.
    """

    number: int
    inside: float
    right: float
    inside_right: float
    whole: float
    inside_by_layout: dict[str, float]

    def row(self) -> str:
        """One line, in percent."""
        names = ("inside", "right", "inside_right", "whole")
        shares = "  ".join(f"{name} {100 * getattr(self, name):.1f}" for name in names)
        layouts = "  ".join(f"{name} {100 * share:.0f}" for name, share in self.inside_by_layout.items())
        return f"{shares}   inside by layout: {layouts}"


def make_cases(number: int, seed: int = 0, template: str = "{a} and {b}", held_out: bool = False) -> list[Case]:
    """Cases with random pairs of different bindings, all of them seen in training, and the layouts in turn.

    Args:
        number: how many.
        seed: another seed, other pairs and places.
        template: of the prompt, {a} and {b} being "a red circle" and "a blue square".
        held_out: only pairs that training never showed in one picture.
    """
    rng = np.random.default_rng((seed, 0xB0C5))
    cases = []
    for layout in itertools.islice(itertools.cycle(LAYOUTS), number):
        bindings = _pair(rng, held_out)
        a, b = (f"{article(colour)} {colour} {shape}" for colour, shape in bindings)
        prompt = template.format(a=a, b=b)
        cases.append(Case(prompt=prompt, bindings=bindings, boxes=_places(rng, layout), layout=layout))
    return cases


def _pair(rng: np.random.Generator, held_out: bool) -> tuple[tuple[str, str], tuple[str, str]]:
    known = [b for b in itertools.product(v.COLOURS, v.SHAPES) if b not in v.HELD_OUT_BINDINGS]
    while True:
        first, second = (known[i] for i in rng.choice(len(known), 2, replace=False))
        if pair_held_out(first, second) or not held_out:
            return first, second


def _places(rng: np.random.Generator, layout: str) -> tuple[Box, Box]:
    if layout == "halves":
        first, second = HALVES[rng.integers(2)]
        return (first, second) if rng.random() < 0.5 else (second, first)
    if layout == "quarters":
        i, j = rng.permutation(4)[:2]
        return QUARTERS[i], QUARTERS[j]
    while True:
        first, second = (_box(rng) for _ in range(2))
        if first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]:
            return first, second


def _box(rng: np.random.Generator) -> Box:
    width, height = rng.uniform(*SIDES, 2)
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return tuple(round(float(edge), 4) for edge in (x, y, x + width, y + height))


def measure(pictures: UInt8[np.ndarray, "n r r 3"], cases: Sequence[Case]) -> Control:
    """Reads picture i against case i."""
    rows = [_objects(scenes.read(picture), case) for picture, case in zip(pictures, cases, strict=True)]
    inside, right = np.array([row[:2] for row in rows]).transpose(1, 0, 2)
    layouts = np.array([case.layout for case in cases])
    return Control(
        number=len(rows),
        inside=float(inside.mean()),
        right=float(right.mean()),
        inside_right=float((inside & right).mean()),
        whole=float(np.mean([row[1].all() and row[2] == 2 for row in rows])),
        inside_by_layout={name: float(inside[layouts == name].mean()) for name in LAYOUTS if name in layouts},
    )


def _objects(seen: Sequence[Seen], case: Case) -> tuple[np.ndarray, np.ndarray, int]:
    """For both objects whether they are inside, whether right; and how many things are seen."""
    # The largest first: specks do not get the better of a tie.
    seen = sorted(seen, key=lambda s: -s.width * s.height)
    candidates = [*seen[:6], None, None]

    def agreement(pair: tuple[Seen | None, ...]) -> int:
        matches = zip(case.bindings, pair)
        return sum((s.colour == b[0]) + (s.shape == b[1]) for b, s in matches if s is not None)

    best = max(itertools.permutations(candidates, 2), key=agreement)
    inside, right = np.zeros(2, bool), np.zeros(2, bool)
    for i, (s, (colour, shape), (x0, y0, x1, y1)) in enumerate(zip(best, case.bindings, case.boxes)):
        if s is not None and (s.colour == colour or s.shape == shape):
            inside[i] = x0 <= s.x <= x1 and y0 <= s.y <= y1
            right[i] = s.colour == colour and s.shape == shape
    return inside, right, len(seen)
