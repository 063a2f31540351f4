"""Degradation of the low-resolution pictures that super-resolution is trained on, second-order as in Real-ESRGAN.

    kernels     blur kernels: Gaussian, generalized, plateau, sinc
    operations  blur, resize, noise, JPEG
    presets     what is drawn with which probability: `full` (published), `cascade` (like a base model's pictures)
    chain       a preset applied to a picture; `Degrader`, what the loader calls

docs/degradation.md shows what comes out, how `cascade` was chosen, and what it was worth.
"""

from ediffi_jax.data.degrade.chain import Degrader, degrade
from ediffi_jax.data.degrade.presets import PRESETS, Degradation

__all__ = ["PRESETS", "Degradation", "Degrader", "degrade"]
