"""What the degradations do: a sheet of pictures, a row for each preset and a column for each record.

    python -m benchmarks.degradation_sheet --out=docs/images/degradation.png

Scenes rendered at 256x256; the first row is the low-resolution picture without degradation, 64x64, the others are what
super-resolution sees of the same record in training (positions 0, 1, … of a run with `--seed`).
"""

from __future__ import annotations

import cv2
import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
NUMBER = flags.DEFINE_integer("number", 8, "Records.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the scenes and the degradations.")
RESOLUTION = flags.DEFINE_integer("resolution", 256, "Of the rendered scenes; the low resolution is a quarter.")
SHOWN = flags.DEFINE_integer("shown", 128, "Side of a picture in the sheet, a multiple of the low resolution.")
OUT = flags.DEFINE_string("out", None, "PNG file to write.", required=True)


def main(argv: list[str]) -> None:
    """Renders, degrades, writes."""
    del argv
    from ediffi_jax import pictures
    from ediffi_jax.data import scenes
    from ediffi_jax.data.degrade import PRESETS, Degrader
    from ediffi_jax.data.views import shrink

    rng = np.random.default_rng((SEED.value, 0x5EE7))
    high = [scenes.render(scenes.sample_scene(rng), RESOLUTION.value) for _ in range(NUMBER.value)]
    low = [shrink(picture, RESOLUTION.value // 4) for picture in high]
    rows = {"none": low}
    for name in sorted(PRESETS):
        degrader = Degrader(preset=name)
        rows[name] = [
            degrader(*pair, SEED.value, position) for position, pair in enumerate(zip(high, low, strict=True))
        ]
    size = (SHOWN.value, SHOWN.value)
    shown = [cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST) for row in rows.values() for picture in row]
    captions = [name for name, row in rows.items() for _ in row]
    pictures.write_png(OUT.value, pictures.contact_sheet(shown, captions, columns=NUMBER.value))


if __name__ == "__main__":
    app.run(main)
