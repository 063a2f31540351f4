"""What is wrong with pictures whose truth is known: frequencies lost, power added, grain, colours.

With X and Y the Fourier transforms of truth and picture, in each band of spatial frequency

    gain = Re Σ X*Y / Σ|X|²,    residual = Σ|Y - gain·X|² / Σ|X|²,

how far the picture is blurred (below 1) or sharpened (above), and what it adds that was not there. `power` and grain
need no truth, only other pictures like it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

Pictures = UInt8[np.ndarray, "n r r 3"]
BANDS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.5)  # edges, of the highest frequency along an axis; diagonals reach 1.41
CURVE = np.linspace(0, 1.5, 13)  # finer edges, for a plot
GRAIN = (50, 90)  # percentiles


def spectrum_bins(side: int, edges: Float[np.ndarray, "k"]) -> np.ndarray:
    """Of every frequency [side, side] its band, -1 for the mean."""
    steps = np.abs(np.fft.fftfreq(side) * 2)
    return np.searchsorted(edges, np.hypot(steps[:, None], steps[None]), side="left") - 1


def band_sums(power: Float[np.ndarray, "n r r c"], edges: Any = BANDS) -> Float[np.ndarray, "bands"]:
    """Sums over pictures, channels and the frequencies of each band."""
    bins = spectrum_bins(power.shape[1], np.asarray(edges))
    total = power.sum(axis=(0, 3))
    return np.array([total[bins == band].sum() for band in range(len(edges) - 1)])


def transform(pictures: Pictures) -> np.ndarray:
    """Fourier transforms of the pictures, faded towards their borders (which do not meet), complex [n, r, r, 3]."""
    window = np.hanning(pictures.shape[1] + 2)[1:-1]
    values = pictures.astype(np.float64)
    return np.fft.fft2(
        (values - values.mean(axis=(1, 2), keepdims=True)) * np.outer(window, window)[..., None], axes=(1, 2)
    )


def grain(pictures: Pictures) -> dict[str, float]:
    """Percentiles of |second difference along both axes| / 6; of white noise it has the noise's own deviation."""
    values = pictures.astype(np.float64)
    for axis in (1, 2):
        values = np.diff(values, n=2, axis=axis)
    return {f"grain_{level}": float(np.percentile(np.abs(values) / 6, level)) for level in GRAIN}


def describe(pictures: Pictures, renders: Pictures, paired: bool) -> dict[str, Any]:
    """The figures of pictures of the same scenes as `renders`; if they are `paired`, also their errors."""
    made, truth = transform(pictures), transform(renders)
    reference = band_sums(np.abs(truth) ** 2)
    found: dict[str, Any] = {
        "power": list(band_sums(np.abs(made) ** 2) / reference),
        "curve": list(band_sums(np.abs(made) ** 2, CURVE) / band_sums(np.abs(truth) ** 2, CURVE)),
        **grain(pictures),
    }
    if paired:
        gain = band_sums((truth.conj() * made).real) / reference
        bins = spectrum_bins(pictures.shape[1], np.asarray(BANDS))
        whole = np.concatenate([gain, [0.0]])[bins]  # the last stands for the mean, bin -1
        residual = np.abs(made - whole[None, ..., None] * truth) ** 2
        error = pictures.astype(np.float64) - renders
        found |= {
            "gain": list(gain),
            "residual": list(band_sums(residual) / reference),
            "rmse": float(np.sqrt((error**2).mean())),
            "bias": [float(value) for value in error.mean(axis=(0, 1, 2))],
        }
    return found
