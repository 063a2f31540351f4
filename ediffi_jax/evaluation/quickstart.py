"""The whole method on two CPU cores: data, base, branching, experts, super-resolution, samples, report.

    data ─▶ base ─┬─▶ branch ─▶ three experts ─┬─▶ export ─▶ samples ─┐
                  │                sr64, sr256 ─┘                      ├─▶ report.html
                  └─▶ the single model goes on, for as many images ────┘
                      as the three experts saw together

Every training step is a verb called as a user would call it, with the recipe `configs/scenes.py` in its
`quick` size; the report lists the commands. What a step made stays, and the run goes on behind it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ediffi_jax import pictures
from ediffi_jax.evaluation.steps import Step, run_steps

# The recipe's own: see configs/scenes.py.
CUTS = (0.125, 0.75)
PARENTS = (0, 0, 0)
SUPER_RESOLUTION = ("sr64", "sr256")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything.

    Attributes:
        arguments: of `configs/scenes.py`, after the stage.
        expert_steps: optimizer steps of the three experts after branching.
        prompts: pictures in the report; their scenes are combinations that training never saw.
        images: held-out pictures on which single model and ensemble are compared.
        quantiles: noise levels at which they are compared; a multiple of 16.
        overrides: further flags of every training command, and of one stage's.
    """

    arguments: str
    expert_steps: int
    prompts: int
    images: int
    quantiles: int
    overrides: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def _model(**values: str) -> tuple[str, ...]:
    return tuple(f"--config.model.{key}={value}" for key, value in values.items())


FULL = Size(arguments="quick", expert_steps=100, prompts=16, images=96, quantiles=48)
TINY = Size(
    arguments="quick,tiny",
    expert_steps=6,
    prompts=2,
    images=8,
    quantiles=16,
    overrides={
        "all": ("--config.phases.0.steps=12", "--steps=6", "--config.eval_every=0", "--config.sample_every=0"),
        "base": _model(channel_mults="(1,2)", attention_resolutions="(8,)", cross_attention_resolutions="(8,)"),
        "sr64": _model(
            channel_mults="(1,2,4)", block_mults="(1,1,1)", attention_resolutions="()", cross_attention_resolutions="(16,)"
        ),
        "sr256": _model(channel_mults="(1,2)", block_mults="(1,1)"),
    },
)


def run(folder: Path, size: Size) -> Path:
    """Runs what is not done yet and returns the path of the report.

    Raises:
        StepError: a command failed, or the folder holds a run with other settings.
        Interrupted: Ctrl-C or SIGTERM; calling again continues.
        PictureError: the folder cannot be written.
    """
    folder = pictures.make_folder(folder)
    run_steps(folder, plan(folder, size), say=functools.partial(print, flush=True))
    return folder / "report.html"


def plan(folder: Path, size: Size) -> list[Step]:
    """All steps in order."""
    work = {name: str(folder / name) for name in ("base", "experts", "single", *SUPER_RESOLUTION)}
    settings = repr(size)
    prompts, release, samples = folder / "prompts.txt", folder / "release", folder / "samples"
    exported = ",".join(f"{stage}={work[run]}" for stage, run in (("base", "experts"), ("sr64", "sr64"), ("sr256", "sr256")))
    numbers = {"cuts": ",".join(map(str, CUTS)), "parents": ",".join(map(str, PARENTS))}
    single_steps = len(PARENTS) * size.expert_steps
    return [
        Step(name="data", title="Render scenes and captions", action=lambda: render(folder, size), settings=settings),
        _train(folder, size, "base", "Train one base model for all noise levels, 16x16"),
        Step(
            name="branch",
            title=f"Branch it into {len(PARENTS)} experts",
            command=_verb("branch", workdir=work["base"], to=work["experts"], steps=size.expert_steps, **numbers),
            makes=folder / "experts",
        ),
        Step(name="experts", title="Train the experts", command=_verb("train", workdir=work["experts"])),
        Step(
            name="branch_single",
            title="Let the single model go on from the same weights",
            command=_verb("branch", workdir=work["base"], to=work["single"], steps=single_steps),
            makes=folder / "single",
        ),
        Step(name="single", title="Train it on as many images", command=_verb("train", workdir=work["single"])),
        _train(folder, size, "sr64", "Train super-resolution 16 to 64: one model, then two experts"),
        _train(folder, size, "sr256", "Train super-resolution 64 to 256 on 64x64 crops"),
        Step(
            name="export",
            title="Put the stages together",
            command=_verb("export", workdirs=exported, out=release),
            makes=release,
        ),
        Step(
            name="prompts", title="Choose prompts", action=lambda: write_prompts(prompts, size.prompts), settings=settings
        ),
        Step(
            name="samples",
            title="Sample",
            command=_verb("sample", cascade=release, prompts_file=prompts, seed=0, out=samples),
        ),
        Step(
            name="compare",
            title="Compare single model and ensemble at every noise level",
            action=lambda: compare(folder, size),
            settings=settings,
        ),
        Step(name="report", title="Write the report", action=lambda: report(folder, size), settings=settings),
    ]


def _verb(name: str, *words: str, **flags: object) -> tuple[str, ...]:
    package = "ediffi_jax.launch" if "ediffi_jax.launch" in sys.modules else "launch"
    return (sys.executable, "-m", f"{package}.{name}", *(f"--{key}={value}" for key, value in flags.items()), *words)


def _recipe(stage: str, size: Size) -> str:
    return f"configs/scenes.py:stage={stage},{size.arguments}"


def _train(folder: Path, size: Size, stage: str, title: str) -> Step:
    words = (f"--config.data.dir={folder / 'data'}", *size.overrides.get("all", ()), *size.overrides.get(stage, ()))
    flags = {"config": _recipe(stage, size), "workdir": folder / stage}
    return Step(name=stage, title=title, command=_verb("train", *words, **flags))


def render(folder: Path, size: Size) -> None:
    """Draws the scenes that the stages train on; stages that read the same files share them."""
    from absl import logging

    from ediffi_jax.data.scenes import builder
    from ediffi_jax.training import config_files

    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is not in its list
    for stage in ("base", *SUPER_RESOLUTION):
        data = config_files.load(_recipe(stage, size)).data
        drawn = builder.ScenesConfig(resolution=data.source_resolution, num_scenes=data.num_scenes)
        builder.prepare(folder / "data", drawn)


def write_prompts(path: Path, count: int) -> None:
    """Canonical captions of two objects in combinations that training never sees, one a line."""
    from ediffi_jax.data import scenes

    path.write_text("".join(f"{caption}\n" for caption, _ in scenes.heldout_prompts(count)), encoding="utf-8")


def compare(folder: Path, size: Size) -> None:
    """Measures the base before branching, the single model and the ensemble on the same held-out images and noise.

    Writes comparison.npz: `quantiles` [n] and, under each model's name, losses [n, N].
    """
    from tqdm import tqdm

    from ediffi_jax import cascade
    from ediffi_jax.evaluation.quantile_loss import quantile_loss

    measured = {}
    with tqdm(total=3 * size.quantiles, desc="held-out loss", unit="level", mininterval=1.0) as bar:
        for name in ("base", "single", "experts"):
            loaded = cascade.load(folder / name)
            stage = loaded.stages[0]
            images, cond = held_out(folder / name, loaded.encoders, size.images)
            result = quantile_loss(
                stage.denoise_fn(cond),
                images,
                stage.ensemble.noise,
                sigma_data=stage.spec.sigma_data,
                count=size.quantiles,
                tick=lambda done: bar.update(),  # noqa: B023 (used at once)
            )
            measured[name] = result.losses
    np.savez(folder / "comparison.npz", quantiles=result.quantiles, **measured)


def held_out(workdir: Path, encoders: object, count: int) -> tuple:
    """`count` validation pictures in [-1, 1] [count, R, R, 3] of a run's data, and their captions' conditioning."""
    from ediffi_jax import conditioning
    from ediffi_jax.training import config_files
    from ediffi_jax.training.objective import encode_batch, to_unit
    from ediffi_jax.training.run import make_loader

    config = config_files.read_workdir(workdir)
    config.batch_size = count
    batch = {k: v[0] for k, v in next(make_loader(config, encoders, split="test", num_experts=1).iterate()).items()}
    cond = encode_batch(encoders, encoders.params, batch)
    return to_unit(batch["image"]), conditioning.select(cond, ("t5", "clip_text"))


def report(folder: Path, size: Size) -> None:
    """Writes report.html and its figures from what the steps left behind."""
    from ediffi_jax.evaluation import quickstart_report

    quickstart_report.write(folder, plan(folder, size))
