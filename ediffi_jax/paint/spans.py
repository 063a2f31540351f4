"""Where a phrase stands in a prompt, in characters.

    prompt   "A red circle, and a RED Circle."        words: a red circle and a red circle
    phrase   "red circle"      the first occurrence   characters [2, 12)
             "red circle#2"    the second             characters [20, 30)

Words are compared whole, without case, punctuation and Unicode form: "red" is not in "bored", and
"left of" is in "left-of". Occurrences do not overlap and are counted from 1; without a number, the first.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass

from ediffi_jax.paint.errors import PaintError

WORD = re.compile(r"(?:[^\W_][\u0300-\u036f]*)+")  # letters and digits, with their combining accents
OCCURRENCE = re.compile(r"(.*)#(\S*)", re.DOTALL)  # "C# sharp" has none
SHOWN = 200  # characters of a prompt in a message


@dataclass(frozen=True)
class Word:
    """A word of a text: how it is compared, and its characters [begin, end)."""

    key: str
    begin: int
    end: int


def words(text: str) -> list[Word]:
    """The words of a text in order."""
    return [Word(_key(found[0]), *found.span()) for found in WORD.finditer(text)]


def _key(word: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())


def find(prompt: str, phrase: str) -> tuple[int, int]:
    """Characters [begin, end) of the phrase in the prompt.

    Args:
        prompt: the whole prompt.
        phrase: some of its words; "phrase#n" is the n-th occurrence, without #n the first.

    Raises:
        PaintError: the phrase has no word, is not in the prompt, occurs less often than n, or its #n is no number.
    """
    text, number = _occurrence(phrase)
    wanted = [word.key for word in words(text)]
    if not wanted:
        raise PaintError(f"the painted phrase {phrase!r} holds no word; expected words of the prompt")
    there = words(prompt)
    found, at = [], 0
    while at + len(wanted) <= len(there):
        stretch = there[at : at + len(wanted)]
        matches = [word.key for word in stretch] == wanted
        if matches:
            found.append((stretch[0].begin, stretch[-1].end))
        at += len(wanted) if matches else 1
    if not found:
        raise PaintError(f"the phrase {text!r} is not in the prompt {_short(prompt)}{_closest(prompt, wanted)}")
    if number > len(found):
        times = "once" if len(found) == 1 else f"{len(found)} times"
        raise PaintError(f"{phrase!r}: the phrase occurs {times} in the prompt {_short(prompt)}")
    return found[number - 1]


def _occurrence(phrase: str) -> tuple[str, int]:
    """ "red circle#2" -> ("red circle", 2)."""
    if not isinstance(phrase, str):
        raise PaintError(f"the painted phrase {phrase!r} is {type(phrase).__name__}; expected text")
    match = OCCURRENCE.fullmatch(phrase.strip())
    if match is None:
        return phrase, 1
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", match[2]):
        raise PaintError(
            f"{phrase!r} ends in '#{match[2]}'; expected a whole number from 1, such as {match[1] + '#2'!r}"
        )
    return match[1], int(match[2])


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= SHOWN else f"{prompt[: SHOWN - 1]}…")


def _closest(prompt: str, wanted: list[str]) -> str:
    """The spans of the prompt most like the phrase, as they are written there."""
    there = words(prompt)
    spans: dict[str, str] = {}
    for count in range(max(1, len(wanted) - 1), len(wanted) + 2):
        for first, last in zip(there, there[count - 1 :]):
            written = prompt[first.begin : last.end]
            spans.setdefault(" ".join(word.key for word in words(written)), " ".join(written.split()))
    close = difflib.get_close_matches(" ".join(wanted), spans, n=3, cutoff=0.4)
    return f"; closest there: {', '.join(repr(spans[key]) for key in close)}" if close else "; nothing there is like it"
