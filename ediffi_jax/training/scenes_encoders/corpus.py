"""Batches for the two encoders' training, drawn without end: batch k is a pure function of (seed, k).

    clip   pictures [B], each with 1 true and H wrong captions, all with token and scene labels
    t5     captions [B] (sometimes two of one scene), corrupted, with the original words as targets

Captions are turned into tokens word by word (both tokenizers split at spaces first), so that the owner of a
word is the owner of its tokens. Three batches in four hold only captions that fit `SHORT` tokens: shorter
sequences train faster, and they are most captions anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ediffi_jax.data.scenes import caption_with_owners, render, sample_scene
from ediffi_jax.data.scenes.scene import Scene
from ediffi_jax.encoders.tokenize import TextTokenizer
from ediffi_jax.training.scenes_encoders import grounding, negatives

Rng = np.random.Generator
Batch = dict[str, np.ndarray]
Owned = tuple[str, list[int]]
Draw = Callable[[Rng], Scene]

PIXELS = 64
SENTINELS = 8
SHORT, LONG = 24, 48
CORRUPT, WHOLE, TWICE = 0.25, 0.4, 0.3  # share of words corrupted; of captions left whole; of doubled captions


@dataclasses.dataclass(frozen=True)
class WordTable:
    """Tokens of single words, remembered."""

    tokenizer: TextTokenizer
    known: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def ids(self, word: str) -> list[int]:
        if word not in self.known:
            self.known[word] = self.tokenizer.backend.encode(word, add_special_tokens=False).ids
        return self.known[word]

    def encode(self, owned: Owned) -> tuple[list[int], list[int]]:
        """Token ids and the owner of each (-1: nobody), special tokens included."""
        ids = list(self.tokenizer.start)
        owners = [-1] * len(ids)
        for word, owner in zip(owned[0].split(), owned[1], strict=True):
            piece = self.ids(word)
            ids += piece
            owners += [owner] * len(piece)
        return [*ids, self.tokenizer.end], [*owners, -1]


def phrase(scene: Scene, seed: int, table: WordTable, limit: int) -> tuple[list[int], list[int], int]:
    """A caption's tokens and owners within `limit` tokens, and the seed of the phrasing that fitted."""
    for attempt in range(40):
        ids, owners = table.encode(caption_with_owners(scene, np.random.default_rng((seed, attempt))))
        if len(ids) <= limit:
            return ids, owners, attempt
    ids, owners = table.encode(caption_with_owners(scene))
    return ids[:limit], owners[:limit], attempt


def fill(rows: list[list[int]], length: int, empty: int) -> np.ndarray:
    table = np.full((len(rows), length), empty, np.int32)
    for row, values in zip(table, rows):
        row[: len(values)] = values
    return table


def token_labels(scene: Scene, owners: list[int], length: int) -> np.ndarray:
    labels = np.full((length, len(grounding.TOKEN_FIELDS)), -1, np.int32)
    known = grounding.object_labels(scene)
    for row, owner in zip(labels, owners):
        if owner >= 0:
            row[:] = known[owner]
    return labels


def _captions(true: Scene, wrong: list[Scene], rng: Rng, table: WordTable, length: int) -> list[tuple]:
    """The true caption and the wrong ones in the same phrasing, each (scene, ids, owners)."""
    seed = int(rng.integers(2**40))
    ids, owners, attempt = phrase(true, seed, table, length)
    rows = [(true, ids, owners)]
    for scene in wrong:
        chance = np.random.default_rng((seed, attempt))
        ids, owners = table.encode(caption_with_owners(scene, chance))
        if len(ids) > length:
            ids, owners, _ = phrase(scene, seed, table, length)
        rows.append((scene, ids, owners))
    return rows


def clip_batch(
    seed: int, index: int, size: int, wrong: int, table: WordTable, pictures: int = 0, draw: Draw = sample_scene
) -> Batch:
    """Batch `index` for the contrastive training.

    Returns:
        pixels uint8 [P, 64, 64, 3], P = max(B, pictures), the first B of which have captions; ids int32
        [B, 1+wrong, L] (the true caption first) and mask; token_labels [B, 1+wrong, L, fields]; scene_labels
        [B, 1+wrong, fields]; picture_labels [P, fields]; patch_labels [P, 64, fields].
    """
    rng = np.random.default_rng((seed, 1, index))
    length = LONG if index % 4 == 3 else SHORT
    scenes = [draw(rng) for _ in range(max(size, pictures))]
    seen = {
        "pixels": np.stack([render(scene, PIXELS) for scene in scenes]),
        "picture_labels": np.stack([grounding.scene_labels(scene) for scene in scenes]),
        "patch_labels": np.stack([grounding.patch_labels(scene) for scene in scenes]),
    }
    rows = []
    for scene in scenes[:size]:
        rows += _captions(scene, negatives.draw(scene, wrong, rng), rng, table, length)
    ids = fill([r[1] for r in rows], length, table.tokenizer.pad)
    mask = fill([[1] * len(r[1]) for r in rows], length, 0) > 0
    labels = np.stack([token_labels(scene, owners, length) for scene, _, owners in rows])
    whole = np.stack([grounding.scene_labels(scene) for scene, _, _ in rows])
    batch = {"ids": ids, "mask": mask, "token_labels": labels, "scene_labels": whole}
    batch = {name: value.reshape(size, 1 + wrong, *value.shape[1:]) for name, value in batch.items()}
    return batch | seen


def twice(scene: Scene, rng: Rng, table: WordTable, length: int) -> tuple[list[int], list[int]]:
    """One caption, or two of the same scene one after the other where both fit."""
    ids, owners, _ = phrase(scene, int(rng.integers(2**40)), table, length)
    if rng.random() < TWICE:
        more, who, _ = phrase(scene, int(rng.integers(2**40)), table, length)
        if len(ids) - 1 + len(more) <= length:
            return ids[:-1] + more, owners[:-1] + who
    return ids, owners


def corrupt(ids: list[int], rng: Rng, sentinels: list[int], words: np.ndarray) -> tuple[list[int], list[int]]:
    """Hides about `CORRUPT` of the words in spans of 1 to 3: a sentinel in place of each, or a random word.

    Returns:
        The corrupted ids and the targets: the original id where something was hidden, else -1.
    """
    hidden = np.zeros(len(ids), bool)
    target_count = max(1, round(CORRUPT * (len(ids) - 1)))
    while hidden.sum() < target_count:
        start = int(rng.integers(len(ids) - 1))
        hidden[start : min(start + int(rng.integers(1, 4)), len(ids) - 1)] = True
    out, targets, used = list(ids), [-1] * len(ids), 0
    for i in np.flatnonzero(hidden):
        targets[i] = ids[i]
        if rng.random() < 0.8:
            out[i] = sentinels[used % len(sentinels)]
            used += 1
        else:
            out[i] = int(rng.choice(words))
    return out, targets


def t5_batch(seed: int, index: int, size: int, table: WordTable, whole: int = 0, draw: Draw = sample_scene) -> Batch:
    """Batch `index` for the denoising training; in the first `whole` batches nothing is hidden.

    Returns:
        ids int32 [B, L] (corrupted), mask, targets [B, L] (-1: nothing hidden), token_labels [B, L, fields].
    """
    rng = np.random.default_rng((seed, 2, index))
    length = LONG if index % 3 == 2 else SHORT
    sentinels = [table.tokenizer.backend.token_to_id(f"<extra_id_{i}>") for i in range(SENTINELS)]
    scenes = [draw(rng) for _ in range(size)]
    clean = [twice(scene, rng, table, length) for scene in scenes]
    words = np.unique(np.concatenate([ids[:-1] for ids, _ in clean]))
    rows = [
        (ids, [-1] * len(ids)) if index < whole or rng.random() < WHOLE else corrupt(ids, rng, sentinels, words)
        for ids, _ in clean
    ]
    return {
        "ids": fill([ids for ids, _ in rows], length, table.tokenizer.pad),
        "mask": fill([[1] * len(ids) for ids, _ in rows], length, 0) > 0,
        "targets": fill([targets for _, targets in rows], length, -1),
        "token_labels": np.stack([token_labels(s, owners, length) for s, (_, owners) in zip(scenes, clean)]),
    }
