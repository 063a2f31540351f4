"""From nothing to a folder of encoders: tokenizers from captions, training, unit channels, Hugging Face files.

    captions -> tokenizers -> fit CLIP, fit T5 -> token features of unit std -> folder/{clip,t5}
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ediffi_jax.data.scenes import caption, sample_scene
from ediffi_jax.encoders.build_tokenizers import build_clip, build_t5
from ediffi_jax.encoders.checkpoints import save
from ediffi_jax.encoders.clip import Clip, ClipConfig
from ediffi_jax.encoders.t5 import T5Config, T5Encoder
from ediffi_jax.encoders.tokenize import load_clip_tokenizer, load_t5_tokenizer
from ediffi_jax.errors import nearest
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.scenes_encoders import contrastive, corpus, denoising, fitting, measuring
from ediffi_jax.types import Params

NAMES = ("clip", "t5")
HELD_OUT = 2**20  # held-out batches and unit channels are drawn from here on, training never gets so far


def captions(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng((seed, 0))
    return [caption(sample_scene(rng), rng) for _ in range(number)]


class Recipe:
    """One encoder's training: its tokenizer's files written, its loss and batches ready.

    Attributes:
        name: "clip" or "t5".
        table: words to tokens.
        loss: the module that `fitting.fit` trains.
        make: batch k.
        prepare: what is done to the initial parameters.
    """

    def __init__(self, name: str, config: ConfigDict, folder: Path) -> None:
        if name not in NAMES:
            raise ConfigError(f"unknown encoder {name!r}{nearest(name, NAMES)}")
        self.name, self.config, self.folder = name, config, folder / name
        texts = captions(config.tokenizer_captions, config.seed)
        build = build_clip if name == "clip" else build_t5
        ids = build(texts, self.folder, max_tokens=corpus.LONG)
        getattr(self, f"_{name}")(ids)

    def _clip(self, ids: int) -> None:
        c = self.config.clip
        tokenizer = load_clip_tokenizer(self.folder, corpus.LONG)
        sizes = {"width": c.width, "text_layers": c.text_layers, "vision_layers": c.vision_layers}
        self.sizes = contrastive.config(vocab_size=ids, bos=tokenizer.start[0], eos=tokenizer.end, **sizes)
        weights = contrastive.Weights(whole=c.whole, token=c.token, patch=c.patch)
        self.loss: nn.Module = contrastive.ContrastiveLoss(self.sizes, weights)
        self.table = corpus.WordTable(tokenizer)
        sizes = {"size": c.batch, "wrong": c.wrong, "pictures": c.pictures}
        self.make = functools.partial(corpus.clip_batch, self.config.seed, table=self.table, **sizes)
        self.prepare = contrastive.place_patches

    def _t5(self, ids: int) -> None:
        c = self.config.t5
        self.sizes = denoising.config(vocab_size=ids, width=c.width, layers=c.layers)
        self.loss = denoising.DenoisingLoss(self.sizes, c.token)
        self.table = corpus.WordTable(load_t5_tokenizer(self.folder, corpus.LONG))
        self.make = functools.partial(corpus.t5_batch, self.config.seed, size=c.batch, table=self.table, whole=c.whole)
        self.prepare = lambda params: params

    def features(self, params: Params, number: int = 512) -> jax.Array:
        """Token features [n, d] of captions that training did not use, padding left out."""
        ids, mask = self.table.tokenizer(captions(number, self.config.seed + HELD_OUT))
        if self.name == "clip":
            found, _ = Clip(self.sizes).apply({"params": params}, ids, method="encode_text")
        else:
            found = T5Encoder(self.sizes).apply({"params": params}, ids, mask)
        return found[jnp.asarray(mask)]

    def write(self, trained: Params) -> None:
        """Writes the encoder, its channels scaled to unit std, without the heads of training."""
        params = trained[self.name]
        rescale = contrastive.unit_channels if self.name == "clip" else denoising.unit_channels
        write_encoder(rescale(params, self.features(params)), self.sizes, self.folder)


def write_encoder(params: Params, sizes: ClipConfig | T5Config, folder: Path) -> None:
    """Weights and config.json; for CLIP also how pictures are prepared."""
    save(params, sizes, folder)
    if isinstance(sizes, ClipConfig):
        side = sizes.vision.image_size
        settings = {
            "image_processor_type": "CLIPImageProcessor",
            "image_mean": contrastive.MEAN,
            "image_std": contrastive.STD,
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train(name: str, config: ConfigDict, folder: Path, budget: fitting.Budget) -> measuring.Accuracies:
    """Trains one encoder, writes it into `folder/name`, and asks its heads about held-out scenes."""
    recipe = Recipe(name, config, folder)
    c = config[name]
    rates = fitting.Rates(peak=c.lr, warmup=c.warmup)
    common = {"budget": budget, "rates": rates, "seed": config.seed, "workers": config.workers, "name": name}
    trained = fitting.fit(recipe.loss, recipe.make, prepare=recipe.prepare, **common)
    recipe.write(trained)
    later = functools.partial(_shifted, recipe.make)
    return measuring.heads(recipe.loss, trained, later, config.held_out_batches, name)


def _shifted(make: Callable[..., corpus.Batch], index: int, **options: Any) -> corpus.Batch:
    return make(HELD_OUT + index, **options)
