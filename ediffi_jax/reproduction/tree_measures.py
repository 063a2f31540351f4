"""What is measured of each tree of `tree_runs`, the same for all of one seed: pictures, noise, prompts and keys.

Held-out loss at every noise level · FID and CLIP score over guidance weights · what the exact scorer reads in pictures
of held-out prompts (two objects in a combination that training never showed, in a relation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ediffi_jax import figures
from ediffi_jax.data import scenes
from ediffi_jax.evaluation import inputs, protocols, tradeoff
from ediffi_jax.evaluation.curves import Curve, Point
from ediffi_jax.evaluation.quantile_loss import midpoints, quantile_loss
from ediffi_jax.evaluation.quickstart import held_out
from ediffi_jax.evaluation.scenes_accuracy import accuracy
from ediffi_jax.reproduction import tree_runs
from ediffi_jax.reproduction.study import Study

plt = figures.pyplot("launch.reproduce", "eval")

GUIDANCE = (0.0, 1.0, 2.0, 4.0)
SAMPLER = {"sampler": "deis_ab3", "steps": 16, "batch_size": 100}  # one evaluation a step
PARTS = ("count", "colours", "shapes", "relation")  # that the scorer reads
RESOLUTION, RENDERED = 16, 64  # of the models; of the pictures that the data are made from
TICKS = (0.01, 0.125, 0.25, 0.5, 0.75, 0.99)  # quantiles whose noise levels pictures name


def losses(study: Study, seed: int, regime: str, tree: str) -> np.ndarray:
    """Mean held-out loss at the midpoints of equal cells of [0, 1], low noise first; trains what is not trained."""
    size = tree_runs.SIZES[study.budget]

    def make() -> list[float]:
        model = tree_runs.model(study, seed, regime, tree)
        images, cond = held_out(tree_runs.base(study, seed, regime), model.encoders, size.held_out)
        stage = model.stages[0]
        measured = quantile_loss(stage.denoise_fn(cond), images, stage.ensemble.noise, count=size.quantiles, seed=seed)
        return measured.losses.mean(axis=1).tolist()

    return np.array(study.remembered(f"seed{seed}/{regime}/{tree}/loss", make, **_settings(study, tree)))


def change(first: np.ndarray, second: np.ndarray, low: float = 0.0, high: float = 1.0) -> float:
    """From the first model's losses to the second's over the quantiles in [low, high), in percent of the first."""
    quantiles = midpoints(len(first))
    chosen = (quantiles >= low) & (quantiles < high)
    return float(100 * (second[chosen].mean() / first[chosen].mean() - 1))


def fall(curve: Sequence[tuple[int, float]]) -> float:
    """By how many percent a held-out loss fell while the last fifth of the images was seen.

    From the mean over the evaluations between 70 % and 80 % of the images to the mean over those in the last tenth.
    """
    images, values = np.array(curve).T
    share = images / images.max()
    before, after = values[(share > 0.7) & (share <= 0.8)], values[share > 0.9]
    return float(100 * (1 - after.mean() / before.mean()))


def base_curve(study: Study, seed: int) -> list[tuple[int, float]]:
    """(images, held-out loss) of the base."""
    settings = dataclasses.asdict(tree_runs.SIZES[study.budget])
    return study.remembered(f"seed{seed}/base", lambda: tree_runs.held_out_curve(study, seed), **settings)


def points(study: Study, seed: int, regime: str, tree: str) -> dict[str, Any]:
    """A tree's FID–CLIP curve, of scenes as training could have shown them: {"settings", "points": one a weight}."""
    size, folder = tree_runs.SIZES[study.budget], tree_runs.of_seed(study, seed)

    def make() -> dict[str, Any]:
        scenes_drawn = protocols.of_scenes(max(size.drawn, size.real), seed, resolution=RENDERED)
        asked = dataclasses.replace(scenes_drawn, judge=None)  # which costs more than all else here; see `shares`
        network, clip = inputs.network(None), inputs.clip(None)
        real = inputs.real(folder / "real.npz", network, asked, RESOLUTION, size.real)
        curve = tradeoff.sweep(
            tree_runs.model(study, seed, regime, tree), asked, real, network, clip, guidance=GUIDANCE, seeds=(seed,),
            num=size.drawn, label=tree, out=folder / regime / tree, progress=False, **SAMPLER,
        )  # fmt: skip
        return {"settings": dict(curve.settings), "points": [dataclasses.asdict(point) for point in curve.points]}

    return study.remembered(f"seed{seed}/{regime}/{tree}/points", make, guidance=GUIDANCE, **_settings(study, tree))


def shares(study: Study, seed: int, regime: str, tree: str) -> dict[str, dict[str, float]]:
    """What the scorer finds right in a tree's pictures of held-out prompts: weight -> part -> share in [0, 1]."""
    size = tree_runs.SIZES[study.budget]

    def make() -> dict[str, dict[str, float]]:
        model = tree_runs.model(study, seed, regime, tree)
        prompts, wanted = zip(*scenes.heldout_prompts(size.prompts, seed=seed), strict=True)
        drawn = {w: model.sample(prompts, seed=seed, guidance=w, progress=False, **SAMPLER) for w in GUIDANCE}
        return {f"{w:g}": dict(accuracy(pictures, wanted).shares) for w, pictures in drawn.items()}

    return study.remembered(f"seed{seed}/{regime}/{tree}/shares", make, guidance=GUIDANCE, **_settings(study, tree))


def _settings(study: Study, tree: str) -> dict[str, Any]:
    """What a tree and its measures depend on, for the record."""
    return {"cuts": tree_runs.TREES[tree], **SAMPLER, **dataclasses.asdict(tree_runs.SIZES[study.budget])}


def curve_of(label: str, drawn: Sequence[dict[str, Any]]) -> Curve:
    """One curve of what the repetitions of a tree drew."""
    points = tuple(Point(**point) for told in drawn for point in told["points"])
    return Curve(label=label, settings=drawn[0]["settings"], points=points)


def point_at(told: dict[str, Any], guidance: float) -> dict[str, Any]:
    """The point of one guidance weight, of what `points` tells."""
    return next(point for point in told["points"] if point["guidance"] == guidance)


def share_right(told: dict[str, dict[str, float]], guidance: float, part: str = "") -> float:
    """Of what `shares` tells, in percent: one part, or the mean of `PARTS`."""
    right = told[f"{guidance:g}"]
    return 100 * float(np.mean([right[name] for name in ([part] if part else PARTS)]))


def best_guidance(curve: Curve) -> float:
    """The weight with the lowest FID, mean over seeds."""
    return min(curve.guidance, key=lambda w: curve.mean("fid", w))


def draw_changes(path: Path, lines: Mapping[str, Sequence[np.ndarray]], cuts: Sequence[float] = ()) -> None:
    """Draws changes of held-out loss over noise levels: means of the repetitions, in bands of ± one deviation.

    Args:
        path: of the picture.
        lines: label -> for each repetition the change at each noise level, percent.
        cuts: where to draw dashed lines.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for label, changes in lines.items():
        rows = np.array(changes)
        mean, quantiles = rows.mean(axis=0), midpoints(rows.shape[1])
        (line,) = axes.plot(quantiles, mean, linewidth=1.4, label=label)
        if len(rows) > 1:
            spread = rows.std(axis=0, ddof=1)
            axes.fill_between(quantiles, mean - spread, mean + spread, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    for cut in cuts:
        axes.axvline(cut, color="grey", linestyle="--", linewidth=0.8)
    axes.set(xlim=(0, 1), xlabel="quantile of p(σ)", ylabel="change of loss against the single model, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    above = axes.secondary_xaxis("top")
    above.set_xticks(TICKS, [f"{float(tree_runs.NOISE.quantile(np.float32(tick))):.2g}" for tick in TICKS])
    above.set_xlabel("σ")
    figure.savefig(path, dpi=110)
    plt.close(figure)
