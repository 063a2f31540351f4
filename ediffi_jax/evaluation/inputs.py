"""What an evaluation is given by name or path, opened and checked before anything is sampled."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from ediffi_jax import encoders, stores
from ediffi_jax.cascade import Cascade
from ediffi_jax.errors import nearest
from ediffi_jax.evaluation import annotations, features, protocols, reference, resize
from ediffi_jax.evaluation.clip_score import ClipScore
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.features import FeatureNetwork
from ediffi_jax.evaluation.protocols import Protocol
from ediffi_jax.evaluation.reference import Reference
from ediffi_jax.pictures import make_folder
from ediffi_jax.stage import CascadeError

BUNDLED = "scenes"
PROTOCOLS = ("scenes", "scenes_heldout", "coco", "visual_genome", "tfds")


def protocol(
    name: str,
    number: int,
    *,
    seed: int = 0,
    annotated: str | None = None,
    images: str | None = None,
    split: str = "validation",
    resolution: int = 256,
) -> Protocol:
    """A protocol by its name.

    Args:
        name: of `PROTOCOLS`.
        number: prompts and pictures.
        seed: of their choice.
        annotated: JSON file of coco and visual_genome.
        images: their folder of pictures; the data set's folder of tfds.
        split: of tfds.
        resolution: of the renders of scenes.

    Raises:
        EvaluationError, LoaderError: unknown, a path missing, or what is there cannot be used.
    """
    if name not in PROTOCOLS:
        raise EvaluationError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)}")
    if number < 1:
        raise EvaluationError(f"{number} pictures; expected at least 1")
    if name.startswith("scenes"):
        return protocols.of_scenes(number, seed, held_out=name == "scenes_heldout", resolution=resolution)
    if not images:
        raise EvaluationError(f"protocol {name} needs --images, the folder of its real pictures")
    if name == "tfds":
        return protocols.of_tfds(images, split, number, seed)
    if not annotated:
        raise EvaluationError(f"protocol {name} needs --annotations, its published JSON file")
    read = annotations.of_coco if name == "coco" else annotations.of_visual_genome
    return read(annotated, images, number, seed)


def network(inception: str | os.PathLike | None, filter: str = resize.DEFAULT) -> FeatureNetwork:
    """The FID Inception of a weights file, or without one the bundled image tower."""
    if inception:
        return features.of_inception(inception, filter)
    return features.of_encoders(encoders.load(BUNDLED), filter)


def clip(folder: str | os.PathLike | None) -> ClipScore:
    """The CLIP of a Hugging Face folder, or without one the bundled one."""
    return ClipScore(encoders.load(folder or BUNDLED))


def real(
    path: str | os.PathLike | None,
    net: FeatureNetwork,
    asked: Protocol,
    resolution: int,
    number: int,
    before: Callable[[], object] = lambda: None,
) -> Reference:
    """Reference statistics of a file if it is there; else made, and written to it if there is a path.

    Args:
        path: of the file, on a disk or in an object store.
        net, asked, resolution, number: what they are of.
        before: called before pictures are looked at, which takes long.

    Raises:
        EvaluationError, PictureError, StoreError: a file of something else, or one that cannot be read or written.
    """
    if path:
        file = stores.at(path).expanduser()
        with stores.reaching(file):
            there = file.exists()
        if there:
            return reference.load(file, net, asked, resolution, number)
    before()
    if path:
        make_folder(file.parent, remote=True)
    made = reference.make(net, asked, resolution, number)
    if path:
        reference.save(made, path)
    return made


def up_to(cascade: Cascade, stage: str | None) -> Cascade:
    """The cascade without what comes after a stage, to be measured at its resolution.

    Raises:
        CascadeError: no such stage.
    """
    names = [s.spec.name for s in cascade.stages]
    if stage is None:
        return cascade
    if stage not in names:
        raise CascadeError(f"unknown stage {stage!r}{nearest(stage, names)}")
    return dataclasses.replace(cascade, stages=cascade.stages[: names.index(stage) + 1])


def weights(text: str) -> list[float]:
    """Reads "0,0.5,2", or "0:10:0.5" as 0, 0.5 … 10.

    Raises:
        EvaluationError: anything else.
    """
    try:
        if ":" not in text:
            return [float(word) for word in text.split(",")]
        first, last, step = (float(word) for word in text.split(":"))
        count = round((last - first) / step)
        if step <= 0 or count < 0 or abs(first + count * step - last) > 1e-9:
            raise ValueError(text)
        return [round(first + i * step, 9) for i in range(count + 1)]
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        expected = "numbers as 0,0.5,2 or first:last:step as 0:10:0.5"
        raise EvaluationError(f"--guidance={text}; expected {expected}") from error


def seeds(words: Sequence[str]) -> list[int]:
    """Whole numbers of at least 0; raises EvaluationError for anything else."""
    if not words or not all(word.strip().isdigit() for word in words):
        raise EvaluationError(f"--seeds={','.join(words)}; expected whole numbers as 0,1,2")
    return [int(word) for word in words]
