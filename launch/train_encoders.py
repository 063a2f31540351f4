"""Trains the tiny T5 and CLIP encoders of the `scenes` cascade, and measures them on held-out scenes.

    python -m launch.train_encoders --out=runs/encoders --minutes=8
    python -m launch.train_encoders --out=runs/encoders --encoder=t5 --steps=2000 --seed=1

Writes OUT/clip and OUT/t5 in Hugging Face layout, and OUT/accuracies.json. Both encoders are trained side by side,
each in a process of its own; `--encoder` trains only one. `--config.clip.lr=0.001` changes the recipe
(configs/scenes_encoders.py).
"""

from __future__ import annotations

import json

from absl import flags, logging

from ediffi_jax import copies, pictures, stores
from ediffi_jax.training import config_files
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.scenes_encoders import bundle, together

from . import _main

ACCURACIES = "accuracies.json"
OUT = flags.DEFINE_string("out", None, "Folder that gets clip/ and t5/.")
ENCODER = flags.DEFINE_enum("encoder", "both", ["both", *bundle.NAMES], "Which to train.")
MINUTES = flags.DEFINE_float("minutes", None, "Minutes of training; default the recipe's.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Steps; with minutes too, whichever ends first.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", None, "Of parameters and batches; default the recipe's.", lower_bound=0)
SCENES = flags.DEFINE_integer("scenes", 1000, "Held-out scenes to measure on.", lower_bound=1)


def main(overrides: list[str]) -> None:
    """Trains, writes, measures, prints."""
    if not OUT.value:
        raise ConfigError("--out is missing; for example --out=runs/encoders")
    if stores.is_remote(OUT.value):
        pictures.make_folder(OUT.value, remote=True)  # refuses before minutes of training
    logging.set_verbosity(logging.INFO)
    config = config_files.load("configs/scenes_encoders.py")
    config_files.override(config, overrides)
    config.seed = config.seed if SEED.value is None else SEED.value
    if STEPS.value is not None:
        config.steps, config.minutes = STEPS.value, 0.0
    config.minutes = config.minutes if MINUTES.value is None else MINUTES.value
    names = bundle.NAMES if ENCODER.value == "both" else (ENCODER.value,)
    with copies.sending(OUT.value, last=ACCURACIES) as folder:
        accuracies = together.train(names, config, folder) | together.measure(folder, SCENES.value)
        for name, value in accuracies.items():
            print(f"{name:28s} {value:.3f}")
        (folder / ACCURACIES).write_text(json.dumps(accuracies, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main.run(main, remote=("out",))
