"""Claim 8: super-resolution that was trained on degraded pictures is robust to what a base model gets wrong.

    the bundled SR64, trained on          {clean, degraded} low-resolution pictures x augmentation {off, on}
    the bundled base's pictures           {as released, drawn hastily, over-guided}, and true reductions for the price
    every network enlarges every picture, from the same noise

Networks of a seed see the same scenes in the same order with the same noise; only the low-resolution pictures differ.
Noise-conditioning augmentation is Imagen's, not the paper's, and mends some of the same artefacts: without it the
claim is the paper's, and decides; with it one sees what degradation adds. The degradation is `cascade`: `full`,
Real-ESRGAN's own, was made for photographs and leaves little of shapes at 16 pixels (docs/degradation.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import ediffi_jax as ed
from ediffi_jax import figures, pictures
from ediffi_jax.cascade import Cascade
from ediffi_jax.data import scenes
from ediffi_jax.data.views import shrink
from ediffi_jax.evaluation import enlarged, inputs, style_recognition
from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.degradation_networks import CLEAN, DEGRADED, OFF, SIZES, Size, trained
from ediffi_jax.reproduction.study import Study
from ediffi_jax.stage import Stage

plt = figures.pyplot("launch.reproduce", "eval")  # on import: not after hours of measuring

# How the bundled base draws: as released; too few steps, which leave grain; and far too much guidance with few steps.
DRAWN: Mapping[str, Mapping[str, Any]] = {
    "released": {},
    "hasty": {"sampler": "euler", "steps": 6},
    "over-guided": {"sampler": "deis_ab3", "steps": 8, "guidance": 6.0},
}
TRUE = "true"
SATURATED = 0.98  # share right of the clean network from which on accuracy cannot tell networks apart
MOST_BIAS = 2.0  # of 255
SHOWN = 8  # pictures of the first seed
COLUMNS = {"right": 3, "distance": 3, "bias": 2, "error": 2}  # of the table, with their decimals

Key = tuple[int, str, str, str]  # seed, augmentation, what a network was trained on, how the base drew
Rows = Mapping[Key, Mapping[str, float]]


def run(study: Study) -> Result:
    """Trains, draws, enlarges and measures what is not there yet."""
    size = SIZES[study.budget]
    cascade = inputs.up_to(ed.load(study.cascade), "base")
    rows: dict[Key, dict[str, Any]] = {}
    low: dict[int, Mapping[str, enlarged.Pictures]] = {}
    networks = [(augmentation, preset) for augmentation in size.augmentation for preset in (CLEAN, DEGRADED)]
    for seed in study.seeds:
        fed = _Fed.of(study, size, cascade, seed)
        low[seed] = fed.low
        for augmentation, preset in networks:
            network = trained(study, size, seed, augmentation, preset)
            for drawn in (*DRAWN, TRUE):
                key = seed, augmentation, preset, drawn
                rows[key] = _measured(study, size, fed, network, key)
    found = findings(rows, study.seeds, size.prompts)
    shown = (_plot(study, rows), *_sheets(study, low[study.seeds[0]]))
    remark = (
        f"One picture of a seed's {size.prompts} is {1 / size.prompts:.3f} of the share right; the interval over seeds"
        " does not know of that counting error. SR256 was not measured."
    )
    tables = (_table(rows, study.seeds),)
    return Result(findings=found, how=_how(size), tables=tables, pictures=shown, remarks=(remark,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fed:
    """A seed's scenes, their renders, and the low-resolution pictures by how they were drawn."""

    wanted: Sequence[scenes.Scene]
    conditioning: Any
    truth: enlarged.Pictures
    low: Mapping[str, enlarged.Pictures]

    @classmethod
    def of(cls, study: Study, size: Size, base: Cascade, seed: int) -> _Fed:
        prompts, wanted = zip(*scenes.heldout_prompts(size.prompts, seed), strict=True)
        truth = np.stack([scenes.render(scene, 64) for scene in wanted])
        low = {TRUE: np.stack([shrink(picture, base.stages[0].spec.resolution) for picture in truth])}
        for drawn, how in DRAWN.items():
            draw = functools.partial(base.sample, list(prompts), seed=seed, batch_size=32, progress=False, **how)
            told = study.remembered(f"seed{seed}/{drawn}", lambda: draw().tolist(), prompts=size.prompts, **how)  # noqa: B023
            low[drawn] = np.array(told, np.uint8)
        return cls(wanted=wanted, conditioning=base.encoders.encode(list(prompts)), truth=truth, low=low)


def _measured(study: Study, size: Size, fed: _Fed, network: Stage, key: Key) -> dict[str, Any]:
    """right, distance, bias, error of what a network makes of one kind of low-resolution pictures."""
    seed, augmentation, preset, drawn = key
    part = f"seed{seed}/{preset}_augmentation_{augmentation}/from_{drawn}"

    def make() -> dict[str, Any]:
        low = fed.low[drawn]
        made = enlarged.enlarge(network, fed.conditioning, low, seed=seed, batch_size=32)
        standard = style_recognition.trained()
        measured = enlarged.measure(made, fed.wanted, low, fed.truth if drawn == TRUE else None, standard)
        values = enlarged.figures(measured, _expected(size.prompts, seed), np.arange(len(made)))
        pictures.write_png(study.folder / f"{part}.png", pictures.contact_sheet(list(made[:SHOWN]), columns=SHOWN))
        known = np.isfinite(values)  # nobody knows what the base's pictures should be
        return {name: float(value) for name, value, told in zip(enlarged.NAMES, values, known, strict=True) if told}

    return study.remembered(part, make, **dataclasses.asdict(size))


@functools.cache
def _expected(number: int, seed: int) -> np.ndarray:
    """Features of renders of other held-out scenes than the seed's."""
    return enlarged.reference(2 * number, 1000 + seed, 64, style_recognition.trained())


def findings(rows: Rows, seeds: Sequence[int], number: int) -> tuple[Finding, ...]:
    """Differences to the clean network on the same pictures, and colours; those that decide first."""
    found = []

    def gain(augmentation: str, drawn: str, name: str) -> np.ndarray:
        pairs = [[rows[seed, augmentation, preset, drawn][name] for preset in (CLEAN, DEGRADED)] for seed in seeds]
        return np.diff(pairs)[:, 0]

    def add(what: str, values: Sequence[float], decides: bool = False, digits: int = 3, **bound: float) -> None:
        values = tuple(float(value) for value in values)
        found.append(Finding(what=what, values=values, n=number, digits=digits, **(bound if decides else {})))

    for augmentation in _augmentations(rows):
        where, paper = f"degraded − clean, augmentation {augmentation}", augmentation == OFF
        for drawn in DRAWN:
            right = np.mean([rows[seed, augmentation, CLEAN, drawn]["right"] for seed in seeds])
            distance = gain(augmentation, drawn, "distance")
            add(f"distance to renders, {where}, base {drawn}", distance, paper, digits=4, below=0.0)
            share = gain(augmentation, drawn, "right")
            add(f"share right, {where}, base {drawn}", share, paper and right < SATURATED, above=0.0)
            # A network that is worse everywhere may still lose less when it is given a base's pictures.
            cost = distance - gain(augmentation, TRUE, "distance")
            add(f"rise of the distance from true reductions to base {drawn}, {where}", cost, digits=4)
        add(f"error of 255, {where}, fed true reductions", gain(augmentation, TRUE, "error"), digits=2)
        bias = [_bias(rows[seed, augmentation, DEGRADED, "released"]) for seed in seeds]
        told = f"largest colour bias of a channel, of 255, degraded, augmentation {augmentation}, base released"
        add(told, bias, paper, digits=2, below=MOST_BIAS)
    return tuple(sorted(found, key=lambda finding: not finding.decisive))


def _augmentations(rows: Rows) -> list[str]:
    return list(dict.fromkeys(augmentation for _, augmentation, _, _ in rows))


def _bias(row: Mapping[str, float]) -> float:
    return max(abs(row.get(f"bias_{channel}", np.nan)) for channel in ("red", "green", "blue"))


def _how(size: Size) -> str:
    return (
        f"The bundled SR64 (16 → 64, two experts), trained on for {size.steps} steps of {size.batch_size} pictures an"
        " expert; the networks of a seed on the same scenes in the same order with the same noise: low-resolution"
        " pictures clean or degraded (`cascade`), noise-conditioning augmentation as in its recipe or off, in training"
        f" and in sampling. Each enlarges the same pictures that the bundled base drew of {size.prompts} held-out"
        " prompts a seed, as released (3-kutta, 16 steps, w = 2), hastily (Euler, 6 steps, w = 2) and over-guided (AB"
        " 3, 8 steps, w = 6), and true reductions, from the same noise. Distance: Fréchet, diagonal, of picture"
        f" statistics to those of renders of {2 * size.prompts} other scenes. Right: the scorer finds all that was"
        f" asked for; it decides only where the clean network is right in less than {SATURATED:.0%}. Bias: against the"
        " pictures that were enlarged, on flat regions."
    )


def _table(rows: Rows, seeds: Sequence[int]) -> Table:
    """Every network on every kind of picture, means ± standard deviations over seeds."""

    def cell(key: tuple[str, str, str], name: str, digits: int) -> str:
        held = [rows[seed, *key] for seed in seeds]
        values = [_bias(row) if name == "bias" else row.get(name, np.nan) for row in held]
        if not np.isfinite(values).all():
            return "–"
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    lines = []
    for augmentation in _augmentations(rows):
        for drawn in (*DRAWN, TRUE):
            for preset in (CLEAN, DEGRADED):
                key = augmentation, preset, drawn
                cells = (cell(key, name, digits) for name, digits in COLUMNS.items())
                lines.append((augmentation, drawn, preset, *cells))
    return Table(
        title="Each network on each kind of picture",
        head=("augmentation", "fed", "trained on", "right", "distance", "largest bias, of 255", "error, of 255"),
        rows=tuple(lines),
    )


def _plot(study: Study, rows: Rows) -> Picture:
    """Distances above, what degradation changes of them below; a column for each augmentation."""
    told, fed = _augmentations(rows), (*DRAWN, TRUE)
    shape = {"nrows": 2, "ncols": len(told), "figsize": (4.5 * len(told), 6), "squeeze": False}
    figure, axes = plt.subplots(**shape, sharex=True, sharey="row", layout="constrained")
    places = np.arange(len(fed))
    for (above, below), augmentation in zip(axes.T, told, strict=True):
        clean, degraded = (
            np.array([[rows[seed, augmentation, preset, drawn]["distance"] for drawn in fed] for seed in study.seeds])
            for preset in (CLEAN, DEGRADED)
        )
        for values, label, shift in ((clean, CLEAN, -0.2), (degraded, DEGRADED, 0.2)):
            bars = values.std(axis=0, ddof=1) if len(values) > 1 else None
            above.bar(places + shift, values.mean(axis=0), 0.38, yerr=bars, capsize=2, label=f"trained on {label}")
        for seed, values in zip(study.seeds, 100 * (degraded / clean - 1), strict=True):
            below.plot(places, values, "o", label=f"seed {seed}")
        below.axhline(0, color="gray", linewidth=0.8)
        below.set_xticks(places, fed)
        below.set_xlabel("pictures that were enlarged")
        above.set_title(f"augmentation {augmentation}")
    axes[0, 0].set_ylabel("distance to renders")
    axes[1, 0].set_ylabel("change by degradation, %")
    axes[0, 0].legend()
    axes[1, 0].legend()
    figure.savefig(study.folder / "degradation.png", dpi=110)
    plt.close(figure)
    return Picture(file="degradation.png", caption="Lower is better; bars: standard deviation over seeds.")


def _sheets(study: Study, low: Mapping[str, enlarged.Pictures]) -> list[Picture]:
    """For each kind of base picture what the networks of the first seed make of it."""
    found, first = [], study.folder / f"seed{study.seeds[0]}"
    for drawn in DRAWN:
        files = [first / f"{preset}_augmentation_off" / f"from_{drawn}.png" for preset in (CLEAN, DEGRADED)]
        strips = [np.round(255 * plt.imread(file)[..., :3]).astype(np.uint8) for file in files]
        given = [np.kron(picture, np.ones((4, 4, 1), np.uint8)) for picture in low[drawn][:SHOWN]]
        strips.insert(0, pictures.contact_sheet(given, columns=SHOWN))
        file = f"base_{drawn.replace('-', '_')}.png"
        pictures.write_png(study.folder / file, np.concatenate(strips))
        caption = f"Base {drawn}, seed {study.seeds[0]}, and what was made of it without augmentation: clean, degraded."
        found.append(Picture(file=file, caption=caption))
    return found


CLAIM = Claim(
    number=8,
    name="degradation",
    title="Degraded training makes super-resolution robust to the base's artefacts",
    says=(
        "Super-resolution trained on randomly degraded low-resolution pictures makes better pictures of what a base"
        " model drew than the same network trained on clean reductions, and keeps their colours (bias below 2 of 255)."
    ),
    source="eDiff-I, training of the super-resolution models: random degradation as in Real-ESRGAN",
    run=run,
)
