"""The phrases of a prompt that one would paint: its groups of content words.

    "a red circle to the left of a blue square, and a red circle"  ->  red circle · blue square · red circle#2

A group ends at punctuation and at words that name no thing: articles, prepositions, conjunctions, pronouns,
auxiliary verbs and words of place. That is no parser, and need not be: any words of the prompt can be painted.
"""

from __future__ import annotations

import re

from ediffi_jax.paint.errors import PaintError
from ediffi_jax.paint.spans import find, words

NO_THINGS = frozenset(
    """
    a an the this that these those some any each every no of to in on at by for from with without within inside
    outside into onto over under above below beneath beside besides between behind through across around along near
    next against among and or but nor while as than then so not is are was were be been being has have had having do
    does did can could will would shall should may might must there here it its he she they them his her their we us
    our you your i my who whom whose which what where when how very left right top bottom side middle centre center
    front up down off out upon toward towards containing see seen shows showing
    """.split()
)
BREAK = re.compile(r"[^\s\-'’]")  # between two words of one group only spaces, hyphens and apostrophes


def phrases(prompt: str, most: int = 10) -> list[str]:
    """What `paint` may be given for the prompt: the first `most` groups, a repeated one as "phrase#2".

    Args:
        prompt: any text.
        most: as many at the most.
    """
    found: list[str] = []
    for begin, end in _groups(prompt):
        phrase = _named(prompt, begin, end)
        if phrase and len(found) < most:
            found.append(phrase)
    return found


def _groups(prompt: str) -> list[tuple[int, int]]:
    """Characters [begin, end) of each group."""
    groups: list[tuple[int, int]] = []
    open_group = False
    for word in words(prompt):
        if word.key in NO_THINGS:
            open_group = False
            continue
        if open_group and not BREAK.search(prompt[groups[-1][1] : word.begin]):
            groups[-1] = (groups[-1][0], word.end)
        else:
            groups.append((word.begin, word.end))
        open_group = True
    return groups


def _named(prompt: str, begin: int, end: int) -> str:
    """How `spans.find` is asked for these characters; "" if it counts others for the phrase."""
    text = " ".join(prompt[begin:end].split())
    for number in range(1, 10_000):
        name = text if number == 1 else f"{text}#{number}"
        try:
            if find(prompt, name) == (begin, end):
                return name
        except PaintError:
            return ""
    return ""
