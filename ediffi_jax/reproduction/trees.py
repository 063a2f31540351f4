"""Claim 9: which tree of experts, at equal training: two experts, the ends only, or equal intervals all along."""

from __future__ import annotations

import numpy as np

from ediffi_jax.evaluation import curve_picture
from ediffi_jax.reproduction import tree_measures, tree_runs
from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.study import Study
from ediffi_jax.reproduction.tree_measures import change, point_at

NAMES = {
    "single": "single model",
    "two": "two experts",
    "extremes": "extremes-only tree, three experts",
    "quarters": "four equal intervals",
}
LITTLE = 0.5  # percent of held-out loss: "intermediate intervals contribute little" is taken to mean less than this
QUARTERS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


def run(study: Study) -> Result:
    """Trains, measures, compares."""
    losses = {tree: [tree_measures.losses(study, seed, "late", tree) for seed in study.seeds] for tree in NAMES}
    drawn = {tree: [tree_measures.points(study, seed, "late", tree) for seed in study.seeds] for tree in NAMES}
    curves = {tree: tree_measures.curve_of(name, drawn[tree]) for tree, name in NAMES.items()}
    best = tree_measures.best_guidance(curves["single"])
    _draw_losses(study, losses)
    curve_picture.plot(list(curves.values()), study.folder / "fid_clip.png")
    cuts = "; ".join(f"{NAMES[tree]}: {', '.join(map(str, edges))}" for tree, edges in tree_runs.TREES.items() if edges)
    return Result(
        findings=_findings(study, losses),
        how=tree_runs.described(study) + f" Cuts: {cuts}. All trees grow from the base at the end of its training.",
        tables=(_table(losses, drawn, best),),
        pictures=(
            Picture(
                file="loss.png",
                caption="Change of held-out denoising loss from single model to each tree at each noise level, mean and"
                " standard deviation over seeds; below 0 the tree is better.",
            ),
            Picture(file="fid_clip.png", caption="FID against CLIP score over guidance weights for each tree."),
        ),
    )


def _findings(study: Study, losses: dict[str, list[np.ndarray]]) -> tuple[Finding, ...]:
    size = tree_runs.SIZES[study.budget]

    def compared(first: str, second: str, **bound: float) -> Finding:
        pairs = zip(losses[first], losses[second], strict=True)
        return Finding(
            what=f"held-out loss, {NAMES[second]} against {NAMES[first]}, %",
            values=tuple(change(a, b) for a, b in pairs),
            n=size.held_out,
            digits=2,
            **bound,
        )

    return (
        compared("single", "extremes", below=0),
        compared("two", "extremes", below=0),
        compared("quarters", "extremes", below=LITTLE),
        compared("single", "two"),
        compared("single", "quarters"),
    )


def _table(losses: dict, drawn: dict, best: float) -> Table:
    rows = []
    for tree, name in NAMES.items():
        pairs = list(zip(losses["single"], losses[tree], strict=True))
        changes = [np.mean([change(a, b, low, high) for a, b in pairs]) for low, high in QUARTERS]
        cells = [f"{value:+.2f}".replace("-", "−") for value in changes]
        points = [point_at(told, best) for told in drawn[tree]]
        cells += [f"{np.mean([p['fid'] for p in points]):.1f}", f"{np.mean([p['clip_score'] for p in points]):.3f}"]
        rows.append((name, *cells))
    spans = (f"{low:g} to {high:g}" for low, high in QUARTERS)
    title = (
        "Change of held-out loss against the single model by quantiles of p(σ), in percent; FID and CLIP score"
        f" at w = {best:g}; means over seeds"
    )
    return Table(title=title, head=("tree", *spans, "FID", "CLIP score"), rows=tuple(rows))


def _draw_losses(study: Study, losses: dict[str, list[np.ndarray]]) -> None:
    lines = {}
    for tree in list(NAMES)[1:]:
        pairs = zip(losses["single"], losses[tree], strict=True)
        lines[NAMES[tree]] = [100 * (second / first - 1) for first, second in pairs]
    tree_measures.draw_changes(study.folder / "loss.png", lines)


CLAIM = Claim(
    number=9,
    name="trees",
    title="Which tree of experts: two, the ends only, or four equal intervals",
    says="Splitting the noise levels pays, and splitting further pays at the two ends: experts for the least and for"
    " the most noise, with one model for all that lies between, are a good compromise, as experts for intervals in the"
    " middle contribute little.",
    source="eDiff-I, section 4.1: only the outermost branches of the binary tree are grown",
    run=run,
)
