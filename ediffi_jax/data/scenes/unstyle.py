"""Undoing the styles that change a flat picture as a whole: pastel and mosaic -> what the flat reader reads.

The styles that draw objects in another way (outline, neon, sketch) have no flat picture to go back to;
`redrawing` reads them.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from ediffi_jax.data.scenes import styles

Picture = UInt8[np.ndarray, "r r 3"]


def pastel(picture: Picture) -> Picture:
    """The white taken out again."""
    return np.clip((picture.astype(np.float32) - 0.52 * 255) / 0.48 + 0.5, 0, 255).astype(np.uint8)


def mosaic(picture: Picture) -> UInt8[np.ndarray, "16 16 3"]:
    """A pixel for each tile: its colour without the joints and the chequer of light and dark."""
    side = styles.TILES * max(4, round(picture.shape[0] / styles.TILES))
    even = cv2.resize(picture.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    parts = even.reshape(styles.TILES, side // styles.TILES, styles.TILES, side // styles.TILES, 3)
    return np.clip(_without_joints(parts) / styles.LIFT[..., None] + 0.5, 0, 255).astype(np.uint8)


def _without_joints(parts: Float[np.ndarray, "t p t p 3"]) -> Float[np.ndarray, "t t 3"]:
    """The colours whose mixture with the joints' has the tiles' means."""
    share = 1 - (1 - 2 * styles.JOINT_HALF) ** 2
    return (parts.mean(axis=(1, 3)) - share * styles.JOINT) / (1 - share)


INVERSE: dict[str, Callable[[Picture], Picture]] = {"pastel": pastel, "mosaic": mosaic}
