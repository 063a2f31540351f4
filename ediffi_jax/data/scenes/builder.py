"""Scenes as a TFDS data set in ArrayRecord files, written without TensorFlow.

One record: `image` (PNG), `caption`, `scene` (JSON, the ground truth) and `id`. Scene number i of a
split is drawn from the generator seeded (seed, split, i), so a data set is a function of its
config, whatever the number of processes that made it, and the same seed at two resolutions shows
the same scenes. Splits:

    train       what models learn from; a fourth is captioned without the style, which only the picture tells
    validation  other scenes of the same distribution
    heldout     two objects in combinations that training never sees, flat style
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from ediffi_jax.data.scenes import captions, rendering, sampling
from ediffi_jax.data.scenes import vocabulary as v

SPLITS = ("train", "validation", "heldout")
# Shares of the train scenes whose style captions leave to the picture; style transfer is learnt from them.
UNNAMED_FLAT, UNNAMED_OTHER = 0.1, 0.5
UNNAMED_SEED = 0x57E1
CHUNK = 128  # scenes per task of a process
WORTH_PROCESSES = 4000  # starting processes takes seconds; fewer scenes are drawn in this one

LEFTOVER_AGE = 6 * 3600  # seconds

Record = dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """What decides the records.

    Attributes:
        resolution: side of the pictures in pixels.
        num_scenes: size of the train split.
        num_held: size of each of the other two; 0 means a twentieth of it, from 16 to 1024.
        seed: another seed, other scenes.
        name: of the folder; made from the other fields if empty.
        processes: that render; 0 means one per core. Does not change the records.
    """

    name: str = ""
    resolution: int = 64
    num_scenes: int = 20_000
    num_held: int = 0
    seed: int = 0
    processes: int = 0

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.num_scenes < 1 or self.num_held < 0:
            raise v.SceneError(
                f"scenes need resolution >= 8, num_scenes >= 1 and num_held >= 0, got "
                f"{self.resolution}, {self.num_scenes} and {self.num_held}"
            )
        usual = int(np.clip(self.num_scenes // 20, 16, 1024))
        self.num_held = self.num_held or usual
        held = "" if self.num_held == usual else f"-held{self.num_held}"
        seed = f"-seed{self.seed}" if self.seed else ""
        self.name = self.name or f"{self.resolution}-{self.num_scenes}{held}{seed}"

    def size(self, split: str) -> int:
        """Number of records of a split."""
        return self.num_scenes if split == "train" else self.num_held


def draw(split: str, index: int, seed: int, resolution: int) -> Record:
    """Record number `index` of a split."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    scene = sampling.sample_scene(rng, held_out=split == "heldout")
    if split == "train":
        share = UNNAMED_FLAT if scene.style == v.DEFAULT_STYLE else UNNAMED_OTHER
        named = np.random.default_rng((seed, index, UNNAMED_SEED)).random() >= share
        scene = dataclasses.replace(scene, named_style=named)
    text = captions.canonical(scene) if split == "heldout" else captions.caption(scene, rng)
    picture = rendering.render(scene, resolution)
    _, png = cv2.imencode(".png", picture[..., ::-1])
    return {
        "image": png.tobytes(),
        "caption": text,
        "scene": scene.to_json(),
        "id": f"{split}-{seed}-{index}",
    }


def _draw_chunk(split: str, start: int, stop: int, seed: int, resolution: int) -> list[Record]:
    return [draw(split, index, seed, resolution) for index in range(start, stop)]


def records(config: ScenesConfig, split: str) -> Iterator[Record]:
    """All records of a split in order, drawn by several processes where that pays."""
    number = config.size(split)
    tasks = [
        (split, start, min(start + CHUNK, number), config.seed, config.resolution)
        for start in range(0, number, CHUNK)
    ]
    processes = min(config.processes or os.cpu_count() or 1, len(tasks))
    if processes == 1 or (number < WORTH_PROCESSES and not config.processes):
        for task in tasks:
            yield from _draw_chunk(*task)
        return
    # Spawned, not forked: JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        for chunk in pool.map(_draw_chunk, *zip(*tasks, strict=True)):
            yield from chunk


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Rendered pictures of coloured shapes with captions and exact ground truth."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First version.", "1.1.0": "A share of the train captions leaves the style unnamed."}
    BUILDER_CONFIGS = [
        ScenesConfig(name="64", resolution=64, num_scenes=100_000),
        ScenesConfig(name="256", resolution=256, num_scenes=20_000),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.resolution
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                    "scene": tfds.features.Text(),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, Record]]:
        config = self.builder_config
        rows = tqdm.tqdm(
            records(config, split),
            total=config.size(split),
            desc=f"scenes {config.resolution}x{config.resolution} {split}",
            unit=" images",
            mininterval=1.0,
        )
        for row in rows:
            yield row["id"], {**row, "image": io.BytesIO(row["image"])}


def location(dir: str | os.PathLike[str], config: ScenesConfig) -> epath.Path:
    """The folder of a prepared data set below the data folder `dir`."""
    return epath.Path(dir) / "scenes" / config.name / str(Scenes.VERSION)


def _sweep(parent: epath.Path) -> None:
    """Removes what killed runs left hours ago; younger ones may be another process at work."""
    for leftover in parent.glob("incomplete.*"):
        if leftover.stat().mtime < time.time() - LEFTOVER_AGE:
            leftover.rmtree(missing_ok=True)


def prepare(dir: str | os.PathLike[str], config: ScenesConfig) -> epath.Path:
    """Writes the data set unless it is there already.

    TFDS writes into a folder of its own and moves it into place as the last step, so what an
    interrupted run leaves behind is never taken for the data set.

    Args:
        dir: the data folder; the set goes to ``dir/scenes/<config>/<version>``.
        config: what to draw.

    Returns:
        The folder of the data set.

    Raises:
        SceneError: the folder cannot be written.
    """
    path = location(dir, config)
    if (path / "dataset_info.json").exists():
        return path
    try:
        _sweep(path.parent)
        builder = Scenes(data_dir=os.fspath(dir), config=config, file_format="array_record")
        tfds.disable_progress_bar()  # the generator shows its own, with a rate and the time left
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download; there is none
            builder.download_and_prepare()
    except OSError as error:
        if (path / "dataset_info.json").exists():  # another process was quicker
            return path
        raise v.SceneError(f"cannot write the scenes to {os.fspath(dir)!r}: {error}") from error
    return path
