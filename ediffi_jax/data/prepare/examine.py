"""The first step, record by record: decode, verify, filter, crop, hash. One unit in, one table out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ediffi_jax.data.prepare import captions, crops, hashing, scoring, sources, tables
from ediffi_jax.data.prepare.decode import Decoder
from ediffi_jax.data.prepare.reasons import Rejection
from ediffi_jax.data.prepare.scoring import Scorer
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import Item, Unit

PART = 256  # records in memory at once: a tar may hold ten thousand


def examine(unit: Unit, settings: Settings) -> Iterator[pa.Table]:
    """Looks at every record of a unit, some at a time; see `tables.RECORDS`. There is at least one table."""
    scorer = scoring.of(settings)
    rows: list[dict[str, Any]] = []
    for item in sources.read(unit, settings):
        rows.append(_row(item, settings, scorer))
        if len(rows) == PART:
            yield _table(rows, settings, scorer)
            rows = []
    yield _table(rows, settings, scorer)


def examine_into(folder: str, key: str, unit: Unit, settings: Settings) -> None:
    """Writes a unit's table."""
    tables.write(folder, key, tables.RECORDS, examine(unit, settings))


def _table(rows: list[dict[str, Any]], settings: Settings, scorer: Scorer | None) -> pa.Table:
    """The rows, those that wait for scores decided."""
    waiting = [row for row in rows if "scores" in row]
    if scorer and waiting:
        _score(waiting, settings, scorer)
    return pa.Table.from_pylist(rows, schema=tables.RECORDS)


def _score(rows: list[dict[str, Any]], settings: Settings, scorer: Scorer) -> None:
    """Computes the scores that records lack; a row that does not pass is emptied to its reason."""
    clip, aesthetic = scorer([row["caption"] for row in rows], np.stack([row.pop("square") for row in rows]))
    for i, row in enumerate(rows):
        told = row.pop("scores")
        computed = {"clip": clip[i], "aesthetic": None if aesthetic is None else aesthetic[i]}
        try:
            _want({name: computed[name] if score is None else score for name, score in told.items()}, settings)
        except Rejection as rejection:
            kept = {name: row[name] for name in ("id", "source", "mended")}
            row.clear()
            row |= kept | {"reason": rejection.reason, "detail": rejection.detail}


def _row(item: Item, settings: Settings, scorer: Scorer | None) -> dict[str, Any]:
    row = {"id": _printable(item.id), "source": _printable(item.source), "reason": "", "detail": "", "mended": ""}
    try:
        row |= look(item, settings, scorer)
    except Rejection as rejection:
        row |= {"reason": rejection.reason, "detail": _printable(rejection.detail)}
    return row


def look(item: Item, settings: Settings, scorer: Scorer | None = None) -> dict[str, Any]:
    """What is stored of a record that is taken. Cheap tests come first. Raises Rejection for one that is not.

    A record that the scorer must see as well has `scores`, those of the input, and `square`, what it sees.
    """
    if item.problem is not None:
        raise item.problem
    if not item.encoded:
        raise Rejection("empty_file")
    decoder = Decoder(
        side=max(settings.resolution, 32, scorer.side if scorer else 0),
        max_pixels=settings.max_pixels,
        exif_rotation=settings.exif_rotation,
        colour_profiles=settings.colour_profiles,
    )
    image, header = decoder.open(item.encoded, item.name)
    texts = _captions(item, settings)
    _filter(header.width, header.height, settings)
    scores = {"clip": item.clip, "aesthetic": item.aesthetic}
    later = _lacking(scores, settings) if scorer else {}
    _want({name: score for name, score in scores.items() if name not in later}, settings)
    picture, noted = decoder.pixels(image, item.encoded)
    phash, colours = hashing.perceptual(picture)
    stored = crops.encode(crops.square(picture, settings.resolution), settings)
    return {
        "mended": " ".join((*header.notes, *noted)),
        "caption": texts[0],
        "captions": list(texts),
        "sha256": hashlib.sha256(item.encoded).digest(),
        "phash": phash,
        "colours": colours,
        "width": header.width,
        "height": header.height,
        "picture_bytes": len(stored),
        "picture": stored,
        **({"scores": later, "square": scorer.square(picture)} if later else {}),
    }


def _captions(item: Item, settings: Settings) -> tuple[str, ...]:
    """Those to keep, cleaned, each once; at least one. Raises Rejection."""
    texts = [captions.clean(text) if settings.clean_captions else text.strip() for text in item.captions]
    texts = [text for text in dict.fromkeys(texts) if text]
    if not texts:
        raise Rejection("caption_missing", "nothing left after cleaning" if any(item.captions) else "")
    long = [text for text in texts if len(text.split()) >= settings.min_words]
    if not long:
        raise Rejection("caption_short", texts[0])
    return tuple(long if settings.captions == "all" else long[:1])


def _filter(width: int, height: int, settings: Settings) -> None:
    """Raises Rejection for a size that the settings do not want."""
    if min(width, height) < settings.min_side:
        raise Rejection("too_small", f"{width}x{height}")
    if settings.max_aspect and max(width, height) > settings.max_aspect * min(width, height):
        raise Rejection("too_long", f"{width}x{height}")


def _lacking(scores: dict[str, float | None], settings: Settings) -> dict[str, None]:
    """The scores that are wanted, are not there, and have a network to compute them."""
    return {name: None for name, score in scores.items() if score is None and getattr(settings, name)}


def _want(scores: dict[str, float | None], settings: Settings) -> None:
    """Raises Rejection for a score that the settings do not want."""
    for name, score in scores.items():
        least = getattr(settings, f"min_{name}")
        if least is not None and score is None:
            raise Rejection(f"{name}_unknown")
        if least is not None and score < least:
            raise Rejection(f"{name}_low", f"{score:.4g}")


def _printable(text: str) -> str:
    """Names of files may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()
