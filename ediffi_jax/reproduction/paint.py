"""Paint-with-words: do objects go where their words are painted, the more the higher the weight?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ediffi_jax.cascade import Cascade
from ediffi_jax.evaluation.paint_control import LAYOUTS, Case, make_cases, measure
from ediffi_jax.paint import PAINT_WEIGHT
from ediffi_jax.reproduction import bundled
from ediffi_jax.reproduction.bundled import plt
from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.study import Study

LOW = 0.3
WEIGHTS = (0.0, LOW, 0.6, PAINT_WEIGHT, 2.4)
SIZES = {"seconds": 3, "minutes": 24, "hours": 150}  # prompts a seed, each with two painted objects
SHARES = {
    "inside": "centre in its mask, of objects",
    "right": "colour and shape right, of objects",
    "inside_right": "both, of objects",
    "whole": "both objects right and no third, of pictures",
}

Parts = Mapping[tuple[int, float], Mapping[str, Any]]  # (seed, weight) -> what was measured


def run(study: Study) -> Result:
    """See `Claim.run`."""
    number = SIZES[study.budget]
    cascade = functools.cache(lambda: bundled.opened(study.cascade))
    parts = {
        (seed, weight): study.remembered(
            f"seed{seed}/weight{weight:g}",
            functools.partial(_measured, cascade, make_cases(number, seed), seed, weight),
            prompts=number, sampler=bundled.SAMPLER, steps=bundled.STEPS,
        )
        for seed in study.seeds
        for weight in WEIGHTS
    }  # fmt: skip
    return _result(study, parts, number, cascade())


def _measured(cascade: Callable[[], Cascade], cases: Sequence[Case], seed: int, weight: float) -> dict[str, Any]:
    pictures = bundled.draw(
        cascade(), [case.prompt for case in cases], seed, paint=[case.paint() for case in cases], paint_weight=weight
    )
    return {**dataclasses.asdict(measure(pictures, cases)), "pictures": bundled.coded(pictures)}


def _result(study: Study, parts: Parts, number: int, cascade: Cascade) -> Result:
    def values(weight: float, what: str = "inside") -> bundled.PerSeed:
        return tuple(parts[seed, weight][what] for seed in study.seeds)

    def gain(of: float, over: float, what: str = "inside", **bounds: float) -> Finding:
        count = number if what == "whole" else 2 * number
        text = f"{SHARES[what]}: w' = {of:g} minus {'unpainted' if not over else f'{over:g}'}"
        return bundled.minus(text, values(of, what), values(over, what), count, **bounds)

    findings = (
        gain(PAINT_WEIGHT, 0.0, above=0.0),
        gain(PAINT_WEIGHT, LOW, above=0.0),
        gain(PAINT_WEIGHT, 0.0, "right"),
        gain(PAINT_WEIGHT, 0.0, "whole"),
        *(
            Finding(what=f"{SHARES['inside']}: w' = {w:g}", values=values(w), n=2 * number, share=True)
            for w in WEIGHTS
        ),
    )  # fmt: skip
    layouts = tuple(name for name in LAYOUTS if name in parts[study.seeds[0], 0.0]["inside_by_layout"])
    rows = []
    for w in WEIGHTS:
        kinds = [tuple(parts[seed, w]["inside_by_layout"][name] for seed in study.seeds) for name in layouts]
        rows.append((f"{w:g}", *(bundled.cell(values(w, what)) for what in SHARES), *map(bundled.cell, kinds)))
    head = ("w'", *SHARES.values(), *(f"centre in its mask, {name}" for name in layouts))
    _plot(study, parts)
    first = study.seeds[0]
    shown = {f"w' = {w:g}": bundled.decoded(parts[first, w]["pictures"]) for w in WEIGHTS}
    cases = make_cases(number, first)[: bundled.KEPT]
    prompts, boxes = [case.prompt for case in cases], [case.boxes for case in cases]
    bundled.sheet(study.folder / "pictures.png", shown, prompts, boxes)
    return Result(
        findings=findings,
        how=(
            f"{bundled.how(cascade)} {number} prompts of two objects a seed, with no word on where they are (as \"a red"
            ' circle and a blue square"); each object is painted into a half, a quarter or a random box, without'
            " overlap, at every weight from the same noise. w' = 0 is unpainted: its objects are where they happen to"
            " be. The exact scorer reads objects, their colours, shapes and centres."
        ),
        tables=(Table(title="Shares, means ± deviations over seeds", head=head, rows=tuple(rows)),),
        pictures=(
            Picture(file="control.png", caption="Control and its price; bars are ± one deviation over seeds."),
            Picture(
                file="pictures.png",
                caption=f"The first prompts of seed {first}, not chosen; masks: first object white, second black.",
            ),
        ),
    )  # fmt: skip


def _plot(study: Study, parts: Parts) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for what, label in SHARES.items():
        drawn = [bundled.mean_and_spread(tuple(parts[seed, w][what] for seed in study.seeds)) for w in WEIGHTS]
        means, spreads = zip(*drawn)
        axes.errorbar(WEIGHTS, means, spreads, marker="o", markersize=4, capsize=3, label=label)
    axes.axvline(PAINT_WEIGHT, color="gray", linestyle=":", linewidth=1)
    axes.set(xlabel="weight w' (dotted: the default)", ylabel="share", ylim=(0, 1.03))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(study.folder / "control.png", dpi=110)
    plt.close(figure)


CLAIM = Claim(
    number=3,
    name="paint",
    title="Paint-with-words: control over the weight",
    says=(
        "Words painted onto regions put their objects there, without training; the weight w' says how strictly. We take"
        " it as: more objects in their masks at the default weight than unpainted, and more than at a quarter of it."
    ),
    source="eDiff-I, section 4.3 and its figures of painted pictures",
    run=run,
)
