"""The training runs that the claims about experts share: one model, and trees of experts grown from it.

    base ──early──▶ base ────────late────────▶ base          one model for all noise levels, constant learning rate
          │                                     │
          └─▶ node (0, 1), node (0, 1/8) …      └─▶ node (0, 1), (0, 1/8), (1/8, 3/4) …

A node goes on from the base on its own interval of p(sigma) alone, and a tree is the nodes that tile [0, 1]: the single
model is the tree of one node. A node gets images *in proportion to its interval's mass*, so each noise level sees as
many images in every tree, the single model included, and all trees as many in all. Its learning rate stays that of the
base and falls to 0 over the second half of its steps, whatever their number. Trees that have a node in common share it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict

from ediffi_jax import cascade, release
from ediffi_jax.cascade import Cascade
from ediffi_jax.evaluation.steps import Interrupted
from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import Interval, LogNormal
from ediffi_jax.release.commits import committed, folder_of
from ediffi_jax.reproduction.study import Study
from ediffi_jax.training import branching, config_files, encode, loop

# The paper grows the two outermost branches of a binary tree and lets one more model cover the rest. Its outermost
# nodes are 1/8 and 1/512 of the mass; here they are E^3_0 and E^2_3, as in configs/scenes.py.
TREES = {"single": (), "two": (0.5,), "extremes": (0.125, 0.75), "quarters": (0.25, 0.5, 0.75)}
REGIMES = ("late", "early")  # when the base is branched
RECIPE = "configs/scenes.py:stage=base,quick"
LEARNING_RATE = 2e-3
NOISE = LogNormal(mean=-0.5, std=1.2)  # as in the recipe, and why is said there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything.

    Attributes:
        scenes: of the train split, each with two captions.
        batch_size: images a step.
        early, late: images that the base has seen when it is branched.
        more: images after that, of all nodes of a tree together.
        evaluate: images between two evaluations of the base's held-out loss.
        held_out: pictures on which models are compared, at `quantiles` noise levels.
        drawn: pictures of each model and guidance weight, for FID and CLIP score.
        prompts: held-out ones, a picture each for every model and weight, for the scorer.
        real: pictures that FID compares with.
    """

    scenes: int
    batch_size: int
    early: int
    late: int
    more: int
    evaluate: int
    held_out: int
    quantiles: int
    drawn: int
    prompts: int
    real: int


SIZES = {
    "seconds": Size(
        scenes=256, batch_size=8, early=16, late=160, more=64, evaluate=16, held_out=16, quantiles=16, drawn=10,
        prompts=4, real=16,
    ),
    "minutes": Size(
        scenes=10_000, batch_size=64, early=6_400, late=64_000, more=32_000, evaluate=3_200, held_out=256, quantiles=32,
        drawn=100, prompts=50, real=500,
    ),
    "hours": Size(
        scenes=20_000, batch_size=64, early=38_400, late=384_000, more=102_400, evaluate=12_800, held_out=512,
        quantiles=64, drawn=500, prompts=200, real=2_000,
    ),
}  # fmt: skip


def node_steps(size: Size, interval: Interval) -> int:
    """Steps of a node after branching: its interval's share of the images."""
    return round(size.more * (interval.high - interval.low)) // size.batch_size


def base(study: Study, seed: int, regime: str) -> Path:
    """The workdir of the base, trained as far as the regime says."""
    size = SIZES[study.budget]
    early, late = (of_seed(study, seed) / f"base_{name}" for name in ("early", "late"))
    steps = size.early // size.batch_size
    if not (early / "config.json").exists():
        config = _recipe(study, seed)
        config.phases = ({"steps": steps, "cuts": (), "parents": ()},)
        _train(early, steps, config)
    _train(early, steps)
    if regime == "early":
        return early
    if not (late / "config.json").exists():
        branching.branch_workdir(early, late, cuts=(), parents=(), steps=size.late // size.batch_size - steps)
    _train(late, size.late // size.batch_size)
    return late


def held_out_curve(study: Study, seed: int) -> list[tuple[int, float]]:
    """(images, held-out loss) of the base while it was trained."""
    size = SIZES[study.budget]
    rows = []
    for regime in reversed(REGIMES):
        lines = (base(study, seed, regime) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows += [row for row in map(json.loads, lines) if "held_out/0" in row]
    return [(row["step"] * size.batch_size, row["held_out/0"]) for row in rows]


def node(study: Study, seed: int, regime: str, interval: Interval) -> Path:
    """The workdir of one expert, trained."""
    size = SIZES[study.budget]
    before = (size.early if regime == "early" else size.late) // size.batch_size
    steps = node_steps(size, interval)
    workdir = of_seed(study, seed) / regime / f"{interval.low:g}_{interval.high:g}"
    if not (workdir / "config.json").exists():
        cuts = tuple(edge for edge in (interval.low, interval.high) if 0 < edge < 1)
        expert = 1 if interval.low > 0 else 0 if cuts else -1
        overrides = (f"optimizer.cooldown={steps // 2}", "eval_every=0")
        branching.branch_workdir(
            base(study, seed, regime), workdir, cuts=cuts, parents=(), expert=expert, steps=steps, overrides=overrides
        )
    _train(workdir, before + steps)
    return workdir


def model(study: Study, seed: int, regime: str, tree: str) -> Cascade:
    """A tree's experts, trained and stacked.

    Raises:
        Interrupted: stopped while training; calling again continues.
    """
    workdirs = [node(study, seed, regime, interval) for interval in Ensemble(cuts=TREES[tree]).intervals]
    found = release.release_of_runs({"base": [release.read_workdir(workdir) for workdir in workdirs]})
    return cascade.from_release(found, workdirs[0].parent / tree)


def described(study: Study) -> str:
    """The set-up, for readers."""
    size = SIZES[study.budget]
    return (
        "A U-Net of 62,507 parameters at 16×16, 8 to 16 channels with attention at 4×4 only, small enough that capacity"
        f" is the limit; {size.scenes:,} scenes with two captions each, all three encoders, batches of"
        f" {size.batch_size}, AdamW at {LEARNING_RATE:g}. A base of {size.late:,} images for all noise levels, then"
        f" {size.more:,} more images for the experts together, or for the same model going on. Each expert gets images"
        " in proportion to its interval's mass (an eighth of them for an eighth of the noise levels), so every noise"
        " level sees as many images whatever the tree; the learning rate falls to 0 over the second half of each."
        f" Held-out loss: EMA weights, {size.held_out} pictures at {size.quantiles} noise levels, the same noise for"
        f" all models of a seed. Pictures: DEIS rho-AB 3, 16 steps; FID and CLIP score of {size.drawn} scenes against"
        f" {size.real} real ones. A seed is a new training, new prompts and new noise."
    )


def of_seed(study: Study, seed: int) -> Path:
    """Where a repetition's runs are."""
    return study.shared / "trees" / study.budget / f"seed{seed}"


def _recipe(study: Study, seed: int) -> ConfigDict:
    """The base's: a network that is small and quick, with no attention but at 4x4."""
    size = SIZES[study.budget]
    config = config_files.load(RECIPE)
    config.seed = seed
    config.noise.update(dataclasses.asdict(NOISE))
    config.model.update({"channels": 8, "channel_mults": (1, 1, 2), "blocks": 0, "context_width": 32})
    config.model.update({"attention_resolutions": (4,), "cross_attention_resolutions": (4,), "head_channels": 16})
    config.data.update({"dir": str(study.shared / "data"), "num_scenes": size.scenes, "captions": 2})
    config.batch_size = size.batch_size
    config.optimizer.update({"lr": LEARNING_RATE, "warmup": 200, "cooldown": 0})
    config.ema.decay = 0.98  # short, lest a node's average hold the base's weights; the learning rate's fall averages
    config.update({"keep": 1, "log_every": 100, "save_every": 500, "sample_every": 0})
    config.update(
        {"eval_every": size.evaluate // size.batch_size, "eval_batches": -(-size.held_out // size.batch_size)}
    )
    config.data.embeddings = str(_embeddings(study, config))
    return config


def _embeddings(study: Study, config: ConfigDict) -> Path:
    """The captions' embeddings, prepared once for all seeds: a small network waits for its encoders."""
    folder = study.shared / "trees" / study.budget / "embeddings"
    encode.encode(config, encode.Options(out=str(folder)), say=lambda line: None)
    return folder


def _train(workdir: Path, steps: int, config: ConfigDict | None = None) -> None:
    """Trains a run until so many steps are taken, if they are not."""
    if max(committed(folder_of(workdir)), default=-1) >= steps and (workdir / "config.json").exists():
        return
    if loop.train(config or config_files.read_workdir(workdir), workdir) == loop.RESTART:
        raise Interrupted
