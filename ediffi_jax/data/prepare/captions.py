"""Captions: bytes into text, and text into what a model should read."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ediffi_jax.data.prepare.reasons import Rejection

# Names that captions go by, in the order in which they are looked for.
KEYS = ("caption", "captions", "text", "texts", "TEXT", "prompt", "title")

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_URL = re.compile(r"(?:https?://|www\.)\S+")
_INVISIBLE = {"Cc", "Cf", "Co", "Cs"}  # control, format (zero width, direction marks), private, surrogate


def decode(data: bytes) -> str:
    """UTF-8 bytes, with or without a byte order mark. Raises Rejection for others."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejection("caption_not_utf8", f"byte {data[error.start]:#04x} at {error.start}") from error


def check(text: str) -> str:
    """A text read with `surrogateescape`; raises Rejection where bytes were escaped."""
    return decode(text.encode("utf-8", "surrogateescape"))


def clean(text: str) -> str:
    """HTML entities, tags, web addresses and invisible characters out; one space between words; Unicode NFC.

    Words, punctuation, case and order stay as they were written: what describes a picture is not ours to change.
    """
    text = unicodedata.normalize("NFC", html.unescape(text))
    text = _URL.sub(" ", _TAG.sub(" ", text))
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
    return " ".join(text.split())


def texts(value: Any, key: str = "") -> tuple[str, ...]:
    """All captions in a value as data sets hold them: text, bytes, lists of them, or mappings with one of `KEYS`.

    Args:
        value: for instance ``{"text": ["a cat", "a tabby"], "id": [1, 2]}``; None holds none.
        key: where in a mapping they are; "" is the first of `KEYS` that is there.

    Raises:
        Rejection: bytes that are not UTF-8.
    """
    if value is None or isinstance(value, (int, float, np.number)):
        return ()
    if isinstance(value, bytes):
        return (decode(value),)
    if isinstance(value, str):
        return (check(value),)
    if isinstance(value, Mapping):
        found = next((name for name in ((key,) if key else KEYS) if name in value), None)
        return texts(value[found]) if found is not None else ()
    if isinstance(value, Iterable):
        return tuple(text for one in value for text in texts(one, key))
    return ()


def from_json(data: bytes) -> dict[str, Any]:
    """A caption file's JSON as a mapping; a text or a list of texts is its captions. Raises Rejection."""
    try:
        value = json.loads(decode(data))
    except ValueError as error:
        raise Rejection("caption_unreadable", str(error)) from error
    return value if isinstance(value, dict) else {"caption": value}
