"""Claim 1: an ensemble of experts against a single model, at equal training samples and equal inference cost."""

from __future__ import annotations

import dataclasses

import numpy as np

from ediffi_jax.evaluation import curve_picture
from ediffi_jax.evaluation.quantile_loss import midpoints
from ediffi_jax.reproduction import tree_measures, tree_runs
from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.study import Study
from ediffi_jax.reproduction.tree_measures import GUIDANCE, PARTS, point_at, share_right

SINGLE, ENSEMBLE = "single", "extremes"
MODELS = tuple((regime, tree) for regime in tree_runs.REGIMES for tree in (SINGLE, ENSEMBLE))
EDGES = (0.0, *tree_runs.TREES[ENSEMBLE], 1.0)
FLAT = 0.5  # percent by which a flat base's loss falls at most over the last fifth of its images
SPANS = tuple(zip(EDGES[:-1], EDGES[1:], strict=True))


def run(study: Study) -> Result:
    """Trains, measures, compares."""
    bases = [tree_measures.base_curve(study, seed) for seed in study.seeds]
    losses = {m: [tree_measures.losses(study, seed, *m) for seed in study.seeds] for m in MODELS}
    drawn = {m: [tree_measures.points(study, seed, *m) for seed in study.seeds] for m in MODELS}
    right = {m: [tree_measures.shares(study, seed, *m) for seed in study.seeds] for m in MODELS}
    curves = {m: tree_measures.curve_of(_name(*m), drawn[m]) for m in MODELS}
    best = tree_measures.best_guidance(curves["late", SINGLE])
    late, early = (_compared(study, losses, drawn, right, regime, best) for regime in tree_runs.REGIMES)
    flatness = _flatness(study, bases)
    return Result(
        findings=(*_decisive(late), *late[3:], *early, flatness),
        how=tree_runs.described(study)
        + " The ensemble has three experts, cut at 1/8 and 3/4 of p(σ). Late: branched when the base is trained; early:"
        " after a tenth of its images, with as many images afterwards as late. Accuracy: what the scorer reads in"
        f" pictures of {tree_runs.SIZES[study.budget].prompts} held-out prompts of two objects in a relation.",
        tables=(_loss_table(losses), _picture_table(study, drawn, right)),
        pictures=_pictures(study, losses, curves),
        remarks=_remarks(flatness),
    )


def _compared(study: Study, losses: dict, drawn: dict, right: dict, regime: str, w: float) -> list[Finding]:
    """From single model to ensemble: loss, FID and accuracy at weight w; then by interval, by part, at all weights."""
    size = tree_runs.SIZES[study.budget]
    curves = list(zip(losses[regime, SINGLE], losses[regime, ENSEMBLE], strict=True))
    told = list(zip(drawn[regime, SINGLE], drawn[regime, ENSEMBLE], strict=True))
    read = list(zip(right[regime, SINGLE], right[regime, ENSEMBLE], strict=True))

    def loss(span: str, low: float, high: float) -> Finding:
        values = tuple(tree_measures.change(a, b, low, high) for a, b in curves)
        return Finding(
            what=f"branched {regime}: change of held-out loss, {span}, %", values=values, n=size.held_out, digits=2
        )

    def accuracy(what: str, part: str) -> Finding:
        values = tuple(share_right(b, w, part) - share_right(a, w, part) for a, b in read)
        what = f"branched {regime}: difference of {what} at w = {w:g}, percentage points"
        return Finding(what=what, values=values, n=size.prompts, digits=1)

    def drawn_at(guidance: float, measure: str, name: str, digits: int) -> Finding:
        values = tuple(point_at(b, guidance)[measure] - point_at(a, guidance)[measure] for a, b in told)
        what = f"branched {regime}: difference of {name} at w = {guidance:g}"
        return Finding(what=what, values=values, n=size.drawn, digits=digits)

    return [
        loss("all noise levels", 0.0, 1.0),
        drawn_at(w, "fid", "FID", 2),
        accuracy("accuracy (mean of the scorer's four parts)", ""),
        *(loss(f"quantiles {low:g} to {high:g}", low, high) for low, high in SPANS),
        *(accuracy(f"{part} right", part) for part in PARTS),
        *(drawn_at(other, "fid", "FID", 2) for other in GUIDANCE if other != w),
        *(drawn_at(each, "clip_score", "CLIP score", 4) for each in GUIDANCE),
    ]


def _decisive(late: list[Finding]) -> list[Finding]:
    """What the claim says of the first three of `_compared`."""
    loss, fid, accuracy = late[:3]
    return [
        dataclasses.replace(loss, below=0),
        dataclasses.replace(fid, below=0),
        dataclasses.replace(accuracy, above=0),
    ]


def _remarks(flatness: Finding) -> tuple[str, ...]:
    """What limits the finding, if it does."""
    if flatness.mean < FLAT:
        return ()
    return (
        "The base was not flat when it was branched late: over the last fifth of its images, at a constant learning"
        f" rate, its held-out loss fell by another {flatness.mean:.1f} %.",
    )


def _flatness(study: Study, bases: list) -> Finding:
    """How flat the base's held-out loss was when it was branched late."""
    falls = tuple(tree_measures.fall(curve) for curve in bases)
    what = "fall of the base's held-out loss over the last fifth of its images, %"
    return Finding(what=what, values=falls, n=tree_runs.SIZES[study.budget].held_out, digits=2)


def _name(regime: str, tree: str) -> str:
    return f"{'single model' if tree == SINGLE else 'three experts'}, {regime}"


def _loss_table(losses: dict) -> Table:
    rows = []
    for regime, tree in MODELS:
        spans = (*SPANS, (0.0, 1.0))
        means = [np.mean([_mean(one, low, high) for one in losses[regime, tree]]) for low, high in spans]
        rows.append((_name(regime, tree), *(f"{mean:.4f}" for mean in means)))
    head = ("branched", *(f"{low:g} to {high:g}" for low, high in SPANS), "all")
    return Table(
        title="Held-out loss by quantiles of p(σ), low noise first, means over seeds", head=head, rows=tuple(rows)
    )


def _mean(losses: np.ndarray, low: float, high: float) -> float:
    quantiles = midpoints(len(losses))
    return float(losses[(quantiles >= low) & (quantiles < high)].mean())


def _picture_table(study: Study, drawn: dict, right: dict) -> Table:
    size, rows = tree_runs.SIZES[study.budget], []
    for model in MODELS:
        for w in GUIDANCE:
            points = [point_at(told, w) for told in drawn[model]]
            cells = [f"{np.mean([p['fid'] for p in points]):.1f}", f"{np.mean([p['clip_score'] for p in points]):.3f}"]
            cells += [
                f"{np.mean([share_right(told, w, part) for told in right[model]]):.1f}" for part in (*PARTS, "all")
            ]
            rows.append((_name(*model), f"{w:g}", *cells))
    head = ("branched", "w", "FID", "CLIP score", *(f"{part}, %" for part in (*PARTS, "all")))
    title = (
        f"FID and CLIP score of {size.drawn} scenes; what is right in pictures of {size.prompts} held-out prompts;"
        " means over seeds"
    )
    return Table(title=title, head=head, rows=tuple(rows))


def _pictures(study: Study, losses: dict, curves: dict) -> tuple[Picture, ...]:
    """Draws them into the study's folder: losses over noise levels, and for each regime the FID–CLIP curves."""
    lines, pictures = {}, []
    for regime in tree_runs.REGIMES:
        pairs = zip(losses[regime, SINGLE], losses[regime, ENSEMBLE], strict=True)
        lines[f"branched {regime}"] = [100 * (second / first - 1) for first, second in pairs]
        file = f"fid_clip_{regime}.png"
        curve_picture.plot([curves[regime, SINGLE], curves[regime, ENSEMBLE]], study.folder / file)
        caption = (
            f"FID against CLIP score over guidance weights, branched {regime}; bars are standard deviations over seeds."
            " Features and scores by the bundled tower: comparable within this page only."
        )
        pictures.append(Picture(file=file, caption=caption))
    tree_measures.draw_changes(study.folder / "loss.png", lines, tree_runs.TREES[ENSEMBLE])
    caption = (
        "Change of held-out denoising loss from single model to ensemble at each noise level, mean and standard"
        " deviation over seeds; dashed: the experts' edges. Below 0 the ensemble is better."
    )
    return Picture(file="loss.png", caption=caption), *pictures


CLAIM = Claim(
    number=1,
    name="ensemble",
    title="An ensemble of experts against a single model",
    says="At equal training samples and equal cost of sampling, experts for parts of the noise levels, branched from"
    " one trained model, denoise better than that model trained further, and draw better: lower FID at the same CLIP"
    " score, prompts followed more often.",
    source="eDiff-I, sections 4 and 5: ensemble of expert denoisers against the baseline",
    run=run,
)
