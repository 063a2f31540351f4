"""Trains the encoders side by side, each in a process of its own, then measures the folder they wrote.

Small matrices leave cores idle in one process; two fill them.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from ediffi_jax import encoders
from ediffi_jax.training.scenes_encoders import bundle, fitting, measuring
from ediffi_jax.training.scenes_encoders.measuring import Accuracies


def _train_one(name: str, config: ConfigDict, folder: Path) -> Accuracies:
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    return bundle.train(name, config, folder, fitting.Budget(steps=config.steps, minutes=config.minutes))


def train(names: tuple[str, ...], config: ConfigDict, folder: Path) -> Accuracies:
    """Trains the named encoders into `folder`; returns what their heads know of held-out scenes."""
    if len(names) == 1:
        return _train_one(names[0], config, folder)
    results: Accuracies = {}
    with ProcessPoolExecutor(len(names), mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(_train_one, name, config, folder) for name in names]:
            results |= future.result()
    return results


def measure(folder: Path, scenes: int) -> Accuracies:
    """Accuracies of the encoders in `folder` on that many held-out scenes; none unless both are there."""
    if not all((folder / name / "config.json").is_file() for name in bundle.NAMES):
        return {}
    found = encoders.load(folder)
    return measuring.retrieval(found, scenes) | measuring.style(found, scenes) | measuring.probes(found, scenes)
