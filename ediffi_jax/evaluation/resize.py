"""How pictures reach the size a feature network sees, by name: FID depends on it (Parmar et al. 2022, "clean-fid").

    pil_bicubic, pil_lanczos, pil_bilinear   Pillow's, which widen with the reduction and so do not alias; every
                                             channel in float, nothing rounded (what clean-fid does; default: bicubic)
    torch_bilinear   F.interpolate(bilinear, align_corners=False): pytorch-fid's; aliases where it reduces
    tf1_bilinear     TensorFlow 1's bilinear, whose pixels lie on their corners: the original FID's and
                     torch-fidelity's; aliases, and shifts by part of a pixel

Numbers of different filters do not compare, which is why results and reference statistics name theirs.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ediffi_jax.errors import nearest
from ediffi_jax.evaluation.errors import EvaluationError

DEFAULT = "pil_bicubic"
_PIL = {
    "pil_bicubic": Image.Resampling.BICUBIC,
    "pil_lanczos": Image.Resampling.LANCZOS,
    "pil_bilinear": Image.Resampling.BILINEAR,
}
_OFFSETS = {"torch_bilinear": 0.5, "tf1_bilinear": 0.0}  # of a pixel's centre from its corner
FILTERS = (*_PIL, *_OFFSETS)

Pictures = UInt8[np.ndarray, "b h w 3"]
Resized = Float[np.ndarray, "b s s 3"]


def check(name: str) -> str:
    """The name; raises EvaluationError if no filter has it."""
    if name not in FILTERS:
        raise EvaluationError(f"unknown resize filter {name!r}{nearest(str(name), FILTERS)}")
    return name


def resize(pictures: Pictures, size: int, name: str = DEFAULT) -> Resized:
    """Pictures in the range 0 to 255, float32 and not rounded, `size` pixels high and wide.

    Args:
        pictures: uint8 RGB, of one size.
        size: of the result.
        name: of `FILTERS`.

    Raises:
        EvaluationError: no such filter.
    """
    check(name)
    if pictures.shape[1:3] == (size, size):
        return pictures.astype(np.float32)
    if name in _PIL:
        return np.stack([_pil(picture, size, _PIL[name]) for picture in pictures])
    return _bilinear(pictures.astype(np.float32), size, _OFFSETS[name])


def _pil(picture: UInt8[np.ndarray, "h w 3"], size: int, method: Image.Resampling) -> Float[np.ndarray, "s s 3"]:
    channels = [Image.fromarray(picture[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((size, size), method)) for channel in channels]
    # Filters with negative lobes leave the range, which no picture does.
    return np.clip(np.stack(resized, axis=-1), 0.0, 255.0)


def _bilinear(pictures: Float[np.ndarray, "b h w 3"], size: int, offset: float) -> Resized:
    rows = _lerp(pictures, *_taps(pictures.shape[1], size, offset), axis=1)
    return _lerp(rows, *_taps(pictures.shape[2], size, offset), axis=2)


def _taps(source: int, target: int, offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of the result its two neighbours in the source, and the second one's weight."""
    scale = np.float32(source / target)
    at = (np.arange(target, dtype=np.float32) + np.float32(offset)) * scale - np.float32(offset)
    at = np.maximum(at, 0)
    low = np.minimum(at.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), (at - low).astype(np.float32)


def _lerp(x: np.ndarray, low: np.ndarray, high: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * x.ndim
    shape[axis] = len(weight)
    first = x.take(low, axis)
    return first + (x.take(high, axis) - first) * weight.reshape(shape)
