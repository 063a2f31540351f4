"""How far the pixels that the sides of `benchmarks.loading` make of a picture are apart."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from benchmarks.loading_pictures import encoded
from benchmarks.loading_sides import Case, our_transform, pillow_transform

COMPARED = 16  # pictures whose results are compared


def pillow_decode(content: bytes) -> Image.Image:
    """As webdataset does it."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def agreement(case: Case) -> tuple[float, int]:
    """Mean and largest difference of the two sides' pixels, over some pictures."""
    differences = []
    for index in range(COMPARED):
        content = encoded(index, case.pictures)["image"]
        mine = our_transform(case.views, content, np.random.default_rng(index))
        peers = pillow_transform(case.views, pillow_decode(content), np.random.default_rng(index))
        differences += [np.abs(mine[name].astype(int) - peers[name]).ravel() for name in mine]
    every = np.concatenate(differences)
    return float(every.mean()), int(every.max())
