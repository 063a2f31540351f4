"""Real pictures from files: read, cut to the central square, and reduced, as for DALL·E (Ramesh et al. 2021).

The shorter side becomes the resolution by Pillow's Lanczos filter, then the centre is cut out. What the feature
network's own filter (`resize`) does comes after, and is the same for real and generated pictures.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.samples import SHEET

CROP = "shorter side by pil_lanczos, then the central square"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_THREADS = 8

Picture = UInt8[np.ndarray, "h w 3"]


def read(path: str | os.PathLike, content: bytes | None = None) -> Picture:
    """A picture file as RGB; with `content`, that instead, and `path` is what an error calls it.

    Raises:
        EvaluationError: missing, damaged or no picture.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise EvaluationError(f"picture {path} does not exist") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EvaluationError(f"picture {path} is unreadable ({error}); replace it, or take it out") from error


def square(picture: Picture, resolution: int) -> UInt8[np.ndarray, "r r 3"]:
    """The picture at a resolution; one that has it already is left as it is."""
    height, width = picture.shape[:2]
    if (height, width) == (resolution, resolution):
        return picture
    scale = resolution / min(height, width)
    size = (max(resolution, round(scale * width)), max(resolution, round(scale * height)))
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    top, left = (resized.shape[0] - resolution) // 2, (resized.shape[1] - resolution) // 2
    return resized[top : top + resolution, left : left + resolution]


def files_of(folder: str | os.PathLike) -> list[Path]:
    """The pictures in a folder in the order of their names; a contact sheet of ours is none.

    Raises:
        EvaluationError: no such folder, or no picture in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise EvaluationError(f"no folder {root}; expected one with pictures")
    files = sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES and p.name != SHEET)
    if not files:
        raise EvaluationError(f"no pictures in {root}; expected {', '.join(SUFFIXES)}")
    return files


def batches(
    picture: Callable[[int], Picture], number: int, resolution: int, size: int = 256
) -> Iterator[UInt8[np.ndarray, "b r r 3"]]:
    """Pictures 0 to `number` - 1 as `square` gives them, `size` at a time, read by several threads.

    Raises:
        EvaluationError: from `picture`.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, number, size):
            rows = range(start, min(start + size, number))
            yield np.stack(list(pool.map(lambda i: square(picture(i), resolution), rows)))
