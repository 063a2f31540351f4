"""Cross-attention over the noise level: when is the text looked at, and when does attention rest on the null token?

Held-out scenes as training shows them, noised at the midpoints of equal cells of p(σ), each level seen by the
expert that owns it. Shares are means over layers, heads, pixels and pictures; without a picture for CLIP the text's
and the null token's sum to 1, so what the one gains the other loses.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ediffi_jax.attention_maps import maps_fn, shares
from ediffi_jax.cascade import Cascade, load
from ediffi_jax.conditioning import Conditioning, select
from ediffi_jax.evaluation import protocols
from ediffi_jax.evaluation.quantile_loss import midpoints
from ediffi_jax.evaluation.scenes_accuracy import box_average
from ediffi_jax.reproduction import tree_runs
from ediffi_jax.reproduction.bundled import opened, plt
from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.study import Study
from ediffi_jax.stage import TEXT, Stage

# (pictures a seed, noise levels: a multiple of 4)
SIZES = {"seconds": (4, 4), "minutes": (64, 16), "hours": (128, 24)}
TOLD = {"both": TEXT, "T5 alone": ("t5",), "CLIP alone": ("clip_text",)}
OWN = "own"  # a model of this seed, told by both
SOURCE = 64  # resolution of the renders that the base's pictures are averaged from, as in training
MOST = 0.5  # "nearly all" is at least more than half

Row = dict[str, Any]  # "shares": {part: share}, "null": {block: [share of each head]}


def run(study: Study) -> Result:
    """See `Claim.run`.

    Raises:
        Interrupted: stopped while training; calling again continues.
    """
    number, levels = SIZES[study.budget]
    cascade = functools.cache(lambda: opened(study.cascade))
    rows = {}
    for seed in study.seeds:
        asked = {told: (cascade, encoders) for told, encoders in TOLD.items()}
        asked[OWN] = functools.partial(_own, study, seed), TEXT
        rows[seed] = {
            name: study.remembered(
                f"seed{seed}/{name.replace(' ', '_')}",
                functools.partial(_measure, model, seed, number, levels, encoders),
                pictures=number, levels=levels,
            )
            for name, (model, encoders) in asked.items()
        }  # fmt: skip
    return _result(rows, number, levels, cascade().stages[0], study.folder)


def _own(study: Study, seed: int) -> Cascade:
    """A single model trained from scratch, which other claims branch."""
    return load(tree_runs.base(study, seed, "late"))


def _measure(
    model: Callable[[], Cascade], seed: int, number: int, levels: int, encoders: Sequence[str]
) -> dict[str, Any]:
    """The shares at every level, on both sides of every cut with the same noise, and where sampling ends and begins."""
    cascade = model()
    stage = cascade.stages[0]
    images, cond = _pictures(cascade, seed, number, encoders)
    maps = maps_fn(stage, cond)

    def look(sigma: float, key: jax.Array) -> Row:
        found = maps(images + sigma * jax.random.normal(key, images.shape), sigma)
        null = {block: np.asarray(weights[..., -1]).mean(axis=(0, 2)).tolist() for block, weights in found.items()}
        return {"shares": {part: float(of.mean()) for part, of in shares(found, cond).items()}, "null": null}

    keys, grid = jax.random.split(jax.random.key(seed), levels + 1), stage.spec.sampler
    quantiles = jnp.asarray(midpoints(levels), jnp.float32)
    curve = [look(float(sigma), key) for sigma, key in zip(stage.ensemble.noise.quantile(quantiles), keys)]
    cuts = [
        [look(float(side), keys[-1]) for side in (np.nextafter(np.float32(cut), np.float32(0)), cut)]
        for cut in stage.ensemble.cut_sigmas
    ]
    tokens = sum(np.asarray(mask).sum(axis=1) for mask in (cond.clip_text_mask, cond.t5_mask))
    ends = [look(sigma, keys[-1]) for sigma in (grid.sigma_min, grid.sigma_max)]
    return {"curve": curve, "cuts": cuts, "ends": ends, "even": float(np.mean(1 / (tokens + 1)))}


def _pictures(cascade: Cascade, seed: int, number: int, encoders: Sequence[str]) -> tuple[jax.Array, Conditioning]:
    """Scenes that training did not draw, at the base's size in [-1, 1], and their captions."""
    drawn = protocols.of_scenes(number, seed, resolution=SOURCE)
    pixels = np.stack([drawn.picture(index) for index in range(number)])
    images = box_average(pixels, cascade.stages[0].spec.resolution) / 127.5 - 1.0
    return jnp.asarray(images, jnp.float32), select(cascade.encoders.encode(list(drawn.prompts)), encoders)


def _curve(row: Mapping[str, Any], part: str) -> np.ndarray:
    """A part's share at every level; "text" is both encoders' together."""
    names = TEXT if part == "text" else (part,)
    return np.array([sum(at["shares"][name] for name in names) for at in row["curve"]])


def _fall(row: Mapping[str, Any]) -> float:
    curve = _curve(row, "null")
    return _low(curve) - _high(curve)


def _low(curve: np.ndarray) -> float:
    return float(curve[: len(curve) // 4].mean())


def _high(curve: np.ndarray) -> float:
    return float(curve[-(len(curve) // 4) :].mean())


Rows = Mapping[int, Mapping[str, Mapping[str, Any]]]


def _result(rows: Rows, number: int, levels: int, stage: Stage, folder: Path) -> Result:
    def finding(what: str, of: Callable[[Mapping[str, Any]], float], told: str = "both", **bounds: float) -> Finding:
        return Finding(what=what, values=tuple(of(row[told]) for row in rows.values()), n=number, **bounds)

    def gained(part: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda row: _high(_curve(row, part)) - _low(_curve(row, part))

    findings = [
        finding(
            "share on text at high noise (top quarter of p(σ)) less at low noise (lowest quarter);"
            " of the null token, low less high, the same",
            gained("text"),
            above=0.0,
        ),
        finding("share on the null token at low noise (lowest quarter)", lambda r: _low(_curve(r, "null")), above=MOST),
        finding("share on the null token at high noise (top quarter)", lambda row: _high(_curve(row, "null"))),
        finding("null token at the lowest level of sampling", lambda row: row["ends"][0]["shares"]["null"]),
        finding("null token at the highest level of sampling", lambda row: row["ends"][1]["shares"]["null"]),
        finding("share of the null token if all tokens were alike, for comparison", lambda row: row["even"]),
        finding("share on T5, high less low noise", gained("t5")),
        finding("share on CLIP text, high less low noise", gained("clip_text")),
        finding("told by T5 alone: share on T5, high less low noise", gained("t5"), "T5 alone"),
        finding("told by CLIP alone: share on CLIP text, high less low noise", gained("clip_text"), "CLIP alone"),
        finding("one model trained from scratch a seed: null token, low less high noise", _fall, OWN),
        finding(
            "one model trained from scratch a seed: null token at low noise", lambda r: _low(_curve(r, "null")), OWN
        ),
        *_by_resolution(finding, rows, stage),
        *_experts(finding, levels, stage),
    ]
    _draw(rows, levels, stage, folder / "shares.png")
    return Result(
        findings=tuple(findings),
        how=(
            f"Stage {stage.spec.name!r} of the release, which has {stage.ensemble.num_experts} experts; {number} scenes"
            f" a seed that training did not draw, with captions in free phrasing, noised at {levels} quantiles of"
            " p(σ). Softmax weights of all cross-attention layers; padding is masked, so tokens are a caption's own"
            " and the null token. Seeds are scenes and noise, and the network is one, but for the models trained from"
            " scratch: those are the small ones, of one expert and with cross-attention at 4×4 alone, that the claims"
            " about experts branch."
        ),
        tables=(_by_layer(rows, levels),),
        pictures=(
            Picture(
                file="shares.png",
                caption=(
                    "Left: where attention goes, over the noise level; right: the share of the null token in each"
                    " layer, whose name says at which level of the U-Net. Means over seeds, bands of ± one standard"
                    " deviation; vertical lines are the cuts between experts."
                ),
            ),
        ),
        remarks=(
            "The paper's base attends to the text at 32, 16 and 8 of 64 pixels; in the coarsest layers here a pixel"
            " covers about an object, and the mean counts them as any other.",
        ),
    )


def _by_resolution(finding: Callable[..., Finding], rows: Rows, stage: Stage) -> list[Finding]:
    """The null token's share in the layers of each resolution."""
    groups: dict[int, list[str]] = {}
    for block in _blocks(rows):
        groups.setdefault(_resolution(block, stage), []).append(block)

    def share(blocks: list[str], of: Callable[[np.ndarray], float], row: Mapping[str, Any]) -> float:
        return of(np.mean([_null(row, block).mean(axis=1) for block in blocks], axis=0))

    return [
        finding(f"null token in layers of {side}×{side}, {noise} noise", functools.partial(share, blocks, of))
        for side, blocks in sorted(groups.items(), reverse=True)
        for noise, of in (("low", _low), ("high", _high))
    ]


def _resolution(block: str, stage: Stage) -> int:
    """Of a block by its name: down1_0 and up1_0 are of level 1, middle ones of the last."""
    level = re.fullmatch(r"(?:down|up)(\d+)_\d+", block)
    depth = int(level[1]) if level else len(stage.spec.model["channel_mults"]) - 1
    return stage.spec.resolution >> depth


def _experts(finding: Callable[..., Finding], levels: int, stage: Stage) -> list[Finding]:
    """What changes inside an expert's interval, and what at a cut, where only the expert does."""
    found, quantiles = [], midpoints(levels)
    for number, interval in enumerate(stage.ensemble.intervals):
        inside = np.flatnonzero((quantiles > interval.low) & (quantiles < interval.high))
        if len(inside) > 1:
            first, last = inside[0], inside[-1]
            where = f"expert {number + 1} (quantiles {interval.low:g} to {interval.high:g})"
            what = f"null token, lowest less highest level of {where}"
            found.append(
                finding(what, lambda row, a=first, b=last: float(_curve(row, "null")[a] - _curve(row, "null")[b]))
            )
    for index, cut in enumerate(stage.ensemble.cuts):
        what = f"null token, below less above the cut at quantile {cut:g} (same pictures and noise, another expert)"
        found.append(finding(what, functools.partial(_jump, index)))
    return found


def _jump(index: int, row: Mapping[str, Any]) -> float:
    below, above = row["cuts"][index]
    return below["shares"]["null"] - above["shares"]["null"]


def _null(row: Mapping[str, Any], block: str) -> np.ndarray:
    """Shares of the null token, [levels, heads]."""
    return np.array([at["null"][block] for at in row["curve"]])


def _blocks(rows: Rows) -> list[str]:
    return list(next(iter(rows.values()))["both"]["curve"][0]["null"])


def _by_layer(rows: Rows, levels: int) -> Table:
    """Means over seeds, of all heads and of the head that has most at low noise."""
    quarter, lines = levels // 4, []
    for block in _blocks(rows):
        null = np.mean([_null(row["both"], block) for row in rows.values()], axis=0)
        low, high = null[:quarter].mean(axis=0), null[-quarter:].mean(axis=0)
        most = int(low.argmax())
        lines.append((block, f"{low.mean():.3f}", f"{high.mean():.3f}", f"{low[most]:.3f}", f"{high[most]:.3f}"))
    head = ("layer", "low noise", "high noise", "one head, low noise", "the same head, high noise")
    return Table(
        title="Share of the null token by layer; the head is the one with most at low noise",
        head=head,
        rows=tuple(lines),
    )


def _draw(rows: Rows, levels: int, stage: Stage, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    xs = midpoints(levels)

    def line(axes: Any, values: np.ndarray, label: str) -> None:
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
        drawn = axes.plot(xs, mean, marker="o", markersize=3, label=label)[0]
        axes.fill_between(xs, mean - spread, mean + spread, color=drawn.get_color(), alpha=0.2)

    for part, name in (("t5", "T5"), ("clip_text", "CLIP text"), ("null", "null token")):
        line(left, np.array([_curve(row["both"], part) for row in rows.values()]), name)
    even = float(np.mean([row["both"]["even"] for row in rows.values()]))
    left.axhline(even, color="gray", linestyle="--", linewidth=1, label="null token, were all tokens alike")
    for block in _blocks(rows):
        line(right, np.array([_null(row["both"], block).mean(axis=1) for row in rows.values()]), block)
    for axes, title in ((left, "share of attention"), (right, "share of the null token")):
        for cut in stage.ensemble.cuts:
            axes.axvline(cut, color="gray", linestyle=":")
        axes.set(xlabel="quantile of the noise level", ylabel=title, xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


CLAIM = Claim(
    number=6,
    name="attention",
    title="Cross-attention turns from the text to the null token as noise falls",
    says="At high noise pixels attend to the words; at low noise nearly all cross-attention rests on the null token.",
    source="eDiff-I, Fig. 3",
    run=run,
)
