"""Draws sheets of scenes, to look at: ``python -m ediffi_jax.data.scenes --out=FILE.png [--resolution=64]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from ediffi_jax import errors
from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import vocabulary as v

CELL = 128  # pixels of a picture on the sheet
GAP = 4


def sheet(columns: int, resolution: int, seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """A row per style, `columns` scenes each, drawn at `resolution` and shown at 128 pixels."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[scenes.Scene]] = {style: [] for style in v.STYLES}
    while min(map(len, rows.values())) < columns:
        scene = scenes.sample_scene(rng)
        rows[scene.style].append(scene)
    step = CELL + GAP
    canvas = np.full((len(rows) * step + GAP, columns * step + GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows.values()):
        for j, scene in enumerate(row[:columns]):
            method = cv2.INTER_NEAREST if resolution < CELL else cv2.INTER_AREA
            picture = cv2.resize(scenes.render(scene, resolution), (CELL, CELL), interpolation=method)
            y, x = GAP + i * step, GAP + j * step
            canvas[y : y + CELL, x : x + CELL] = picture
    return canvas


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a one-line error."""
    parser = argparse.ArgumentParser(
        prog="python -m ediffi_jax.data.scenes",
        description="Draws a sheet of random scenes, one row per style.",
        epilog="example: python -m ediffi_jax.data.scenes --out=sheet.png --resolution=16 --columns=9",
    )
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("--resolution", type=int, default=256, help="drawn at, pixels (default 256)")
    parser.add_argument("--columns", type=int, default=9, help="scenes per style (default 9)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (default 0)")
    flags = parser.parse_args(arguments)
    try:
        picture = sheet(flags.columns, flags.resolution, flags.seed)
        _, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        Path(flags.out).write_bytes(png.tobytes())
    except (errors.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
