"""Hashes of pictures: of their bytes, and of what they look like.

The perceptual hash is the 64-bit pHash: the 8x8 lowest frequencies of the 32x32 gray picture's cosine
transform, a bit each for above their median. Pictures that are the same but for size, compression or little
edits differ in few bits; unrelated ones in about 32. Gray alone cannot tell a red mug from a blue one, so
the mean colours of the four quarters are compared as well.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, UInt8, UInt64

COLOUR_DISTANCE = 24  # of 255: the most by which a quarter's mean colour may differ in near duplicates
CHUNK = 1 << 22  # pairs compared at once


def perceptual(picture: UInt8[np.ndarray, "h w 3"]) -> tuple[int, bytes]:
    """(pHash, mean colours of the quarters, 12 bytes) of an RGB picture."""
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32))[:8, :8].ravel()
    bits = np.round(frequencies, 3) > np.round(np.median(frequencies[1:]), 3)
    quarters = cv2.resize(small, (2, 2), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), quarters.tobytes()


def differing_bits(a: UInt64[np.ndarray, "*n"], b: UInt64[np.ndarray, "*n"]) -> np.ndarray:
    """How many of 64 bits differ, elementwise."""
    return np.bitwise_count(a ^ b)


def near_any(hashes: UInt64[np.ndarray, "n"], others: UInt64[np.ndarray, "m"], distance: int) -> Bool[np.ndarray, "n"]:
    """Which hashes differ from some other in at most `distance` bits."""
    found = np.zeros(len(hashes), bool)
    step = max(1, CHUNK // max(1, len(others)))
    for start in range(0, len(hashes) if len(others) else 0, step):
        part = hashes[start : start + step, None]
        found[start : start + step] = (differing_bits(part, others[None]) <= distance).any(axis=1)
    return found


def band(hashes: UInt64[np.ndarray, "n"], index: int, bands: int) -> UInt64[np.ndarray, "n"]:
    """Bits of part `index` of `bands` nearly equal parts.

    Hashes that differ in fewer than `bands` bits agree in one part at least.
    """
    low, high = index * 64 // bands, (index + 1) * 64 // bands
    return (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
