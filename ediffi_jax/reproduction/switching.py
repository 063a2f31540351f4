"""Prompt switching: how much of the denoising must a prompt see for the picture to be its own?

The base begins with one prompt and goes on with another (`guidance.switch_prompt`). "The last x % of denoising" are
the last x % of the solver's steps, from the same noise for every x. The solver keeps nothing from one step to the
next (DEIS of order 1), so no memory of the first prompt outlives the switch.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ediffi_jax import guidance, samplers
from ediffi_jax.cascade import Cascade, to_uint8
from ediffi_jax.conditioning import Conditioning, select
from ediffi_jax.evaluation import prompt_switching
from ediffi_jax.evaluation.prompt_switching import PARTS, Case
from ediffi_jax.release import SamplerSpec
from ediffi_jax.reproduction.bundled import Pictures, opened, plt
from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.study import Study
from ediffi_jax.stage import INITIAL_NOISE, TEXT, Stage, image_keys, noise_grid

SHARES = (0.0, 0.07, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SHOWN = (0.0, 0.07, 0.3, 0.6, 0.8, 1.0)  # in the picture of pictures
SAMPLER, STEPS = "deis_ab1", 30
NEARLY_ALL = 0.9  # of the pictures: what counts as "unchanged" and as "entirely"
# (pairs of prompts a seed, pictures at a time, which divides it)
SIZES = {"seconds": (2, 2), "minutes": (32, 16), "hours": (64, 32)}
ROWS = 4

Draw = Callable[[float], Pictures]  # share of the steps that see the second prompt -> a picture of each pair
Parts = Mapping[float, Mapping[str, Any]]  # share -> what a remembered part holds


def switch_level(sigmas: Float[np.ndarray, "n"], share: float) -> float:
    """The sigma of `guidance.switch_prompt` from which on the last `share` of the steps see the second prompt.

    It lies between two levels of the grid, so that each evaluation of a solver with one a step falls on its side.
    """
    steps = len(sigmas) - 1
    first = steps - round(share * steps)
    if first == steps:
        return 0.0
    return float(np.sqrt(sigmas[first - 1] * sigmas[first])) if first else float("inf")


def run(study: Study) -> Result:
    """See `Claim.run`."""
    number, batch = SIZES[study.budget]
    cascade = functools.cache(lambda: opened(study.cascade))
    program = functools.cache(lambda: _program(cascade().stages[0]))
    seeds: dict[int, Parts] = {}
    for seed in study.seeds:
        cases = prompt_switching.make_cases(number, seed)
        draw = functools.cache(functools.partial(_drawing, cascade, program, cases, seed, batch))
        seeds[seed] = {
            share: study.remembered(
                f"seed{seed}/last{100 * share:03.0f}",
                functools.partial(_part, draw, cases, share),
                pairs=number, sampler=SAMPLER, steps=STEPS,
            )
            for share in SHARES
        }  # fmt: skip
    return _result(seeds, number, cascade().stages[0], study.folder)


def _how(stage: Stage) -> SamplerSpec:
    return dataclasses.replace(stage.spec.sampler, name=SAMPLER, steps=STEPS)


def _program(stage: Stage) -> Callable[..., Any]:
    """(first prompts, second prompts, switch level, keys) -> pictures in [-1, 1]; one program for all of them."""
    settings, shape = _how(stage), (stage.spec.resolution, stage.spec.resolution, 3)

    @jax.jit
    def program(params: Any, first: Conditioning, second: Conditioning, level: Any, keys: Any) -> Any:
        own = dataclasses.replace(stage, params=params, devices=())
        before, after = (own.denoise_fn(cond, guidance=settings.guidance) for cond in (first, second))
        switched = guidance.switch_prompt(before, after, level)
        noise = samplers.initial_noise(jax.vmap(lambda key: jax.random.fold_in(key, INITIAL_NOISE))(keys), shape)
        return samplers.get(SAMPLER)(switched, noise, noise_grid(settings))

    return functools.partial(program, stage.params)


def _drawing(
    cascade: Callable[[], Cascade], program: Callable[[], Callable], cases: Sequence[Case], seed: int, batch: int
) -> Draw:
    """A picture of every case, always from the same noise."""
    conds = [
        jax.tree.map(np.asarray, select(cascade().encoders.encode([case.prompts[which] for case in cases]), TEXT))
        for which in (0, 1)
    ]
    sigmas = noise_grid(_how(cascade().stages[0]))

    def draw(share: float) -> Pictures:
        level, drawn = np.float32(switch_level(sigmas, share)), []
        for begin in range(0, len(cases), batch):
            rows = slice(begin, begin + batch)
            keys = image_keys(np.uint32(seed), np.arange(begin, begin + batch, dtype=np.uint32), stage_index=0)
            drawn.append(program()(*(jax.tree.map(lambda leaf: leaf[rows], cond) for cond in conds), level, keys))  # noqa: B023 (used at once)
        return to_uint8(np.concatenate(drawn))

    return draw


def _part(draw: Callable[[], Draw], cases: Sequence[Case], share: float) -> dict[str, Any]:
    pictures = draw()(share)
    read = prompt_switching.read(pictures, cases)
    coded = base64.b64encode(pictures.tobytes()).decode()
    return {"side": pictures.shape[1], "pictures": coded, "read": {part: read[part].tolist() for part in PARTS}}


def _pictures(part: Mapping[str, Any]) -> Pictures:
    flat = np.frombuffer(base64.b64decode(part["pictures"]), np.uint8)
    return flat.reshape(-1, part["side"], part["side"], 3)


def _found(seeds: Mapping[int, Parts], share: float, part: str, which: int) -> tuple[float, ...]:
    """For every seed the share of pictures in which a part of the first (0) or second (1) prompt is found."""
    return tuple(float(np.mean([row[which] for row in parts[share]["read"][part]])) for parts in seeds.values())


def _moved(seeds: Mapping[int, Parts], share: float) -> tuple[float, ...]:
    """For every seed the mean distance of a value from that of the picture without a switch, in levels of 255."""
    return tuple(
        float(np.abs(_pictures(parts[share]).astype(float) - _pictures(parts[0.0])).mean()) for parts in seeds.values()
    )


def _result(seeds: Mapping[int, Parts], number: int, stage: Stage, folder: Path) -> Result:
    def share(what: str, x: float, part: str, which: int, above: float | None = None) -> Finding:
        of = f"objects of prompt #{which + 1}" if part == "objects" else f"{part} of #{which + 1}"
        text = f"#2 in the last {100 * x:.0f} %{what}: share of pictures with the {of}"
        return Finding(what=text, values=_found(seeds, x, part, which), n=number, above=above, share=True)

    findings = [
        share("", 0.07, "objects", 0, above=NEARLY_ALL),
        share(" (switched within the first 40 %)", 0.8, "objects", 1, above=NEARLY_ALL),
        share(" (switched at 40 %)", 0.6, "objects", 1),
        *(share("", 0.3, part, which) for part in PARTS for which in (0, 1)),
        share(" (never switched)", 0.0, "objects", 0),
        share(" (from the beginning)", 1.0, "objects", 1),
        *(
            Finding(what=f"#2 in {name}: mean change, levels of 255", values=_moved(seeds, x), n=number, digits=1)
            for x, name in ((0.07, "the last 7 %"), (0.3, "the last 30 %"), (1.0, "all of it"))
        ),
    ]  # fmt: skip
    _draw_curves(seeds, stage, folder / "curves.png")
    _draw_pictures(seeds, folder / "pictures.png")
    return Result(
        findings=tuple(findings),
        how=(
            f"Stage {stage.spec.name!r} of the release ({stage.spec.resolution}×{stage.spec.resolution} pixels),"
            f" {number} pairs of prompts a seed. The prompts of a pair name two objects each and share no colour and no"
            " shape; in one the objects stand side by side, in the other one above the other. One picture a pair and"
            f" switch, from the same noise; {STEPS} steps of {SAMPLER}, guidance {stage.spec.sampler.guidance:g}. A"
            " picture has the objects of a prompt if the exact scorer finds both in their colours and shapes."
            " Seeds are pairs and noise; the network is one."
        ),
        tables=(_table(seeds, stage),),
        pictures=(
            Picture(file="curves.png", caption="What is found of either prompt; bars are ± one deviation over seeds."),
            Picture(file="pictures.png", caption=_caption(next(iter(seeds)))),
        ),
        remarks=(
            "Which noise levels the last x % of the steps are depends on the grid; the table says at which the prompt"
            " changes.",
        ),
    )  # fmt: skip


def _caption(seed: int) -> str:
    return f"The first {ROWS} pairs of seed {seed} as the base draws them; each row from one noise."


def _table(seeds: Mapping[int, Parts], stage: Stage) -> Table:
    settings = _how(stage)
    sigmas, noise = noise_grid(settings), stage.ensemble.noise
    rows = []
    for x in SHARES:
        level = switch_level(sigmas, x)
        first = STEPS - round(x * STEPS)
        quantile = f"{float(noise.cdf(level)):.3f}" if 0 < level < np.inf else "-"
        cells = [f"{np.mean(_found(seeds, x, part, which)):.3f}" for part in PARTS for which in (0, 1)]
        moved = f"{np.mean(_moved(seeds, x)):.1f}"
        at = f"{level:.3g}" if 0 < level < np.inf else "-"
        rows.append((f"{100 * x:.0f} %", f"{STEPS - first} of {STEPS}", at, quantile, *cells, moved))
    head = ("#2 in the last", "steps", "switch at σ", "quantile of p(σ)")
    names = tuple(f"{part} of #{which + 1}" for part in PARTS for which in (0, 1))
    return Table(title="Shares of pictures, means over seeds", head=(*head, *names, "change, of 255"), rows=tuple(rows))


def _draw_curves(seeds: Mapping[int, Parts], stage: Stage, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    xs = [100 * x for x in SHARES]

    def line(axes: Any, part: str, which: int, **style: Any) -> None:
        values = np.array([_found(seeds, x, part, which) for x in SHARES])
        spread = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
        axes.errorbar(xs, values.mean(axis=1), spread, capsize=3, marker="o", markersize=4, **style)

    for which, colour in ((0, "tab:blue"), (1, "tab:orange")):
        line(left, "objects", which, color=colour, label=f"both objects of prompt #{which + 1}")
    for part, colour in zip(("colours", "shapes", "layout"), ("tab:red", "tab:green", "tab:purple")):
        line(right, part, 1, color=colour, label=f"{part} of prompt #2")
        line(right, part, 0, color=colour, linestyle=":", label=f"{part} of prompt #1")
    for axes in (left, right):
        axes.set(xlabel="prompt #2 in the last … % of the steps", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    left.set_ylabel("share of pictures")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_pictures(seeds: Mapping[int, Parts], path: Path) -> None:
    seed, parts = next(iter(seeds.items()))
    columns = {x: _pictures(parts[x]) for x in SHOWN}
    count = min(ROWS, len(columns[0.0]))
    cases = prompt_switching.make_cases(count, seed)
    figure, grid = plt.subplots(
        count, len(SHOWN), figsize=(1.7 * len(SHOWN), 2.1 * count), layout="constrained", squeeze=False
    )
    for row, case in enumerate(cases):
        for axes, (x, pictures) in zip(grid[row], columns.items()):
            axes.imshow(pictures[row], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"last {100 * x:.0f} %", fontsize=9)
        short = [prompt.removesuffix(" on a gray background") for prompt in case.prompts]
        grid[row][0].set_xlabel(f"#1 {short[0]}", fontsize=7, loc="left")
        grid[row][-1].set_xlabel(f"#2 {short[1]}", fontsize=7, loc="right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


CLAIM = Claim(
    number=5,
    name="switching",
    title="Prompt switching: early steps decide, the last ones hardly listen",
    says=(
        "Another prompt in the last 7 % of denoising leaves the picture as it was; switched within the first 40 %, the"
        " picture follows the second prompt entirely; in between it keeps the layout and changes locally."
    ),
    source="eDiff-I, Fig. 4",
    run=run,
)
