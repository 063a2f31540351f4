"""Does a picture take the style of a reference, and keep what its prompt asks for?

A case is a held-out reference picture of one style and an unrelated prompt of two objects that names no style. A
captioner of scenes leaves only the flat style unsaid, so to the text such a prompt *says* flat: reference and text
disagree for every other style.

    recognised   `style_recognition` finds the reference's style in the picture
    copied       (of pictures with a reference) an object of the reference that was not asked for is read in the picture
    content      colour and shape of both objects are right, whatever else there is; only where the scorer can read
    related      they also stand as the prompt says, if it says so

The scorer reads at least 97 % of clean renders of the `READABLE` styles, now all of them (`docs/control.md` has the
shares). Where it cannot read, content is not counted, rather than counted wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.evaluation.paint_control import make_cases as make_prompts
from ediffi_jax.evaluation.style_recognition import StyleClassifier

READABLE = ("flat", "outline", "pastel", "neon", "mosaic", "sketch")

Pictures = UInt8[np.ndarray, "n r r 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A prompt with a reference.

    Attributes:
        prompt: two objects, no style.
        scene: what the prompt asks for, to be scored against.
        reference: scene of the reference, in its style.
    """

    prompt: str
    scene: scenes.Scene
    reference: scenes.Scene

    @property
    def style(self) -> str:
        return self.reference.style


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """Shares in [0, 1]; see the top of this module.

    Attributes:
        number: pictures.
        recognised: of them.
        by_style: style -> share recognised.
        content: of the pictures read, None if there is none.
        related: of the pictures read, None if there is none.
        copied: of the pictures read, None if there is none.
        read: pictures whose recognised style is readable.
        found: style -> how many pictures were found to have it.
    """

    number: int
    recognised: float
    by_style: dict[str, float]
    content: float | None
    related: float | None
    copied: float | None
    read: int
    found: dict[str, int]

    def row(self) -> str:
        """One line, in percent."""
        styles = "  ".join(f"{name} {100 * share:.0f}" for name, share in self.by_style.items())
        shares = (self.content, self.related, self.copied)
        content, related, copied = ("-" if share is None else f"{100 * share:.1f}" for share in shares)
        return (
            f"n={self.number}  style {100 * self.recognised:.1f} ({styles})  content {content}, related {related},"
            f" copied {copied} of {self.read} read"
        )


def make_cases(number: int, seed: int = 0, relation: bool = True) -> list[Case]:
    """`number` cases of every style: references held out of training, prompts that share no object with them.

    Args:
        number: of each style.
        seed: another seed, other references and prompts.
        relation: whether prompts say how their two objects stand to one another. With it they are combinations
            that training never showed; without, as for painting ("a red circle and a blue square").
    """
    rng = np.random.default_rng((seed, 0x57E1F))
    prompts = related(seed) if relation else listed(20 * number * len(v.STYLES), seed)
    cases = []
    for style in v.STYLES:
        for _ in range(number):
            held_out = scenes.sample_scene(rng, held_out=True)
            reference = dataclasses.replace(held_out, style=style)
            used = {word for o in reference.objects for word in (o.colour, o.shape)}
            prompt, scene = next(
                found for found in prompts if not used & {w for o in found[1].objects for w in (o.colour, o.shape)}
            )
            cases.append(Case(prompt=prompt, scene=scene, reference=reference))
    return cases


def listed(number: int, seed: int) -> Iterator[tuple[str, scenes.Scene]]:
    """Prompts of two objects without a relation, and what they ask for."""
    for asked in make_prompts(number, seed):
        things = tuple(scenes.Object(colour=colour, shape=shape) for colour, shape in asked.bindings)
        yield asked.prompt, scenes.Scene(objects=things)


def related(seed: int) -> Iterator[tuple[str, scenes.Scene]]:
    """Canonical captions of scenes in combinations that training never showed, on plain gray."""
    rng = np.random.default_rng((seed, 0x57E20))
    while True:
        scene = scenes.sample_scene(rng, held_out=True)
        scene = dataclasses.replace(scene, background=v.DEFAULT_BACKGROUND, gradient_to="")
        yield scenes.canonical(scene), scene


def measure(pictures: Pictures, cases: Sequence[Case], classify: StyleClassifier) -> Transfer:
    """Reads picture i against case i."""
    found = classify(list(pictures))
    right = np.array([style == case.style for style, case in zip(found, cases, strict=True)])
    wanted = np.array([case.style for case in cases])
    read = [
        (_content(picture, case, style), _related(picture, case, style), _copied(picture, case, style))
        for picture, case, style in zip(pictures, cases, found)
        if style in READABLE
    ]
    content, related, copied = np.mean(read, axis=0).tolist() if read else (None, None, None)
    return Transfer(
        number=len(cases),
        recognised=float(right.mean()),
        by_style={name: float(right[wanted == name].mean()) for name in v.STYLES if name in wanted},
        content=content,
        related=related,
        copied=copied,
        read=len(read),
        found={name: found.count(name) for name in v.STYLES if name in found},
    )


def _wanted(case: Case, style: str) -> scenes.Scene:
    return dataclasses.replace(case.scene, style=style)


def _content(picture: np.ndarray, case: Case, style: str) -> bool:
    score = scenes.score(picture, _wanted(case, style))
    return score.colours and score.shapes


def _related(picture: np.ndarray, case: Case, style: str) -> bool:
    return _content(picture, case, style) and scenes.score(picture, _wanted(case, style)).relation


def _copied(picture: np.ndarray, case: Case, style: str) -> bool:
    """Whether any object of the reference is there, in colour and shape; none of them was asked for."""
    for thing in case.reference.objects:
        alone = scenes.score(picture, scenes.Scene(objects=(thing,), style=style))
        if alone.colours and alone.shapes:
            return True
    return False
