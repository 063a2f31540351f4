"""Curves for people: a table, and a picture of one or several, CLIP score against FID."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from ediffi_jax import figures, stores
from ediffi_jax.errors import nearest
from ediffi_jax.evaluation.curves import CURVE, MEASURES, Curve
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.pictures import make_folder, write_bytes

plt = figures.pyplot("launch.evaluate", "eval")  # on import: not after hours of measuring

KINDS = ("png", "svg")
NAMES = dict(zip(MEASURES, ("FID", "KID", "CLIP score", "precision", "recall", "right"), strict=True))


def write(curves: Sequence[Curve], out: str | os.PathLike) -> str:
    """Writes curve.png, curve.svg and curve.md into a folder; returns the table.

    Raises:
        EvaluationError: curves that do not compare. PictureError: the folder cannot be written.
    """
    folder, stem = stores.at(out).expanduser(), CURVE.removesuffix(".json")
    text = table(curves)
    for kind in KINDS:
        plot(curves, folder / f"{stem}.{kind}")
    write_bytes(folder / f"{stem}.md", text.encode())
    return text


def table(curves: Sequence[Curve]) -> str:
    """Markdown: a row for each weight of each curve, means ± standard deviations over seeds."""
    names = [m for m in MEASURES if any(not np.isnan(c.mean(m, w)) for c in curves for w in c.guidance)]
    lines = [f"| run | w | n | seeds | {' | '.join(NAMES[m] for m in names)} |", "|---" * (4 + len(names)) + "|"]
    for curve in curves:
        for w in curve.guidance:
            cells = (_cell(curve.mean(m, w), curve.spread(m, w)) for m in names)
            seeds = len(curve.values("fid", w))
            lines.append(f"| {curve.label} | {w:g} | {curve.points[0].n} | {seeds} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{curve.label}: {curve.conditions()}" for curve in curves)]) + "\n"


def _cell(mean: float, spread: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.4g}" if np.isnan(spread) else f"{mean:.4g} ± {spread:.2g}"


def plot(curves: Sequence[Curve], path: str | os.PathLike, y: str = "fid") -> epath.Path:
    """Draws CLIP score against FID (or another measure), a mark for each weight, bars of ± one standard deviation.

    Args:
        curves: of one or several runs.
        path: .png or .svg.
        y: of `MEASURES`.

    Raises:
        EvaluationError: no such measure or kind of picture; nothing to draw; or curves that do not compare.
    """
    file = stores.at(path).expanduser()
    if y not in MEASURES:
        raise EvaluationError(f"unknown measure {y!r}{nearest(str(y), MEASURES)}")
    if file.suffix.lower().removeprefix(".") not in KINDS:
        raise EvaluationError(f"{file}: unknown kind of picture; expected .png or .svg")
    check_comparable(curves)
    buffer, kind = io.BytesIO(), file.suffix[1:].lower()
    # Neither date nor random names in the file: the same numbers are the same picture.
    with plt.rc_context({"svg.hashsalt": "ediffi_jax"}):
        figure, axes = plt.subplots(figsize=(7.2, 5.2), layout="constrained")
        for curve in curves:
            _draw(axes, curve, y)
        network = curves[0].settings["network"]["name"]
        axes.set(xlabel="CLIP score (mean cosine)", ylabel=f"{NAMES[y]}, features: {network}")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        axes.set_title(_wrapped(curves[0]), fontsize=7.5, loc="left")
        figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)
    make_folder(file.parent, remote=True)
    write_bytes(file, buffer.getvalue())
    return file


def check_comparable(curves: Sequence[Curve]) -> None:
    """Raises EvaluationError if there is no curve, or if their numbers were not measured alike."""
    if not curves:
        raise EvaluationError("no curve to draw; expected at least one run")
    first = curves[0]
    for curve in curves[1:]:
        for key in ("network", "clip", "resize", "n"):
            ours, theirs = first.settings.get(key), curve.settings.get(key)
            if ours != theirs:
                raise EvaluationError(f"{curve.label} has another {key} than {first.label}: they do not compare")
        held = [c.settings["reference"]["fingerprint"] for c in (first, curve)]
        if held[0] != held[1]:
            raise EvaluationError(f"{curve.label} has other reference pictures than {first.label}: they do not compare")


def _draw(axes: Any, curve: Curve, y: str) -> None:
    xs, ys = ([curve.mean(name, w) for w in curve.guidance] for name in ("clip_score", y))
    dx, dy = ([np.nan_to_num(curve.spread(name, w)) for w in curve.guidance] for name in ("clip_score", y))
    label = f"{curve.label} (n = {curve.points[0].n}, {len(curve.seeds)} seeds)"
    axes.errorbar(xs, ys, dy, dx, marker="o", markersize=4, linewidth=1.2, capsize=2, label=label)
    for w, *place in zip(curve.guidance, xs, ys, strict=True):
        axes.annotate(f"w={w:g}", place, textcoords="offset points", xytext=(5, 5), fontsize=8)


def _wrapped(curve: Curve) -> str:
    parts = curve.conditions().split("; ")
    return "; ".join(parts[:2]) + ";\n" + "; ".join(parts[2:])
