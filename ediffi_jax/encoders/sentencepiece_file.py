"""What a `spiece.model` holds: pieces with their log-probabilities, control pieces, and the normaliser's table.

Pieces come from the `sentencepiece` library. It does not hand out the normaliser's table, which is
two fields down in the file's protocol buffer: field 3 (normaliser), therein field 2 (the table).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from ediffi_jax.encoders.errors import EncoderError

_NORMALIZER, _CHARSMAP = 3, 2
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}  # wire type -> bytes


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """Pieces in the order of their ids.

    Attributes:
        pieces: text and log-probability of each id.
        controls: pieces that stand for no text (pad, end).
        unknown: id of the unknown piece.
        charsmap: table of the character normaliser, b"" for none.
    """

    pieces: tuple[tuple[str, float], ...]
    controls: tuple[str, ...]
    unknown: int
    charsmap: bytes


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads `spiece.model`.

    Raises:
        EncoderError: the file is missing, cut off or no sentencepiece model.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        content = path.read_bytes()
        processor.LoadFromSerializedProto(content)
        charsmap = _field(_field(content, _NORMALIZER), _CHARSMAP)
    except (OSError, RuntimeError, IndexError) as error:
        raise EncoderError(f"{path}: not a sentencepiece model, or cut off") from error
    ids = range(processor.get_piece_size())
    return SentencePieceModel(
        pieces=tuple((processor.id_to_piece(i), processor.get_score(i)) for i in ids),
        controls=tuple(processor.id_to_piece(i) for i in ids if processor.is_control(i)),
        unknown=processor.unk_id(),
        charsmap=charsmap,
    )


def _field(message: bytes, number: int) -> bytes:
    """The last bytes field of that number in a protocol buffer, b"" when absent."""
    found = b""
    for field, value in _fields(message):
        if field == number:
            found = value
    return found


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each bytes field."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire == _BYTES:
            size, at = _varint(message, at)
            yield number, message[at : at + size]
            at += size
        else:
            at += _FIXED.get(wire, len(message))


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
