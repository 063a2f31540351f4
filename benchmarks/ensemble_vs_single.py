"""Do experts pay at equal training images and equal inference cost? Held-out loss, several seeds.

    python -m benchmarks.ensemble_vs_single --seeds=0,1,2 --out=runs/ensemble_vs_single

For each seed: train one base for `--base_steps`; branch it into three experts trained for `--expert_steps`
each; and let the single model go on from the same weights for 3 x `--expert_steps`, so both have seen as many
images. The network is small on purpose (`--channels`): experts can only pay where capacity is the limit, and
branching before the base's held-out loss is flat starves each expert of the images of the others, so the base's
loss over training is reported too: read the result together with it.

Prints, and writes to result.json: per interval, the relative change of held-out loss from single model to
ensemble (negative: the ensemble is better), mean and standard deviation over seeds. Goes on where it stopped, and
calls with other `--seeds` may share one `--out`, at the same time once embeddings are there.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, each a whole repetition.")
OUT = flags.DEFINE_string("out", "runs/ensemble_vs_single", "Folder; a finished step in it is not done again.")
CHANNELS = flags.DEFINE_integer("channels", 16, "Channels of the U-Net's first level.")
BASE_STEPS = flags.DEFINE_integer("base_steps", 6000, "Steps before branching, 32 images each.")
EXPERT_STEPS = flags.DEFINE_integer("expert_steps", 1000, "Steps of each expert after it, 32 images each.")
CUTS = flags.DEFINE_list("cuts", ["0.125", "0.75"], "Of the three experts.")
IMAGES = flags.DEFINE_integer("images", 512, "Held-out pictures measured.")
QUANTILES = flags.DEFINE_integer("quantiles", 64, "Noise levels measured, evenly spread.")
MODELS = ("base", "single", "experts")
RECIPE = "configs/scenes.py:stage=base,quick"
CAPTIONS = 4  # phrasings of each scene; their embeddings are prepared once, as a small network waits for its encoders


def verb(name: str, *words: str, **flags: object) -> tuple[str, ...]:
    """A verb's command line."""
    return (sys.executable, "-m", f"launch.{name}", *(f"--{key}={value}" for key, value in flags.items()), *words)


def encode_step(root: pathlib.Path) -> list:
    """The embeddings that all repetitions share."""
    from ediffi_jax.evaluation.steps import Step

    command = verb("encode", config=RECIPE, captions=CAPTIONS, out=root / "embeddings")
    return [Step(name="encode", title="embeddings of the captions", command=command)]


def steps_of(folder: pathlib.Path, seed: str) -> list:
    """What one repetition does."""
    from ediffi_jax.evaluation.steps import Step

    base, single, experts = (folder / name for name in MODELS)
    cuts, each = ",".join(CUTS.value), EXPERT_STEPS.value
    shared = {"workdir": base, "parents": ",".join("0" * (len(CUTS.value) + 1))}
    overrides = (
        f"--config.seed={seed}",
        f"--config.model.channels={CHANNELS.value}",
        "--config.model.head_channels=16",
        "--config.data.num_scenes=20000",
        "--config.batch_size=32",
        f"--config.data.captions={CAPTIONS}",
        f"--config.data.embeddings={folder.parent / 'embeddings'}",
        f"--config.phases.0.steps={BASE_STEPS.value}",
        "--config.ema.decay=0.999",
        "--config.save_every=500",
        "--config.eval_every=500",
        "--config.eval_batches=8",
        "--config.sample_every=0",
    )
    return [
        Step(
            name="base",
            title=f"seed {seed}: one model",
            command=verb("train", *overrides, config=RECIPE, workdir=base),
        ),
        Step(
            name="branch",
            title=f"seed {seed}: branch",
            command=verb("branch", **shared, to=experts, cuts=cuts, steps=each),
            makes=experts,
        ),
        Step(name="experts", title=f"seed {seed}: experts", command=verb("train", workdir=experts)),
        Step(
            name="branch_single",
            title=f"seed {seed}: the single model goes on",
            command=verb("branch", workdir=base, to=single, steps=each * (len(CUTS.value) + 1)),
            makes=single,
        ),
        Step(name="single", title=f"seed {seed}: single model", command=verb("train", workdir=single)),
        Step(
            name="measure",
            title=f"seed {seed}: held-out loss",
            action=lambda: measure(folder),
            settings=f"{IMAGES.value} images, {QUANTILES.value} quantiles",
        ),
    ]


def measure(folder: pathlib.Path) -> None:
    """Losses [quantiles, images] of the three models on the same pictures and noise, to losses.npz."""
    from ediffi_jax import cascade
    from ediffi_jax.evaluation.quantile_loss import quantile_loss
    from ediffi_jax.evaluation.quickstart import held_out

    losses = {}
    for name in MODELS:
        loaded = cascade.load(folder / name)
        stage = loaded.stages[0]
        images, cond = held_out(folder / name, loaded.encoders, IMAGES.value)
        denoise = stage.denoise_fn(cond)
        losses[name] = quantile_loss(denoise, images, stage.ensemble.noise, count=QUANTILES.value)
    np.savez(
        folder / "losses.npz", quantiles=losses["base"].quantiles, **{name: q.losses for name, q in losses.items()}
    )


def summarise(folders: list[pathlib.Path]) -> dict:
    """Relative change single -> ensemble per interval, and base -> single, over seeds."""
    edges = [0.0, *map(float, CUTS.value), 1.0]
    spans = [*zip(edges[:-1], edges[1:]), (0.0, 1.0)]
    rows = []
    for low, high in spans:
        values = {name: [] for name in MODELS}
        for folder in folders:
            saved = np.load(folder / "losses.npz")
            chosen = (saved["quantiles"] >= low) & (saved["quantiles"] < high)
            for name in MODELS:
                values[name].append(float(saved[name][chosen].mean()))
        single, experts, base = (np.array(values[name]) for name in ("single", "experts", "base"))
        change, progress = experts / single - 1, single / base - 1
        spread = float(change.std(ddof=1)) if len(change) > 1 else float("nan")
        rows.append({"interval": [low, high], "single": single.tolist(), "experts": experts.tolist()})
        rows[-1] |= {"change_mean": float(change.mean()), "change_std": spread, "single_after_base": progress.tolist()}
    return {"rows": rows, "base_curve": [base_curve(folder) for folder in folders]}


def base_curve(folder: pathlib.Path) -> list[tuple[int, float]]:
    """(step, held-out loss) of the base while it trained."""
    lines = (folder / "base" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [(row["step"], row["held_out/0"]) for row in found if "held_out/0" in row]


def main(argv: list[str]) -> None:
    del argv
    from ediffi_jax.evaluation.steps import run_steps

    root = pathlib.Path(OUT.value)
    folders = []
    root.mkdir(parents=True, exist_ok=True)
    run_steps(root, encode_step(root), say=lambda text: print(text, flush=True))
    for seed in SEEDS.value:
        folder = root / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        run_steps(folder, steps_of(folder, seed), say=lambda text: print(text, flush=True))
        folders.append(folder)
    result = summarise(folders)
    settings = {f.name: f.value for f in (SEEDS, CHANNELS, BASE_STEPS, EXPERT_STEPS, CUTS, IMAGES, QUANTILES)}
    (root / "result.json").write_text(json.dumps({"settings": settings, **result}, indent=1))
    for row in result["rows"]:
        low, high = row["interval"]
        print(
            f"[{low:.3f}, {high:.3f})  single {np.mean(row['single']):.5f}  experts {np.mean(row['experts']):.5f}"
            f"  change {100 * row['change_mean']:+.2f} % ± {100 * row['change_std']:.2f}"
        )


if __name__ == "__main__":
    app.run(main)
