"""How well trained encoders read scenes: accuracies on scenes whose combinations training never saw.

Retrieval of CLIP against one hard negative of a kind: which of two captions fits the picture, which of two
pictures fits the caption (chance 1/2). Style: which of six captions that differ in the style fits (chance 1/6).
Hidden words are guessed by the heads of training. What features hold is asked with probes: linear maps

    W = argmin |X W - Y|^2 + ridge |W|^2        X: standardised features and a 1, Y: one-hot labels

fitted on captions of training scenes and scored on captions of held-out ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, Int

from ediffi_jax.data.scenes import caption, caption_with_owners, render, sample_scene
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.data.scenes.scene import Scene
from ediffi_jax.encoders import Encoders
from ediffi_jax.training.scenes_encoders import corpus, grounding, negatives
from ediffi_jax.types import Params

Accuracies = dict[str, float]
Rng = np.random.Generator
Labels = Int[np.ndarray, "n fields"]

held_out_scene: Callable[[Rng], Scene] = functools.partial(sample_scene, held_out=True)
RIDGE = 1.0
_WHOLE = ("colour_0", "shape_0", "colour_1", "shape_1", "arrangement")
PROBED = {
    "t5": ("colour", "shape", "role", "partner_colour", "partner_shape"),
    "text": _WHOLE,
    "image": _WHOLE,
}
KINDS = ("colour", "shape", "relation", "count")


def _count_scene(rng: Rng) -> Scene:
    """Training has no combinations of counts to hold out, so these are merely new draws."""
    while True:
        scene = sample_scene(rng)
        if scene.kind == "count" and scene.style == v.DEFAULT_STYLE:
            return scene


def _pairs(kind: str, number: int, rng: Rng) -> list[tuple[Scene, Scene]]:
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < number:
        scene = _count_scene(rng) if kind == "count" else held_out_scene(rng)
        wrong = negatives.change(scene, kind, rng, seen_only=False)
        if wrong is not None:
            pairs.append((scene, wrong))
    return pairs


def _pooled(encoders: Encoders, scenes: list[Scene], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Text and image vectors [n, d]; scene i is phrased by (seed, i)."""
    texts = [caption(scene, np.random.default_rng((seed, i))) for i, scene in enumerate(scenes)]
    pictures = np.stack([render(scene, corpus.PIXELS) for scene in scenes])
    cond = encoders.encode(texts, pictures)
    return np.asarray(cond.clip_pooled), np.asarray(cond.clip_image)


def retrieval(encoders: Encoders, number: int, seed: int = 0) -> Accuracies:
    """Share of right choices for each kind of hard negative, "<kind> image->text" and "<kind> text->image"."""
    result: Accuracies = {}
    for kind in KINDS:
        pairs = _pairs(kind, number, np.random.default_rng((seed, 3, KINDS.index(kind))))
        text, image = _pooled(encoders, [true for true, _ in pairs], seed)
        wrong_text, wrong_image = _pooled(encoders, [wrong for _, wrong in pairs], seed)
        fit = (text * image).sum(-1)
        result[f"{kind} image->text"] = float((fit > (wrong_text * image).sum(-1)).mean())
        result[f"{kind} text->image"] = float((fit > (text * wrong_image).sum(-1)).mean())
    return result


def style(encoders: Encoders, number: int, seed: int = 0) -> Accuracies:
    """Share of pictures whose style is told apart by captions with each of the styles; styles drawn evenly."""
    rng = np.random.default_rng((seed, 4))
    scenes = [held_out_scene(rng) for _ in range(number)]
    truth = rng.integers(len(v.STYLES), size=number)
    fits = []
    for name in v.STYLES:
        text, _ = _pooled(encoders, [dataclasses.replace(scene, style=name) for scene in scenes], seed)
        fits.append(text)
    styled = [dataclasses.replace(scene, style=v.STYLES[k]) for scene, k in zip(scenes, truth)]
    _, image = _pooled(encoders, styled, seed)
    guess = np.argmax([(text * image).sum(-1) for text in fits], axis=0)
    return {"style": float((guess == truth).mean())}


def probe(
    train: Float[np.ndarray, "n d"], train_labels: Labels, test: Float[np.ndarray, "m d"], test_labels: Labels
) -> Float[np.ndarray, "fields"]:
    """Accuracy of a linear probe for each column of labels; labels of -1 are left out, nan where all are."""
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    x, z = (np.hstack([(part - mean) / std, np.ones((len(part), 1))]) for part in (train, test))
    scores = []
    for known, asked in zip(train_labels.T, test_labels.T):
        rows, cols = known >= 0, asked >= 0
        gram = x[rows].T @ x[rows] + RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[rows].T @ np.eye(max(known.max(), 0) + 1)[np.maximum(known[rows], 0)])
        scores.append(((z[cols] @ weights).argmax(-1) == asked[cols]).mean() if cols.any() else np.nan)
    return np.array(scores)


def _probed(encoders: Encoders, scenes: list[Scene], seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and labels: T5's owned tokens, CLIP's pooled texts and pictures."""
    said = [caption_with_owners(scene, np.random.default_rng((seed, i))) for i, scene in enumerate(scenes)]
    cond = encoders.encode([text for text, _ in said], np.stack([render(scene, corpus.PIXELS) for scene in scenes]))
    table = corpus.WordTable(encoders.t5_tokenizer)
    owners = [table.encode(owned)[1] for owned in said]
    labels = np.stack([corpus.token_labels(s, who, cond.t5.shape[1]) for s, who in zip(scenes, owners)])
    owned = labels[..., 0] >= 0
    whole = np.stack([grounding.scene_labels(scene) for scene in scenes])
    text, image = np.asarray(cond.clip_pooled), np.asarray(cond.clip_image)
    return {"t5": (np.asarray(cond.t5)[owned], labels[owned]), "text": (text, whole), "image": (image, whole)}


def probes(encoders: Encoders, number: int, seed: int = 0) -> Accuracies:
    """Linear probes on held-out scenes, fitted on four times as many training scenes."""
    rng = np.random.default_rng((seed, 5))
    train = _probed(encoders, [sample_scene(rng) for _ in range(4 * number)], seed)
    test = _probed(encoders, [held_out_scene(rng) for _ in range(number)], seed + 1)
    result: Accuracies = {}
    for name, fields in PROBED.items():
        columns = list(grounding.TOKEN_FIELDS if name == "t5" else grounding.SCENE_FIELDS)
        chosen = [columns.index(field) for field in fields]
        (x, y), (z, asked) = train[name], test[name]
        scores = probe(x, y[:, chosen], z, asked[:, chosen])
        result |= {f"probe {name} {field}": float(score) for field, score in zip(fields, scores)}
    return result


def heads(loss: nn.Module, params: Params, make: Callable[..., corpus.Batch], number: int, prefix: str) -> Accuracies:
    """Metrics of a training loss, heads included, averaged over `number` batches of held-out scenes.

    Args:
        loss, params: as `fitting.fit` takes and returns them.
        make: batch k of scenes drawn by its argument `draw`.
        number: how many batches.
        prefix: opens the names of the metrics.
    """
    apply = jax.jit(lambda params, batch: loss.apply({"params": params}, batch)[1])
    rows = [jax.device_get(apply(params, make(index, draw=held_out_scene))) for index in range(number)]
    return {f"{prefix} {name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
