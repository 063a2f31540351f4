"""A picture of a plan: what is in a chip's memory, and which part of the machine limits the time."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ediffi_jax import figures
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.inference import InferencePlan
from ediffi_jax.planning.inference_text import describe as describe_inference
from ediffi_jax.planning.measuring import Memory
from ediffi_jax.planning.plan import GB, Plan
from ediffi_jax.planning.roofline import PARTS, Roofline
from ediffi_jax.planning.text import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")
# Colours that stay apart for colour-blind readers (Okabe and Ito's palette).
COLOURS = {
    "parameters": "#0072B2", "ema": "#56B4E9", "optimizer": "#009E73", "encoders": "#CC79A7", "batch": "#999999",
    "temporaries": "#E69F00", "results": "#F0E442", "code": "#D55E00",
}  # fmt: skip
LABELS = {"compute": "arithmetic", "memory": "HBM", "ici": "ICI (in the slice)", "dcn": "DCN (between slices)"}


def check_format(path: str, what: str = "train") -> str:
    """The format that a file's name asks for.

    Raises:
        PlanError: any but png and svg, or a question that has no picture. MissingExtra: no matplotlib.
    """
    if what == "embeddings":
        raise PlanError("--plot is of train, sample and encode; the table of embeddings has no picture")
    found = Path(path).suffix.lstrip(".").lower()
    if found not in FORMATS:
        raise PlanError(f"--plot={path}: expected a name that ends in .png or .svg")
    _pyplot()  # before minutes of compiling
    return found


def _pyplot() -> ModuleType:
    return figures.pyplot("launch.plan --plot", "plan")


def draw(plan: Plan | InferencePlan, kind: str) -> bytes:
    """The picture as a file's bytes.

    Args:
        plan: that fits, on chips whose figures are known.
        kind: "png" or "svg".

    Raises:
        PlanError: nothing to draw.
    """
    if isinstance(plan, Plan):
        words, parts = describe(plan), {"step": (plan.measured.memory, plan.roofline)}
    else:
        words = describe_inference(plan)
        parts = {name: (part.measured.memory, part.roofline) for name, part in plan.parts.items()}
    if any(memory is None or line is None for memory, line in parts.values()):
        raise PlanError("--plot: nothing to draw of a plan that does not fit, or of devices without stated figures")
    plt = _pyplot()
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 2.6 + 1.4 * len(parts)), height_ratios=(1 + 0.5 * len(parts), 1 + 2 * len(parts))
    )  # fmt: skip
    _memory(above, {name: memory for name, (memory, _) in parts.items()}, plan.topology.chip.hbm_bytes)
    _time(below, {name: line for name, (_, line) in parts.items()})
    figure.suptitle("\n".join(words.splitlines()[:2]), fontsize=9, x=0.02, ha="left")
    figure.tight_layout()
    file = io.BytesIO()
    # Without a date, and with ids that do not change, the same plan is the same file.
    with plt.rc_context({"svg.hashsalt": "plan"}):
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return file.getvalue()


def _memory(axes: Axes, parts: dict[str, Memory], available: int) -> None:
    for row, memory in enumerate(parts.values()):
        left = 0.0
        for name, size in dataclasses.asdict(memory).items():
            if size:
                label = name if name not in axes.get_legend_handles_labels()[1] else None
                axes.barh(row, size / GB, left=left, height=0.6, color=COLOURS[name], label=label)
                if size > 0.06 * available:
                    middle = {"ha": "center", "va": "center", "fontsize": 8}
                    axes.text(left + size / GB / 2, row, f"{size / GB:.1f}", **middle)
                left += size / GB
        axes.text(left, row, f" {memory.used / GB:.2f} GB", va="center", fontsize=8)
    axes.axvline(available / GB, color="black", linestyle="--", linewidth=1)
    axes.text(available / GB, len(parts) - 0.45, f"{available / GB:.1f} GB available ", ha="right", fontsize=8)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.set(xlim=(0, 1.05 * available / GB), ylim=(-0.6, len(parts) - 0.2), xlabel="HBM of a chip, GB")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / len(parts)), ncols=8, fontsize=7, frameon=False)


def _time(axes: Axes, parts: dict[str, Roofline]) -> None:
    names, row, longest = [], 0, max(line.seconds for line in parts.values())
    for name, line in parts.items():
        for part in PARTS:
            seconds = getattr(line, f"{part}_seconds")
            limits = part == line.limited_by
            axes.barh(row, seconds, height=0.6, color="#D55E00" if limits else "#56B4E9")
            note = f" {1000 * seconds:,.1f} ms" + ("  limits it" if limits else "")
            axes.text(seconds, row, note, va="center", fontsize=8)
            names.append(f"{name}: {LABELS[part]}" if len(parts) > 1 else LABELS[part])
            row += 1
    axes.set_yticks(range(row), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.25 * longest), xlabel="least seconds, each at its full speed and overlapped with the others")
