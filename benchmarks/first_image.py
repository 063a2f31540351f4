"""How long a user waits for the first picture, and for the first training step, in a fresh process.

    python -m benchmarks.first_image [--runs=3 --out=first.json]

Every run is a process of its own: `launch.sample` with the bundled cascade, and `launch.train` of its base for one
step, with an empty compilation cache (EDIFFI_CACHE) and then with the one that the run before filled. Seconds of the
whole process, from the command to its end; medians, with the least and the most.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

RUNS = flags.DEFINE_integer("runs", 3, "Pairs of runs of each command: cache empty, then full.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "JSON file of the figures.")

PROMPT = "a red circle left of a blue square"
ONE_STEP = [
    "--config=configs/scenes.py:stage=base", "--config.phases=({'steps': 1},)", "--config.data.num_scenes=64",
    "--config.eval_every=0", "--config.sample_every=0",
]  # fmt: skip


def commands(folder: Path) -> dict[str, list[str]]:
    """The verbs to time; they write below `folder`."""
    data = f"--config.data.dir={folder.parent / 'data'}"
    return {
        "first picture": ["launch.sample", "--cascade=scenes", f"--prompt={PROMPT}", f"--out={folder / 'pictures'}"],
        "first step": ["launch.train", *ONE_STEP, data, f"--workdir={folder / 'run'}"],
    }


def seconds(words: list[str], cache: Path) -> float:
    """Of one process. Raises RuntimeError with what it said if it fails."""
    environment = {**os.environ, "EDIFFI_CACHE": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - start


def main(_: list[str]) -> None:
    """Times all, prints a table."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        seconds(commands(Path(scratch) / "warm")["first step"], Path(scratch) / "warm_cache")  # draws the data set
        for run in range(RUNS.value):
            for cache in ("empty", "full"):
                for name, words in commands(Path(scratch) / f"{run}_{cache}").items():
                    took = seconds(words, Path(scratch) / f"cache{run}")
                    found.setdefault(f"{name}, cache {cache}", []).append(took)
    print(f"{len(os.sched_getaffinity(0))} cores, {RUNS.value} runs")
    for name, took in found.items():
        print(f"{name:28} {statistics.median(took):6.1f} s [{min(took):.1f}, {max(took):.1f}]")
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
