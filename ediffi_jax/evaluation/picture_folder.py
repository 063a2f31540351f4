"""Pictures that lie in a folder, measured: somebody else's model, or samples of `launch.sample`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ediffi_jax import copies, samples
from ediffi_jax.evaluation import curves, real_pictures
from ediffi_jax.evaluation.clip_score import ClipScore
from ediffi_jax.evaluation.features import FeatureNetwork
from ediffi_jax.evaluation.measures import RELIABLE, Rows, measure
from ediffi_jax.evaluation.protocols import require
from ediffi_jax.evaluation.reference import Reference
from ediffi_jax.pictures import make_folder, write_bytes

RESULT = "metrics.json"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Folder:
    """Pictures that somebody generated.

    Attributes:
        files: in the order of their names.
        prompts: of each, or none.
        resolution: of the first's shorter side, to which all are brought.
    """

    files: tuple[Path, ...]
    prompts: tuple[str, ...]
    resolution: int


def read(path: str | os.PathLike, number: int | None = None) -> Folder:
    """A folder of pictures, also in a store; with samples.jsonl, as `launch.sample` writes it, their prompts too.

    Raises:
        EvaluationError: no pictures, too few of them, or the first is unreadable.
    """
    folder = copies.local(path, lambda name: name == samples.RECORDS or name.lower().endswith(real_pictures.SUFFIXES))
    files = real_pictures.files_of(folder)
    number = len(files) if number is None else number
    require(len(files), number, str(path))
    files, known = files[:number], {}
    if (folder / samples.RECORDS).exists():
        known = {line.get("file"): line.get("prompt") for line in samples.read_records(folder)}
    prompts = tuple(known[file.name] for file in files if known.get(file.name))
    resolution = min(real_pictures.read(files[0]).shape[:2])
    return Folder(files=tuple(files), prompts=prompts if len(prompts) == number else (), resolution=resolution)


def measure_pictures(found: Folder, real: Reference, network: FeatureNetwork, clip: ClipScore) -> dict[str, Any]:
    """All numbers of a folder, and what they depend on.

    Raises:
        EvaluationError: an unreadable picture, or too few.
    """
    parts, first = [], 0

    def picture(i: int) -> real_pictures.Picture:
        return real_pictures.read(found.files[i])

    for pictures in real_pictures.batches(picture, len(found.files), found.resolution):
        prompts = found.prompts[first : first + len(pictures)]
        scores = clip(prompts, pictures) if prompts else np.zeros(0, np.float32)
        parts.append(Rows(features=network(pictures), clip_scores=scores, right=np.zeros(0, bool)))
        first += len(pictures)
    conditions = {"resize": network.filter, "network": network.describe(), "clip": clip.describe()}
    held = {"fingerprint": real.fingerprint, **real.described}
    return {**measure(Rows.join(parts), real), **conditions, "resolution": found.resolution, "reference": held}


def write(found: Folder, real: Reference, network: FeatureNetwork, clip: ClipScore, out: str | os.PathLike) -> str:
    """Writes metrics.json into a folder, made if absent; returns the numbers as a line each."""
    folder = make_folder(out, remote=True)
    measured = measure_pictures(found, real, network, clip)
    if measured["n"] < RELIABLE:
        logging.warning("%s", curves.warning(measured["n"]))
    write_bytes(folder / RESULT, (json.dumps(measured, indent=1) + "\n").encode())
    shown = [f"{name:<12}{measured[name]:.5g}" for name in curves.MEASURES if measured[name] is not None]
    conditions = f"n = {measured['n']} against {measured['reference_n']}; resize {network.filter}; {network.name}"
    return "\n".join([*shown, conditions])
