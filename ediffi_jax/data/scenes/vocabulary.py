"""The closed vocabulary of scenes: what a picture may contain, and the numbers each word stands for.

Colours are sRGB in 0..255, chosen far apart in CIELAB, both among themselves and from the
backgrounds. Lengths are fractions of the picture's side. The words that are *unsaid* in a caption
(the medium size, the solid texture, the flat style and, half the time, the gray background) are the
defaults named here.
"""

from __future__ import annotations

from ediffi_jax import errors

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (222, 28, 36),
    "green": (34, 160, 62),
    "blue": (36, 84, 226),
    "yellow": (252, 224, 36),
    "purple": (146, 40, 178),
    "orange": (255, 134, 18),
    "white": (252, 252, 252),
    "black": (14, 14, 14),
}

BACKGROUNDS: dict[str, RGB] = {
    "gray": (132, 132, 132),
    "beige": (214, 190, 150),
    "pink": (242, 160, 186),
    "teal": (40, 140, 146),
    "navy": (34, 44, 104),
    "brown": (112, 72, 44),
}
DEFAULT_BACKGROUND = "gray"

SHAPES = ("circle", "square", "triangle", "cross", "ring", "heart", "moon")
CONTAINERS = ("circle", "square", "triangle", "heart")  # shapes with room for another object inside

SIZES = ("small", "medium", "large")
DEFAULT_SIZE = "medium"
TEXTURES = ("solid", "striped", "dotted")
DEFAULT_TEXTURE = "solid"

RELATIONS = ("left of", "right of", "above", "below", "inside")
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "inside": "around",
}

STYLES = ("flat", "outline", "pastel", "neon", "mosaic", "sketch")
DEFAULT_STYLE = "flat"

COUNTS = {2: "two", 3: "three", 4: "four"}

# Never drawn in training, whatever stands beside them: (colour, shape).
HELD_OUT_BINDINGS = frozenset(
    {("purple", "heart"), ("white", "triangle"), ("orange", "cross"), ("green", "ring")}
)


class SceneError(errors.UserError):
    """A scene, word or resolution that the vocabulary does not have."""


def plural(shape: str) -> str:
    """The plural of a shape's name: ``crosses``, ``circles``."""
    return shape + ("es" if shape.endswith("s") else "s")


def check(word: str, choices: tuple[str, ...] | dict[str, RGB], kind: str) -> str:
    """Returns `word` if it is one of `choices`, else raises `SceneError` naming the nearest."""
    if word not in choices:
        raise SceneError(f"unknown {kind} {word!r}{errors.nearest(word, choices)}")
    return word
