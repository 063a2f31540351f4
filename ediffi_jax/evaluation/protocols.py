"""What a cascade is asked to draw, and the real pictures it is measured against.

    scenes, scenes_heldout   captions and renders of scenes drawn anew; needs no files
    coco, visual_genome      `annotations`
    tfds                     captions and pictures of a prepared data set's split, in an order drawn by seed

Prompt i belongs to real picture i. A longer list begins with the shorter one of the same seed, so FID-5K and FID-30K
share their first 5000 prompts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from ediffi_jax.data import scenes
from ediffi_jax.data.sources import open_tfds
from ediffi_jax.evaluation import real_pictures
from ediffi_jax.evaluation.errors import EvaluationError

Picture = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Protocol:
    """Prompts with real pictures.

    Attributes:
        name: what results call it.
        prompts: one for each picture to be drawn.
        picture: i -> real picture i, RGB of any size; raises EvaluationError. May be called by several threads.
        described: its files, seed and rules, for the record.
        judge: (first, pictures) -> whether each drawn picture shows what prompts first, first + 1, … ask for; None
            where nobody can tell exactly.
    """

    name: str
    prompts: tuple[str, ...]
    picture: Callable[[int], Picture]
    described: Mapping[str, Any]
    judge: Callable[[int, UInt8[np.ndarray, "n r r 3"]], Bool[np.ndarray, "n"]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)


def of_scenes(number: int, seed: int = 0, *, held_out: bool = False, resolution: int = 256) -> Protocol:
    """Scenes drawn anew, with a caption in free phrasing, judged by the exact scorer.

    Args:
        number: prompts.
        seed: another seed, other scenes.
        held_out: only two objects in a combination that training never showed, in the flat style; default any scene
            that training could have shown.
        resolution: of the renders.
    """
    rng = np.random.default_rng((seed, 0xF1D))
    drawn = [scenes.sample_scene(rng, held_out=held_out) for _ in range(number)]
    phrasing = np.random.default_rng((seed, 0xF1D, 1))
    prompts = tuple(scenes.caption(scene, phrasing) for scene in drawn)

    def judge(first: int, pictures: UInt8[np.ndarray, "n r r 3"]) -> Bool[np.ndarray, "n"]:
        return np.array([scenes.score(x, drawn[first + i]).all for i, x in enumerate(pictures)], bool)

    return Protocol(
        name="scenes_heldout" if held_out else "scenes",
        prompts=prompts,
        picture=lambda i: scenes.render(drawn[i], resolution),
        described={"seed": seed, "pictures": f"renders at {resolution}x{resolution}"},
        judge=judge,
    )


def of_tfds(folder: str | os.PathLike, split: str, number: int, seed: int = 0) -> Protocol:
    """Records of a prepared TFDS data set with the features `image` and `caption`.

    Raises:
        LoaderError: no such data set or split.
        EvaluationError: fewer records than asked for.
    """
    source = open_tfds(folder, split)
    require(len(source), number, f"split {source.split!r} of {folder}")
    order = np.random.default_rng((seed, 0x7FD5)).permutation(len(source))[:number]
    records = source.read([int(row) for row in order])
    return Protocol(
        name=f"tfds {os.path.basename(os.path.normpath(folder))}/{source.split}",
        prompts=tuple(record.caption for record in records),
        picture=lambda i: real_pictures.read(f"{i} of {folder}", records[i].encoded),
        described={"seed": seed, "split": source.split, "records": len(source)},
    )


def require(available: int, wanted: int, where: str) -> None:
    """Raises EvaluationError if `where` has fewer pictures than are wanted."""
    if available < wanted:
        raise EvaluationError(f"{where} has {available} pictures, {wanted} are asked for; expected at most {available}")
