"""Tokenizers made from a corpus of captions, in the files T5 and CLIP are published with.

T5: a sentencepiece unigram model, `spiece.model`, ids pad 0, end 1, unknown 2. CLIP: byte-level BPE,
`vocab.json` and `merges.txt`, lower case, a word's last piece marked `</w>`. On a small closed
vocabulary both give most words one token, which leaves a tiny encoder only the binding to learn.
"""

from __future__ import annotations

import collections
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from tokenizers import pre_tokenizers

from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.encoders.tokenize import CLIP_WORDS, END_OF_TEXT, START_OF_TEXT, WORD_END

Word = tuple[str, ...]


def build_t5(
    captions: Iterable[str],
    folder: str | os.PathLike,
    *,
    vocab_size: int = 300,
    extra_ids: int = 20,
    max_tokens: int = 113,
) -> int:
    """Writes `spiece.model` and `tokenizer_config.json`.

    Args:
        captions: the corpus.
        folder: made if missing.
        vocab_size: upper bound on the pieces; fewer when the corpus does not give so many.
        extra_ids: sentinels `<extra_id_0>`... for denoising; they take the ids after the pieces, the 0th last.
        max_tokens: length that prompts are padded and cut to.

    Returns:
        Number of ids, sentinels included: the `vocab_size` of the encoder.
    """
    captions = list(captions)
    content = _with_words(_train_pieces(captions, vocab_size), captions, vocab_size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(content)
    config = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": extra_ids}
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": max_tokens, **config}
    )
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(content)
    return pieces.get_piece_size() + extra_ids


def _train_pieces(captions: Iterable[str], vocab_size: int) -> bytes:
    """A unigram model of the pieces that words share, with T5's first three ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",  # folds case: captions are lower case, prompts may not be
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,  # the same corpus gives the same file
        minloglevel=2,
    )
    return model.getvalue()


def _with_words(model: bytes, captions: Iterable[str], vocab_size: int) -> bytes:
    """Adds the commonest words as pieces, with their log-frequency for score.

    The trainer proposes only strings that occur inside several different words, so from a closed
    vocabulary it never makes a word of its own a piece.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    normalizer = sentencepiece.SentencePieceNormalizer(model_proto=model)
    counts: collections.Counter[str] = collections.Counter()
    for caption in captions:
        counts.update(
            "\u2581" + word for word in re.findall(r"\w+", normalizer.normalize(caption).replace("\u2581", " "))
        )
    known = {piece.piece for piece in proto.pieces}
    for word, count in counts.most_common():
        if len(proto.pieces) < vocab_size and word not in known:
            proto.pieces.add(piece=word, score=math.log(count / counts.total()))
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


def build_clip(
    captions: Iterable[str], folder: str | os.PathLike, *, max_merges: int = 1000, max_tokens: int = 77
) -> int:
    """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json`.

    Args:
        captions: the corpus.
        folder: made if missing.
        max_merges: upper bound on the merges; they end earlier once every word is one token.
        max_tokens: length that prompts are padded and cut to.

    Returns:
        Number of ids: 512 bytes (inner and last), one a merge, start and end of text.
    """
    merges = list(_merges(_count_words(captions), max_merges))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(c + WORD_END for c in alphabet), *(a + b for a, b in merges), START_OF_TEXT, END_OF_TEXT]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {piece: i for i, piece in enumerate(pieces)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    config = {"bos_token": START_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_tokens, **config}
    )
    return len(pieces)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _count_words(captions: Iterable[str]) -> dict[Word, int]:
    """How often each word occurs, as its byte-level characters, the last one marked as such."""
    splitter = pre_tokenizers.Sequence([CLIP_WORDS, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    counts: collections.Counter[str] = collections.Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(" ".join(caption.lower().split())))
    if not counts:
        raise EncoderError("no captions to build a tokenizer from")
    return {(*word[:-1], word[-1] + WORD_END): count for word, count in counts.items()}


def _merges(words: dict[Word, int], most: int) -> Iterator[tuple[str, str]]:
    """Byte-pair encoding: again and again the pair that occurs most often, ties in alphabetical order."""
    seen: set[str] = set()
    for _ in range(most):
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            return
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = {_merged(word, best): count for word, count in words.items()}
        if best[0] + best[1] not in seen:  # two pairs may spell one piece; it needs one id and one merge
            seen.add(best[0] + best[1])
            yield best


def _merged(word: Word, pair: tuple[str, str]) -> Word:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)
