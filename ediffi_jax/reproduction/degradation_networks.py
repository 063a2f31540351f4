"""The networks of claim 8: the bundled SR64 trained on, those of a seed alike but for the degradation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from ediffi_jax import release
from ediffi_jax.evaluation.steps import Interrupted
from ediffi_jax.reproduction.study import Study
from ediffi_jax.stage import Stage
from ediffi_jax.training import config_files, loop

OFF, ON = "off", "on"  # noise-conditioning augmentation, in training and in sampling
CLEAN, DEGRADED = "clean", "cascade"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What a budget is spent on.

    Attributes:
        steps, batch_size, num_scenes: of training, each network; the batch is for each expert.
        prompts: each seed.
        augmentation: with which networks are trained.
    """

    steps: int
    batch_size: int = 16
    num_scenes: int = 20_000
    prompts: int
    augmentation: tuple[str, ...] = (OFF, ON)


SIZES = {
    "seconds": Size(steps=1, batch_size=8, num_scenes=64, prompts=2, augmentation=(OFF,)),
    "minutes": Size(steps=20, prompts=24),
    "hours": Size(steps=80, prompts=48),
}


def recipe(size: Size, seed: int, augmentation: str, preset: str, start: str, data: Path) -> ConfigDict:
    """The scenes cascade's SR64, trained on from the weights of the release `start`."""
    config = config_files.load("configs/scenes.py:stage=sr64,further")
    if augmentation == OFF:
        config.aug.update({"max_level": 0.0, "level": 0.0})
    config.data.update({"dir": str(data), "num_scenes": size.num_scenes, "degrade": "" if preset == CLEAN else preset})
    config.update({"seed": seed, "init_from": start, "batch_size": size.batch_size})
    config.phases = ({**config.phases[0], "steps": size.steps},)
    config.optimizer.update({"warmup": max(1, size.steps // 4), "cooldown": size.steps * 3 // 5})
    config.update({"log_every": 10, "save_every": 40, "eval_every": 0, "eval_batches": 1, "sample_every": 0, "keep": 1})
    return config


def trained(study: Study, size: Size, seed: int, augmentation: str, preset: str) -> Stage:
    """One network; raises Interrupted if it was asked to stop."""
    name = f"seed{seed}/{preset}_augmentation_{augmentation}"
    workdir = study.shared / "degradation" / name

    def train() -> dict[str, int]:
        config = recipe(size, seed, augmentation, preset, study.cascade, study.shared / "data")
        if loop.train(config, workdir) != loop.FINISHED:
            raise Interrupted
        return {"steps": size.steps}

    study.remembered(f"{name}/trained", train, **dataclasses.asdict(size))
    run = release.read_workdir(workdir)
    return Stage(spec=run.spec, params=run.ema)
