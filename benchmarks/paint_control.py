"""Paint-with-words on the scenes cascade: do objects go where they are painted, and what does it cost?

    python -m benchmarks.paint_control --number=200 --weights=0,0.2,0.4,0.8,1.6 --out=paint_control

Each of the prompts asks for two objects, with no word on where they are ("a red circle and a blue square"); each
object is painted into a half, a quarter or a random box, without overlap. For every weight w' (0 = unpainted)
all prompts are sampled with the same seeds and read back by the exact scorer (`evaluation/paint_control.py` says
what is counted). `--stage=sr64` reads the pictures of an earlier stage, which saves most of the time. Then
painted and unpainted sampling are timed in interleaved pairs; processor time is steadier on a busy machine.

Writes OUT/paint_control.json after every weight, OUT/paint_control.png (control against quality over the
weights) and OUT/paint_<weight>.png (the first pictures with their masks' outlines).
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from tqdm.auto import tqdm

from ediffi_jax import figures

FLAGS = flags.FLAGS
CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or workdir of a base.")
NUMBER = flags.DEFINE_integer("number", 200, "Prompts.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the prompts, the masks and the pictures.")
WEIGHTS = flags.DEFINE_list("weights", ["0", "0.2", "0.4", "0.8", "1.6"], "Weights w' to try; 0 = unpainted.")
HELD_OUT = flags.DEFINE_bool("held_out", False, "Only pairs of objects that training never showed together.")
STAGE = flags.DEFINE_string("stage", None, "Stage whose pictures are read; default the last.")
TEMPLATE = flags.DEFINE_string("template", "{a} and {b}", "Prompt; {a} is the first object with its article.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Weight of guidance of the base; default the cascade's own.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Pairs of timed runs; 0 = no timing.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Pictures at a time.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Shares over the weight, and control against quality."""
    plt = figures.pyplot("the figure", "eval")

    weights = [row["weight"] for row in rows]
    drawing, (over, against) = plt.subplots(1, 2, figsize=(11, 4.2))
    labels = {"inside": "centre inside its mask", "right": "colour and shape right", "whole": "whole picture right"}
    for name, label in labels.items():
        over.plot(weights, [100 * row[name] for row in rows], marker="o", label=label)
    over.set(xlabel="paint weight w'", ylabel="%", ylim=(0, 101))
    over.axhline(85, color="C0", linestyle=":", linewidth=1)
    over.axhline(80, color="C1", linestyle=":", linewidth=1)
    over.legend(frameon=False)
    against.plot([100 * row["inside"] for row in rows], [100 * row["right"] for row in rows], marker="o")
    for row in rows:
        against.annotate(f"{row['weight']:g}", (100 * row["inside"], 100 * row["right"]), xytext=(4, 4),
                         textcoords="offset points")  # fmt: skip
    against.set(xlabel="control: centre inside its mask, %", ylabel="quality: colour and shape right, %")
    for axis in (over, against):
        axis.grid(alpha=0.25)
    drawing.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(drawing)


def outlined(picture: np.ndarray, boxes: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """The picture with its masks' outlines, the first object's white, the second's black."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    for box, colour in zip(boxes, ("white", "black")):
        x0, y0, x1, y1 = (edge * image.width for edge in box)
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=2)
    return np.asarray(image)


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def cost(cascade: Any, cases: list[Any]) -> dict[str, Any]:
    """Painted over unpainted time of one batch: of the base alone, and of the whole cascade."""
    some = cases[: BATCH_SIZE.value]
    prompts, paint = [case.prompt for case in some], [case.paint() for case in some]
    found: dict[str, Any] = {}
    for name, stages in (("base", cascade.stages[:1]), ("cascade", cascade.stages)):
        one = dataclasses.replace(cascade, stages=stages)
        asked = [one.request(prompts, batch_size=BATCH_SIZE.value, **wishes) for wishes in ({}, {"paint": paint})]
        runs = [lambda r=request: list(one.run(r, progress=False)) for request in asked]  # noqa: B023 (used at once)
        rounds = []
        for index in tqdm(range(-1, ROUNDS.value), desc=f"timing {name}", mininterval=5):
            order = (0, 1) if index % 2 else (1, 0)
            measured = {which: timed(runs[which]) for which in order}
            if index >= 0:  # the first round compiles
                rounds.append([measured[1][clock] / measured[0][clock] for clock in (0, 1)])
        found[name] = {
            "wall_ratio": statistics.median(wall for wall, _ in rounds),
            "processor_ratio": statistics.median(processor for _, processor in rounds),
            "rounds": rounds,
        }
        print(f"painted / unpainted, {name}: wall {found[name]['wall_ratio']:.3f}, "
              f"processor {found[name]['processor_ratio']:.3f}")  # fmt: skip
    return found


def main(argv: list[str]) -> None:
    """Samples and reads for every weight, times, writes."""
    del argv
    import jax

    import ediffi_jax as ed
    from ediffi_jax import pictures
    from ediffi_jax.evaluation.paint_control import make_cases, measure

    out = pictures.make_folder(OUT.value)
    cascade = ed.load(CASCADE.value)
    stages = [stage.spec.name for stage in cascade.stages]
    if STAGE.value and STAGE.value not in stages:
        raise app.UsageError(f"--stage={STAGE.value}; expected one of {', '.join(stages)}")
    last = stages.index(STAGE.value) + 1 if STAGE.value else len(stages)
    cascade = dataclasses.replace(cascade, stages=cascade.stages[:last])
    cases = make_cases(NUMBER.value, SEED.value, TEMPLATE.value, HELD_OUT.value)
    names = ("cascade", "number", "seed", "held_out", "stage", "template", "guidance", "batch_size", "rounds")
    report: dict[str, Any] = {
        "settings": {name: FLAGS[name].value for name in names},
        "fingerprint": cascade.fingerprint,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "rows": [],
    }
    for weight in sorted(map(float, WEIGHTS.value)):
        images = cascade.sample(
            [case.prompt for case in cases], seed=SEED.value, guidance=GUIDANCE.value, batch_size=BATCH_SIZE.value,
            paint=[case.paint() for case in cases], paint_weight=weight,
        )  # fmt: skip
        found = measure(images, cases)
        print(f"w' = {weight:g}: {found.row()}", flush=True)
        report["rows"].append({"weight": weight, **dataclasses.asdict(found)})
        shown = [outlined(image, case.boxes) for image, case in zip(images[:48], cases)]
        sheet = pictures.contact_sheet(shown, [case.prompt for case in cases[:48]], columns=8)
        pictures.write_png(out / f"paint_{weight:g}.png", sheet)
        (out / "paint_control.json").write_text(json.dumps(report, indent=1))
    figure(report["rows"], out / "paint_control.png")
    if ROUNDS.value:
        report["cost"] = cost(cascade, cases)
        (out / "paint_control.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    app.run(main)
