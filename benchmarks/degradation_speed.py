"""How many pictures a core degrades in a second.

    python -m benchmarks.degradation_speed --sides=64,256,1024 --out=speed.json

One process, OpenCV on one thread; processor time, which is steadier than wall time on a busy machine; the best of
`--repeats`. `side` is that of the high-resolution picture (a crop's, if there are crops), from which a degradation
starts; it is reduced to a quarter.
"""

from __future__ import annotations

import json
import pathlib
import time

from absl import app, flags

FLAGS = flags.FLAGS
SIDES = flags.DEFINE_list("sides", ["64", "256", "1024"], "Sides of the high-resolution pictures.")
SECONDS = flags.DEFINE_float("seconds", 2.0, "Processor time of each measurement, about.", lower_bound=0.01)
REPEATS = flags.DEFINE_integer("repeats", 3, "Measurements.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main(argv: list[str]) -> None:
    """Measures every preset at every side."""
    del argv
    import cv2
    import numpy as np

    from ediffi_jax.data import scenes
    from ediffi_jax.data.degrade import PRESETS, Degrader
    from ediffi_jax.data.views import shrink

    cv2.setNumThreads(1)
    rng, rows = np.random.default_rng(0), []
    for side in map(int, SIDES.value):
        high = [scenes.render(scenes.sample_scene(rng), side) for _ in range(8)]
        low = [shrink(picture, side // 4) for picture in high]
        for name in sorted(PRESETS):
            degrader, best = Degrader(preset=name), 0.0
            for _ in range(REPEATS.value):
                began, position = time.process_time(), 0
                while time.process_time() - began < SECONDS.value or position < len(high):
                    degrader(high[position % len(high)], low[position % len(high)], 0, position)
                    position += 1
                best = max(best, position / (time.process_time() - began))
            rows.append({"preset": name, "side": side, "images_per_second": best})
            print(f"{name:8} {side:5d} -> {side // 4:4d} {best:9.1f} images/s per core", flush=True)
    if OUT.value:
        pathlib.Path(OUT.value).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)
