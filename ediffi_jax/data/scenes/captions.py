"""Scene -> caption, in several phrasings, with the owner of every word.

A phrasing is a template of words and slots. A slot is a letter for the object (A is ``objects[0]``)
behind a sign for what is said of it:

    {aA} "a small red circle"      {tA} "the circle", or "the red circle" if another has its shape
    {sA} "circle" or "red circle"  {cA} "red"      {nA} "three red circles"

Each word that a slot yields belongs to its object: that is the ground truth of attribute binding,
of phrase spans and of the encoders' grounding. What is unsaid is the default: medium, solid, flat
and (half the time) gray.
"""

from __future__ import annotations

import re

import numpy as np

from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.scene import Object, Scene

Rng = np.random.Generator
Owned = list[tuple[str, int]]  # word, index of its object or -1

SLOT = re.compile(r"\{(\w)(\w)\}")

# {rel}: "left of"; {inv}: "right of". Weights say how often a phrasing is drawn.
SHORT = {
    "canonical": ("{aA} {rel} {aB}", 3.0),
    "inverse": ("{aB} {inv} {aA}", 1.0),
    "with": ("{aB} with {aA} {with}", 1.0),
    "places": ("{places}", 1.0),
    "is": ("{aA} is {rel} {aB}", 0.7),
    "there": ("there is {aA} {rel} {aB}", 0.7),
    "picture": ("a picture of {aA} {rel} {aB}", 0.5),
    "roles": ("{aA} and {aB} , {tA} is {rel} {tB}", 0.8),
}
LONG = {
    "long_colours": (
        "{aA} is {rel} {aB} . {sA} : {cA} . {sB} : {cB} . {tA} is {spot}",
        0.7,
    ),
    "long_facts": (
        "{aA} is {rel} {aB} . {tA} is {cA} , {tB} is {cB} , {tA} is {spot}",
        1.2,
    ),
    "long_two": ("there are two shapes , {aA} and {aB} . {tA} is {rel} {tB}", 0.7),
    "long_both": ("{tA} is {rel} {tB} . {tB} is {inv} {tA} . {tA} is {cA} and {tB} is {cB}", 0.7),
    "long_see": ("we see {aA} {spot} and {aB} {otherspot} . {tA} is {rel} {tB}", 0.7),
}
FORMS = {**SHORT, **LONG}

# Per relation: other words for it, {with}, the first object's spot, the second's, both placed.
WORDS = {
    "left of": (
        ("left of", "to the left of"),
        "to its left",
        "on the left",
        "on the right",
        "on the left {aA} and on the right {aB}",
    ),
    "right of": (
        ("right of", "to the right of"),
        "to its right",
        "on the right",
        "on the left",
        "on the right {aA} and on the left {aB}",
    ),
    "above": (
        ("above", "over"),
        "above it",
        "at the top",
        "at the bottom",
        "at the top {aA} and at the bottom {aB}",
    ),
    "below": (
        ("below", "under"),
        "below it",
        "at the bottom",
        "at the top",
        "at the bottom {aA} and at the top {aB}",
    ),
    "inside": (
        ("inside", "within"),
        "inside it",
        "on the inside",
        "on the outside",
        "on the inside {aA} and on the outside {aB}",
    ),
    "around": (("around", "containing"), "around it", "", "", ""),
}


def article(word: str) -> str:
    """The indefinite article before `word`."""
    return "an" if word[0] in "aeiou" else "a"


def _adjectives(thing: Object) -> list[str]:
    size = [] if thing.size == v.DEFAULT_SIZE else [thing.size]
    texture = [] if thing.texture == v.DEFAULT_TEXTURE else [thing.texture]
    return [*size, *texture, thing.colour]


def _slot(scene: Scene, sign: str, index: int) -> list[str]:
    """The words of slot `sign` for object `index`."""
    thing = scene.objects[index]
    full = [*_adjectives(thing), thing.shape]
    alone = sum(o.shape == thing.shape for o in scene.objects) == 1
    short = [thing.shape] if alone else [thing.colour, thing.shape]
    if not alone and sum(o.binding == thing.binding for o in scene.objects) > 1:
        short = full
    if sign == "n":
        number = sum(o.look == thing.look for o in scene.objects)
        if number > 1:
            return [v.COUNTS[number], *full[:-1], v.plural(thing.shape)]
        sign = "a"
    return {"a": [article(full[0]), *full], "t": ["the", *short], "s": short, "c": [thing.colour]}[sign]


def _fill(scene: Scene, template: str) -> Owned:
    """Template -> owned words; a lone mark is glued to the word before it."""
    words: Owned = []
    for token in template.split():
        slot = SLOT.fullmatch(token)
        if slot:
            index = "ABCD".index(slot[2])
            words += [(word, index) for word in _slot(scene, slot[1], index)]
        elif token in {",", ".", ":"} and words:
            words[-1] = (words[-1][0] + token, words[-1][1])
        else:
            words.append((token, -1))
    return words


def _relation_template(scene: Scene, rng: Rng | None, form: str) -> str:
    synonyms, with_it, spot, other, places = WORDS[scene.relation]
    inverses = WORDS[v.INVERSE[scene.relation]][0]
    varied = rng is not None and form in SHORT and form != "canonical"
    rel = synonyms[int(rng.random() < 0.3)] if varied else synonyms[0]
    inv = inverses[int(rng.random() < 0.3)] if varied else inverses[0]
    template = FORMS[form][0]
    values = {"{rel}": rel, "{inv}": inv, "{with}": with_it, "{spot}": spot}
    values |= {"{otherspot}": other, "{places}": places}
    for name, value in values.items():
        template = template.replace(name, value)
    return template


def place(thing: Object) -> str:
    """Where in the picture a thing stands: "", "on the left", "at the top right", …"""
    level = "top" if thing.y < 0.4 else "bottom" if thing.y > 0.6 else ""
    side = "left" if thing.x < 0.4 else "right" if thing.x > 0.6 else ""
    if not level:
        return f"on the {side}" if side else ""
    return f"at the {level} {side}".strip()


# Behind each phrasing, what joins the object's place to it.
SINGLE = (
    ("{aA}", ""),
    ("there is {aA}", ""),
    ("a picture of {aA}", ""),
    ("one shape , {aA}", ","),
    ("{aA} . {tA} is {cA}", "and"),
)


def _single_template(scene: Scene, rng: Rng | None) -> str:
    spot = place(scene.objects[0])
    form, joint = SINGLE[0 if rng is None else int(rng.integers(len(SINGLE)))]
    return f"{form} {joint} {spot}" if spot else form


def _join(parts: list[str]) -> str:
    return f"{' , '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _count_template(scene: Scene, rng: Rng | None) -> str:
    number = v.COUNTS[len(scene.objects)]
    forms = ["{nA}", "there are {nA}", "a picture of {nA}", f"{number} shapes , {{nA}}", "we see {nA}"]
    return forms[0 if rng is None else int(rng.integers(len(forms)))]


def _mixed_template(scene: Scene, rng: Rng | None) -> str:
    """A list of the things, or, if all differ, each with its place."""
    looks = [o.look for o in scene.objects]
    first = [i for i, look in enumerate(looks) if looks.index(look) == i]
    if len(first) == len(looks) and rng is not None and rng.random() < 0.5:
        spots = [place(o) or "in the middle" for o in scene.objects]
        return _join([f"{{a{'ABCD'[i]}}} {spots[i]}" for i in first])
    listed = _join([f"{{n{'ABCD'[i]}}}" for i in first])
    forms = ["{}", "there are {}", "a picture of {}", f"{v.COUNTS[len(looks)]} shapes , {{}}"]
    return forms[0 if rng is None else int(rng.integers(len(forms)))].format(listed)


def _background(scene: Scene, rng: Rng | None) -> str:
    """The background's clause; a plain gray one is said half the time."""
    if scene.gradient_to:
        return f"on a background from {scene.background} to {scene.gradient_to}"
    if scene.background == v.DEFAULT_BACKGROUND and rng is not None and rng.random() < 0.5:
        return ""
    clause = f"on a {scene.background} background"
    if rng is None or rng.random() < 0.75:
        return clause
    return f", the background is {scene.background}"


def _style(scene: Scene, body: str, rng: Rng | None) -> str:
    """Adds the style's words before or after; flat is unsaid, and so is one that only the picture tells."""
    if scene.style == v.DEFAULT_STYLE or not scene.named_style:
        return body
    style = scene.style
    ways = [
        f"{body} in {style} style",
        f"{style} style , {body}",
        f"{body} , {style} style",
        f"in {style} style , {body}",
    ]
    return ways[0 if rng is None else int(rng.integers(len(ways)))]


def _draw_form(scene: Scene, rng: Rng) -> str:
    """A phrasing by its weight; those that would say "the red circle is red" need two shapes."""
    alike = scene.objects[0].shape == scene.objects[1].shape
    weights = {
        name: weight
        for name, (template, weight) in FORMS.items()
        if not (alike and "{cA}" in template)
    }
    chances = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(chances), p=chances / chances.sum()))]


def caption_with_owners(
    scene: Scene, rng: Rng | None = None, form: str | None = None
) -> tuple[str, list[int]]:
    """A caption and, for each of its words, the object it speaks of.

    Args:
        scene: what to describe.
        rng: draws phrasing and wording; None gives the canonical caption.
        form: a name of `FORMS` for scenes with a relation (others have their own phrasings).

    Returns:
        The text (lowercase, at most 40 words) and a list aligned with ``text.split()``: the index
        into ``scene.objects``, or -1. Of several identical objects the first one owns the words.

    Raises:
        SceneError: there is no such form.
    """
    if form is not None:
        v.check(form, tuple(FORMS), "caption form")
    if scene.kind == "relation":
        if form is None and rng is not None:
            form = _draw_form(scene, rng)
        template = _relation_template(scene, rng, form or "canonical")
    else:
        makers = {"single": _single_template, "count": _count_template, "mixed": _mixed_template}
        template = makers[scene.kind](scene, None if form == "canonical" else rng)
    chance = None if form == "canonical" else rng
    template = _style(scene, f"{template} {_background(scene, chance)}".strip(), chance)
    words = _fill(scene, template)
    return " ".join(word for word, _ in words), [owner for _, owner in words]


def caption(scene: Scene, rng: Rng | None = None, form: str | None = None) -> str:
    """The text of `caption_with_owners`."""
    return caption_with_owners(scene, rng, form)[0]


def canonical(scene: Scene) -> str:
    """For example "a red circle left of a blue square on a gray background"."""
    return caption(scene)
