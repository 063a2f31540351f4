"""Prompts to token ids, with the ids `transformers` gives, from the tokenizer files beside the weights.

    T5:    pieces ... </s> <pad> ...                 mask True up to and including the end token
    CLIP:  <|startoftext|> pieces ... <|endoftext|> <pad> ...

Built directly on `tokenizers` and `sentencepiece`: importing `transformers` takes seconds, these
milliseconds. A prompt that is too long is cut before its end token, and a warning shows what was lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.struct
import numpy as np
from absl import logging
from jaxtyping import Bool, Int
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.encoders.files import read_json
from ediffi_jax.encoders.sentencepiece_file import read_sentencepiece

START_OF_TEXT, END_OF_TEXT, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

# Words of CLIP: special tokens, English contractions, runs of letters, single digits, runs of the rest.
CLIP_WORDS = pre_tokenizers.Split(
    Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
    behavior="removed",
    invert=True,
)


@flax.struct.dataclass
class Tokens:
    """Ids of a batch of prompts for each text encoder; a folder without one of them has length-0 ids.

    Attributes:
        t5_ids: int32 [b, Lt]; t5_mask: bool [b, Lt].
        clip_ids: int32 [b, Lc]; clip_mask: bool [b, Lc].
    """

    t5_ids: Int[np.ndarray, "b lt"]
    t5_mask: Bool[np.ndarray, "b lt"]
    clip_ids: Int[np.ndarray, "b lc"]
    clip_mask: Bool[np.ndarray, "b lc"]


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """One encoder's tokenizer.

    Attributes:
        name: for messages: "T5" or "CLIP".
        backend: pieces of a text, without start and end tokens.
        length: ids a prompt is padded or cut to.
        start: ids put before the pieces.
        end: id put after them.
        pad: id that fills up.
        files: what it was built from.
        quiet: do not say what of a text is lost.
    """

    name: str
    backend: Tokenizer
    length: int
    start: tuple[int, ...] = ()
    end: int
    pad: int
    files: tuple[Path, ...] = ()
    quiet: bool = False

    def __call__(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Ids int32 [b, length] and mask bool [b, length], True up to and including the end token."""
        ids = np.full((len(prompts), self.length), self.pad, np.int32)
        mask = np.zeros((len(prompts), self.length), bool)
        room = self.room
        for row, encoding in enumerate(self.backend.encode_batch(list(prompts), add_special_tokens=False)):
            if len(encoding.ids) > room and not self.quiet:
                self._warn(prompts[row], encoding.offsets[room][0], room)
            line = [*self.start, *encoding.ids[:room], self.end]
            ids[row, : len(line)] = line
            mask[row, : len(line)] = True
        return ids, mask

    @property
    def room(self) -> int:
        """How many pieces of a prompt fit between the start and end tokens."""
        return self.length - len(self.start) - 1

    def offsets(self, prompt: str) -> list[tuple[int, int]]:
        """For each piece of the prompt the characters [begin, end) it stands for, those that do not fit included.

        Piece i has id number len(start) + i of the prompt's ids, if i < `room`. Cleaning (lower case, white space,
        Unicode forms) is accounted for: offsets count characters of the prompt as it is given. Pieces
        of one character (bytes) have the same offsets.
        """
        return self.backend.encode_batch([prompt], add_special_tokens=False)[0].offsets

    def _warn(self, prompt: str, begin: int, room: int) -> None:
        logging.warning("%s reads the first %d tokens of a prompt; lost: %r", self.name, room, prompt[begin:].strip())


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises EncoderError when a prompt is not text or is blank."""
    if isinstance(prompts, str):
        raise EncoderError("expected a list of prompts, got one string: write [prompt]")
    if not prompts:
        raise EncoderError("no prompts given; expected at least one")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise EncoderError(f"prompt {i} is {type(prompt).__name__}, expected text")
        if not prompt.strip():
            raise EncoderError(f"prompt {i} is empty; say what to draw, for example 'a red circle'")


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _added(token: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    flags = {name: bool(token[name]) for name in ("lstrip", "rstrip", "normalized", "single_word") if name in token}
    return AddedToken(token["content"], special=True, **flags)


def _settings(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """tokenizer_config.json over special_tokens_map.json, and the files that make up the tokenizer."""
    names = (*names, "tokenizer_config.json", "special_tokens_map.json")
    found = tuple(folder / name for name in names if (folder / name).is_file())
    settings = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
    return {name: value for name, value in settings.items() if value is not None}, found


def _from_json(path: Path) -> Tokenizer:
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise EncoderError(f"{path}: not a tokenizer ({_first_line(error)})") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]


def _id(backend: Tokenizer, token: str, folder: Path) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise EncoderError(f"{folder}: the tokenizer has no token {token!r}")
    return found


def load_t5_tokenizer(folder: Path, max_tokens: int) -> TextTokenizer:
    """From `tokenizer.json` or `spiece.model`.

    Args:
        folder: of the tokenizer files.
        max_tokens: length that prompts are padded and cut to.

    Raises:
        EncoderError: no such file, or one that cannot be read.
    """
    settings, files = _settings(folder, ("tokenizer.json", "spiece.model"))
    eos, pad = _content(settings.get("eos_token", "</s>")), _content(settings.get("pad_token", "<pad>"))
    if (folder / "tokenizer.json").is_file():
        backend = _from_json(folder / "tokenizer.json")
    elif (folder / "spiece.model").is_file():
        model = read_sentencepiece(folder / "spiece.model")
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(int(settings.get("extra_ids", 100))))]
        backend = Tokenizer(Unigram([*model.pieces, *((name, 0.0) for name in sentinels)], model.unknown, False))
        if model.charsmap:
            backend.normalizer = normalizers.Precompiled(model.charsmap)
        metaspace = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
        special = dict.fromkeys([*model.controls, eos, pad, _content(settings.get("unk_token", "<unk>")), *sentinels])
        backend.add_special_tokens([_added(token) for token in special])
    else:
        raise EncoderError(f"{folder}: no T5 tokenizer; expected tokenizer.json or spiece.model")
    end, filler = _id(backend, eos, folder), _id(backend, pad, folder)
    return TextTokenizer(name="T5", backend=backend, length=max_tokens, end=end, pad=filler, files=files)


def load_clip_tokenizer(folder: Path, max_tokens: int) -> TextTokenizer:
    """From `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Args:
        folder: of the tokenizer files.
        max_tokens: length that prompts are padded and cut to: the encoder's number of positions.

    Raises:
        EncoderError: no such file, or one that cannot be read.
    """
    settings, files = _settings(folder, ("tokenizer.json", "vocab.json", "merges.txt"))
    bos, eos = settings.get("bos_token", START_OF_TEXT), settings.get("eos_token", END_OF_TEXT)
    pad, unknown = settings.get("pad_token", END_OF_TEXT), settings.get("unk_token", END_OF_TEXT)
    if (folder / "tokenizer.json").is_file():
        backend = _from_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        merges = _read_merges(folder / "merges.txt")
        marks = {"continuing_subword_prefix": "", "end_of_word_suffix": WORD_END, "unk_token": _content(unknown)}
        try:
            backend = Tokenizer(BPE(read_json(folder / "vocab.json"), merges, **marks))
        except Exception as error:  # the Rust side raises plain Exception
            raise EncoderError(f"{folder}: vocab.json and merges.txt do not fit ({_first_line(error)})") from error
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence([CLIP_WORDS, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.add_special_tokens([_added(token) for token in (bos, eos, unknown, pad)])
    else:
        raise EncoderError(f"{folder}: no CLIP tokenizer; expected tokenizer.json, or vocab.json and merges.txt")
    start, end, filler = (_id(backend, _content(token), folder) for token in (bos, eos, pad))
    return TextTokenizer(
        name="CLIP", backend=backend, length=max_tokens, start=(start,), end=end, pad=filler, files=files
    )


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#version")]
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"\S+ \S+", line):
            raise EncoderError(f"{path}: merge {number} is {line!r}, expected two pieces")
    return [tuple(line.split(" ")) for line in lines]
