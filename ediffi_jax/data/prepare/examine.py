"""The first step, record by record: decode, verify, filter, crop, hash. One unit in, one table out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ediffi_jax.data.prepare import captions, crops, hashing, sources, tables
from ediffi_jax.data.prepare.decode import Decoder
from ediffi_jax.data.prepare.reasons import Rejection
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import Item, Unit

PART = 256  # records in memory at once: a tar may hold ten thousand


def examine(unit: Unit, settings: Settings) -> Iterator[pa.Table]:
    """Looks at every record of a unit, some at a time; see `tables.RECORDS`. There is at least one table."""
    rows: list[dict[str, Any]] = []
    for item in sources.read(unit, settings):
        rows.append(_row(item, settings))
        if len(rows) == PART:
            yield pa.Table.from_pylist(rows, schema=tables.RECORDS)
            rows = []
    yield pa.Table.from_pylist(rows, schema=tables.RECORDS)


def examine_into(folder: str, key: str, unit: Unit, settings: Settings) -> None:
    """Writes a unit's table."""
    tables.write(folder, key, tables.RECORDS, examine(unit, settings))


def _row(item: Item, settings: Settings) -> dict[str, Any]:
    row = {"id": _printable(item.id), "source": _printable(item.source), "reason": "", "detail": "", "mended": ""}
    try:
        row |= look(item, settings)
    except Rejection as rejection:
        row |= {"reason": rejection.reason, "detail": _printable(rejection.detail)}
    return row


def look(item: Item, settings: Settings) -> dict[str, Any]:
    """What is stored of a record that is taken. Cheap tests come first. Raises Rejection for one that is not."""
    if item.problem is not None:
        raise item.problem
    if not item.encoded:
        raise Rejection("empty_file")
    decoder = Decoder(
        side=max(settings.resolution, 32),
        max_pixels=settings.max_pixels,
        exif_rotation=settings.exif_rotation,
        colour_profiles=settings.colour_profiles,
    )
    image, header = decoder.open(item.encoded, item.name)
    texts = _captions(item, settings)
    _filter(item, header.width, header.height, settings)
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


def _filter(item: Item, width: int, height: int, settings: Settings) -> None:
    """Raises Rejection for what the settings do not want."""
    if min(width, height) < settings.min_side:
        raise Rejection("too_small", f"{width}x{height}")
    if settings.max_aspect and max(width, height) > settings.max_aspect * min(width, height):
        raise Rejection("too_long", f"{width}x{height}")
    for name, score, least in (
        ("clip", item.clip, settings.min_clip),
        ("aesthetic", item.aesthetic, settings.min_aesthetic),
    ):
        if least is not None and score is None:
            raise Rejection(f"{name}_unknown")
        if least is not None and score < least:
            raise Rejection(f"{name}_low", f"{score:.4g}")


def _printable(text: str) -> str:
    """Names of files may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()
