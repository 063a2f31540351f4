"""The tiny T5 and CLIP encoders of the `scenes` cascade, trained from nothing on captions and pictures of scenes.

    python -m launch.train_encoders --out=ediffi_jax/releases/scenes/encoders

Hardware, minutes and accuracies: docs/scenes_encoders.md. Both are as small as keeps binding and relations right,
because they run inside every training step of a small U-Net: 128 channels, 4 layers, 48 tokens.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Sizes, weights of the losses, and rates; times in minutes of wall clock on 4 cores, both encoders at once."""
    config = ConfigDict()
    config.seed = 0
    config.workers = 1  # processes that draw batches, for each encoder
    config.tokenizer_captions = 20_000
    config.held_out_batches = 8
    config.minutes = 12.0
    config.steps = 0  # 0: as many as the minutes allow
    config.clip = ConfigDict({
        "width": 128,
        "text_layers": 4,
        "vision_layers": 4,
        "batch": 24,
        "pictures": 96,  # of which `batch` have captions: seeing takes more examples than reading
        "wrong": 1,  # hard negatives a picture
        "whole": 1.0,
        "token": 0.3,
        "patch": 0.5,
        "lr": 1.5e-3,
        "warmup": 100,
    })
    config.t5 = ConfigDict({
        "width": 128,
        "layers": 4,
        "batch": 48,
        "whole": 1500,  # batches before any word is hidden: who is who is learnt sooner from whole captions
        "token": 1.0,
        "lr": 1.5e-3,
        "warmup": 100,
    })
    return config
