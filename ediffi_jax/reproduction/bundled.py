"""What the claims share that train nothing: the release up to a resolution, its base sampled with few evaluations.

Their pictures depend on (release, prompts, seed, wishes) alone, and a prompt's noise on its place in the list: two
conditions of a seed are compared picture by picture, from the same noise.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ediffi_jax import figures
from ediffi_jax.cascade import Cascade, load
from ediffi_jax.evaluation.inputs import up_to
from ediffi_jax.reproduction.claim import Finding
from ediffi_jax.stage import CascadeError

plt = figures.pyplot("launch.reproduce", "eval")

SAMPLER, STEPS = "deis_ab3", 10  # of the base: 11 evaluations where the default has 49
KEPT = 6  # pictures of a part that are kept for people

Pictures = UInt8[np.ndarray, "n r r 3"]
PerSeed = tuple[float, ...]


def opened(name: str, pixels: int = 1) -> Cascade:
    """The release without the stages after the first one of at least so many pixels.

    Raises:
        CascadeError: it has none. ReleaseError, EncoderError: as `cascade.load`.
    """
    cascade = load(name)
    for stage in cascade.stages:
        if stage.spec.resolution >= pixels:
            return up_to(cascade, stage.spec.name)
    raise CascadeError(f"{name} makes pictures of {stage.spec.resolution} pixels; expected at least {pixels}")


def draw(cascade: Cascade, prompts: Sequence[str], seed: int, **wishes: Any) -> Pictures:
    """A picture of each prompt with the release's guidance; `wishes` as in `Cascade.sample`."""
    base = cascade.stages[0].spec.name
    return cascade.sample(prompts, seed=seed, sampler={base: SAMPLER}, steps={base: STEPS}, progress=False, **wishes)


def how(cascade: Cascade) -> str:
    """A sentence on what `draw` does."""
    base, last = (cascade.stages[i].spec for i in (0, -1))
    up = "" if base is last else f", the other stages as in the release, up to {last.resolution}x{last.resolution}"
    return (
        f"Release {cascade.folder.name!r} ({cascade.fingerprint}): stage {base.name!r} at"
        f" {base.resolution}x{base.resolution} with {STEPS} steps of {SAMPLER} and the release's guidance,"
        f" {base.sampler.guidance:g}{up}; one picture a prompt, the same noise in all conditions of a seed. Seeds are"
        " prompts and noise; the network is one."
    )


def coded(pictures: Pictures) -> dict[str, Any]:
    """The first `KEPT` pictures as JSON can hold them."""
    kept = np.ascontiguousarray(pictures[:KEPT])
    return {"shape": list(kept.shape), "bytes": base64.b64encode(kept.tobytes()).decode()}


def decoded(kept: Mapping[str, Any]) -> Pictures:
    """What `coded` was given, up to `KEPT`."""
    return np.frombuffer(base64.b64decode(kept["bytes"]), np.uint8).reshape(kept["shape"])


def minus(what: str, a: PerSeed, b: PerSeed, n: int, **bounds: Any) -> Finding:
    """The finding a - b, seed by seed: conditions of a seed share prompts and noise."""
    return Finding(what=what, values=tuple(x - y for x, y in zip(a, b, strict=True)), n=n, **bounds)


def mean_and_spread(values: PerSeed) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over seeds; 0 for one seed, so that it can be drawn as a bar."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def cell(values: PerSeed, digits: int = 3) -> str:
    """ "mean ± spread" for a table."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def sheet(
    path: Path, rows: Mapping[str, Pictures], captions: Sequence[str], boxes: Sequence[Sequence[Any]] = ()
) -> None:
    """Writes pictures as PNG, a row for each name, a column for each caption; `boxes` outline fractions of a column."""
    figure, grid = plt.subplots(
        len(rows), len(captions), figsize=(2.0 * len(captions), 2.15 * len(rows)), layout="constrained", squeeze=False
    )
    for axes_row, (name, pictures) in zip(grid, rows.items()):
        for column, (axes, picture) in enumerate(zip(axes_row, pictures)):
            axes.imshow(picture, interpolation="nearest", extent=(0, 1, 1, 0))
            axes.set(xticks=[], yticks=[])
            for (x0, y0, x1, y1), colour in zip(boxes[column] if boxes else (), ("white", "black")):
                axes.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
        axes_row[0].set_ylabel(name, fontsize=9)
    for axes, caption in zip(grid[-1], captions):
        axes.set_xlabel(_wrapped(caption), fontsize=6.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _wrapped(text: str, width: int = 34) -> str:
    lines = [""]
    for word in text.split():
        lines = [*lines, word] if len(lines[-1]) + len(word) >= width else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return "\n".join(lines)
