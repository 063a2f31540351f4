"""What degraded training is worth: one super-resolution stage trained on with and without it, fed real base pictures.

    python -m benchmarks.degradation_proof --steps=400 --number=200 --out=runs/degradation_proof
    python -m benchmarks.degradation_proof --stage=sr256 --noaugmentation --steps=400 --number=96 --out=runs/proof_sr256

For each of `--degrade` (none is the clean low-resolution picture) the scenes recipe's `--stage` is trained `--steps`
steps from the same start (`--start=release`: the bundled weights, which never saw a degradation; `--start=scratch`:
random ones), on the same pictures in the same order and with the same noise. What comes before it in the cascade
draws `--number` held-out prompts once; every model enlarges the same pictures, and the true reductions of the scenes
as well, from the same noise. Reported, with 95 % intervals (see `evaluation/enlarged.py`), and as differences to the
first of `--degrade`:

    right      share of pictures in which the exact scorer finds all that was asked for
    distance   between the statistics of the pictures and of renders of other held-out scenes
    bias       of colours against the picture that was enlarged, per channel, of 255, on flat regions
               (`scenes_accuracy.colour_drift`)
    error      mean absolute difference to the scene's render, of 255, where its true reduction was enlarged

`released` is the bundled stage itself, `renders` the scenes as they should look. Prints a table; writes
OUT/degradation_proof.json and OUT/degradation_proof.png. A finished or interrupted part is not done again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from jaxtyping import UInt8

FLAGS = flags.FLAGS
DEGRADE = flags.DEFINE_list("degrade", ["none", "cascade"], "Presets, or none; the others are compared with the first.")
STAGE = flags.DEFINE_string("stage", "sr64", "sr64 or sr256, with the recipe's arguments as in sr64,tiny.")
AUGMENTATION = flags.DEFINE_bool("augmentation", True, "Noise-conditioning augmentation, in training and sampling.")
START = flags.DEFINE_enum("start", "release", ["release", "scratch"], "Weights to train on from.")
STEPS = flags.DEFINE_integer("steps", 400, "Training steps of each model.", lower_bound=1)
NUM_SCENES = flags.DEFINE_integer("num_scenes", 60_000, "Scenes to train on.", lower_bound=64)
DATA = flags.DEFINE_string("data", "", "Where scenes are kept; default the cache folder.")
NUMBER = flags.DEFINE_integer("number", 200, "Held-out prompts.", lower_bound=2)
BASE_STEPS = flags.DEFINE_integer("base_steps", None, "Solver steps of what comes before; default its own.")
SEED = flags.DEFINE_integer("seed", 0, "Of training and of the pictures.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 20, "Pictures at a time in sampling.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)

Pictures = UInt8[np.ndarray, "n r r 3"]


def train(name: str, folder: Path) -> Any:
    """The stage trained with one degradation."""
    from ediffi_jax import release
    from ediffi_jax.stage import Stage
    from ediffi_jax.training import config_files, loop

    config = config_files.load(f"configs/scenes.py:stage={STAGE.value}")
    cooldown = STEPS.value * 3 // 5
    config.update({"seed": SEED.value, "init_from": "scenes" if START.value == "release" else ""})
    config.phases = ({"steps": STEPS.value, "cuts": config.phases[-1]["cuts"], "parents": ()},)
    config.optimizer.update({"lr": 4e-4, "warmup": min(100, STEPS.value // 4), "cooldown": cooldown})
    config.update({"log_every": 25, "save_every": 100, "eval_every": 0, "eval_batches": 1, "sample_every": 0})
    config.data.update({"dir": DATA.value, "num_scenes": NUM_SCENES.value, "captions": 0})
    config.data.degrade = "" if name == "none" else name
    if not AUGMENTATION.value:
        config.aug.update({"max_level": 0.0, "level": 0.0})
    if loop.train(config, folder) != loop.FINISHED:
        raise SystemExit(loop.RESTART)
    run = release.read_workdir(folder)
    return Stage(spec=run.spec, params=run.ema)


def remembered(path: Path, make: Callable[[], Pictures]) -> Pictures:
    """What `make` gives, from the file where it was kept before."""
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        np.save(partial, make())
        partial.rename(path)
    return np.load(path)


def show(told: dict[str, Any], fed: str) -> None:
    """A line for each model and difference."""
    print(f"fed {fed}:")
    for name, row in told.items():
        cells = (f"{key} {x:.4f} [{a:.4f}, {b:.4f}]" for key, (x, a, b) in row.items())
        print(f"  {name:16} " + "  ".join(cells), flush=True)


def main(argv: list[str]) -> None:
    """Trains, draws, enlarges, measures; see the top of this file."""
    del argv
    import ediffi_jax as ed
    from ediffi_jax import pictures
    from ediffi_jax.data import scenes
    from ediffi_jax.data.degrade import PRESETS
    from ediffi_jax.data.views import shrink
    from ediffi_jax.errors import nearest
    from ediffi_jax.evaluation import style_recognition
    from ediffi_jax.evaluation.enlarged import enlarge, measure, reference, summarise

    for name in DEGRADE.value:
        if name not in ("none", *PRESETS):
            raise app.UsageError(f"--degrade={name!r} is unknown{nearest(name, ('none', *PRESETS))}")
    cascade = ed.load("scenes")
    stages = [stage.spec.name for stage in cascade.stages]
    asked = STAGE.value.partition(",")[0]
    if asked not in stages[1:]:
        raise app.UsageError(f"--stage={STAGE.value!r} is no super-resolution stage{nearest(asked, stages[1:])}")
    index, out = stages.index(asked), pictures.make_folder(OUT.value)
    models = {"released": cascade.stages[index]} | {name: train(name, out / name) for name in DEGRADE.value}
    prompts, wanted = zip(*scenes.heldout_prompts(NUMBER.value, SEED.value), strict=True)
    below = dataclasses.replace(cascade, stages=cascade.stages[:index])
    side, small = models["released"].spec.resolution, below.stages[-1].spec.resolution
    truth = np.stack([scenes.render(scene, side) for scene in wanted])
    draw = {"seed": SEED.value, "steps": BASE_STEPS.value, "batch_size": BATCH_SIZE.value}
    fed = {
        "base": remembered(out / "base.npy", lambda: below.sample(list(prompts), **draw)),
        "truth": np.stack([shrink(picture, small) for picture in truth]),
    }
    standard = style_recognition.trained()
    expected = reference(2 * NUMBER.value, SEED.value + 1, side, standard)
    conditioning = cascade.encoders.encode(list(prompts))
    noise = {"seed": SEED.value, "batch_size": BATCH_SIZE.value, "index": index}
    names = ("degrade", "stage", "augmentation", "start", "steps", "num_scenes", "number", "base_steps", "seed")
    report: dict[str, Any] = {
        "settings": {name: FLAGS[name].value for name in names},
        "fingerprint": cascade.fingerprint,
    }
    shown = [*truth[:8]]
    for source, low in fed.items():
        known = truth if source == "truth" else None
        measured = {}
        for name, stage in models.items():
            kept = out / f"{name}_from_{source}.npy"
            made = remembered(kept, lambda: enlarge(stage, conditioning, low, **noise))  # noqa: B023
            measured[name] = measure(made, wanted, low, known, standard)
            shown += [*made[:8]] if source == "base" else []
        if source == "truth":
            measured["renders"] = measure(truth, wanted, low, known, standard)
        report[f"from_{source}"] = summarise(measured, expected, plain=DEGRADE.value[0])
        show(report[f"from_{source}"], source)
        (out / "degradation_proof.json").write_text(json.dumps(report, indent=1))
    pictures.write_png(out / "degradation_proof.png", pictures.contact_sheet(shown, columns=min(8, len(prompts))))


if __name__ == "__main__":
    app.run(main)
