"""Loading speed per core against PyTorch's DataLoader with webdataset: same pictures, same transforms, turn about.

    python -m benchmarks.loading                 # all cases; --cases=64 for one
    python -m benchmarks.loading --data=DIR      # keeps the pictures, some 150 MB
    python -m benchmarks.loading --memory=100000 # instead: the loader's memory over so many images

64, 256     of pictures of 512 to 1200 pixels (shorter side) the centre square at 64 or 256 pixels
1024-256    of pictures of 1024 x 1024 a random crop of 256, and the same part at 64

The sides are our loader (`data.workers=1`, the global shuffle over ArrayRecord), webdataset as it is used (tars,
shuffle buffer, `decode("pil")`, the same transforms in Pillow), and webdataset with our decoding and transforms, which
leaves the pipelines to differ. Each has one worker. A turn is some batches of 64; the speed is images per second of
processor time, of the worker and the process that it serves together, which is what a core gives, also where others
use the machine. Before that the same picture's results are compared, and decoding alone is timed.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import psutil
from absl import app, flags

from benchmarks.loading_agreement import COMPARED, agreement, pillow_decode
from benchmarks.loading_pictures import encoded, write
from benchmarks.loading_sides import BATCH, CASES, SIDES, Case, Side
from ediffi_jax.data.loader import make_loader
from ediffi_jax.data.views import decode

CHOSEN = flags.DEFINE_multi_enum("cases", list(CASES), list(CASES), "What is made of the pictures.")
NUMBER = flags.DEFINE_integer("number", 256, "Pictures of each set.", lower_bound=BATCH)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed turns of each side.", lower_bound=2)
BATCHES = flags.DEFINE_integer("batches", 3, "Batches of a turn.", lower_bound=1)
DATA = flags.DEFINE_string("data", None, "Folder of the pictures; by default they are removed at the end.")
OUT = flags.DEFINE_string("out", None, "JSON file of the figures.")
MEMORY = flags.DEFINE_integer("memory", 0, "Measure memory over so many small pictures instead.")
SMALL = 2000  # scenes of 16 pixels that are read again and again to measure memory


def per_picture(work: Callable[[bytes], Any], contents: list[bytes]) -> float:
    """Median milliseconds of processor time."""
    taken = []
    for content in contents * 3:
        began = time.process_time()
        work(content)
        taken.append(time.process_time() - began)
    return 1e3 * statistics.median(taken)


def decoding(name: str) -> dict[str, float]:
    """What decoding a picture of a set costs in either library, ms of processor time."""
    cv2.setNumThreads(1)
    contents = [encoded(index, name)["image"] for index in range(COMPARED)]
    return {"opencv_ms": per_picture(decode, contents), "pillow_ms": per_picture(pillow_decode, contents)}


def compare(case: Case, places: tuple[str, list[str]]) -> dict[str, Any]:
    """Each side's speed: medians of rounds in which all take turns, who begins changing."""
    sides = {name: Side(name, case, *places) for name in SIDES}
    images = BATCH * BATCHES.value
    try:
        for side in sides.values():
            side.draw(2 * BATCHES.value)  # its worker starts
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for index in range(ROUNDS.value):
            names = list(sides)
            for name in names[index % len(names) :] + names[: index % len(names)]:
                turns[name].append(sides[name].draw(BATCHES.value))
    finally:
        for side in sides.values():
            side.close()
    found: dict[str, Any] = {}
    for name, taken in turns.items():
        ratios = [theirs[1] / mine[1] for mine, theirs in zip(turns["ours"], taken, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = {
            "images_per_core_s": images / statistics.median(processor for _, processor in taken),
            "images_per_s": images / statistics.median(wall for wall, _ in taken),
            "ours_over_it": middle,
            "low": low,
            "high": high,
        }
    return found


def measure(folder: Path) -> dict[str, Any]:
    """All cases; prints a table."""
    load = os.getloadavg()[0]
    turns = f"{ROUNDS.value} rounds of {BATCHES.value} x {BATCH} images"
    print(f"{len(os.sched_getaffinity(0))} cores, load {load:.1f}; {turns}")
    found: dict[str, Any] = {"load": load}
    for case in (CASES[name] for name in dict.fromkeys(CHOSEN.value)):
        places = write(folder, case.pictures, NUMBER.value)
        (mean, largest), row = agreement(case), decoding(case.pictures)
        print(
            f"{case.name}: decoding {row['opencv_ms']:.1f} ms in OpenCV, {row['pillow_ms']:.1f} in Pillow;"
            f" results differ by {mean:.2f} of 255 on average, {largest} at most"
        )
        row |= {"mean_difference": mean, "largest_difference": largest, "sides": compare(case, places)}
        for name, side in row["sides"].items():
            speeds = f"{side['images_per_core_s']:7.1f} images/s per core ({side['images_per_s']:.1f} in wall time)"
            line = f"  {name:25} {speeds}"
            if name != "ours":
                line += f"; ours {side['ours_over_it']:.2f} x [{side['low']:.2f}, {side['high']:.2f}]"
            print(line, flush=True)
        found[case.name] = row
    return found


def memory(folder: Path, images: int) -> dict[str, Any]:
    """MB held by the loader's process and its worker at tenths of the way; prints them."""
    size = {"resolution": 16, "source_resolution": 16, "clip_resolution": 0, "num_scenes": SMALL}
    data = {"name": "scenes", "dir": str(folder), "workers": 1, **size}
    batches = make_loader(data, split="train", seed=0, num_experts=1, batch_size=100).iterate()
    me, held = psutil.Process(), []
    for index in range(images // 100):
        next(batches)
        if index % (images // 1000) == images // 1000 - 1:
            each = [process.memory_info().rss / 1e6 for process in (me, *me.children(recursive=True))]
            held.append(each)
            told = " + ".join(f"{size:.1f}" for size in each)
            print(f"{(index + 1) * 100} images: {told} MB", flush=True)
    return {"memory_MB": held}


def main(_: list[str]) -> None:
    """Measures, and keeps the figures if asked to."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(DATA.value or temporary)
        found = memory(folder, MEMORY.value) if MEMORY.value else measure(folder)
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
