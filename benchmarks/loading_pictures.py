"""Pictures for `benchmarks.loading`, in both libraries' formats.

Half are smooth noise of four scales, half scenes rendered at that size. "mixed" has a shorter side drawn evenly from
512 to 1200 and a ratio of the sides from 1 to 4:3; "large" is 1024 x 1024, as `launch.prepare` writes pictures. JPEG
of quality 90 with OpenCV's sampling (4:2:0), each with a caption.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from ediffi_jax.data import scenes
from ediffi_jax.data.views import Picture

SETS = {"mixed": (512, 1200), "large": (1024, 1024)}  # range of the shorter side in pixels
QUALITY = 90
SHARD = 64  # pictures in a tar
OCTAVES = ((2, 6), (8, 20), (32, 50), (128, 70))  # period in pixels, standard deviation


def draw(index: int, name: str) -> Picture:
    """Picture number `index` of a set."""
    rng = np.random.default_rng((index, *SETS[name]))
    short = int(rng.integers(SETS[name][0], SETS[name][1] + 1))
    long = int(short * rng.uniform(1, 4 / 3)) if name == "mixed" else short
    height, width = (short, long) if rng.random() < 0.5 else (long, short)
    if index % 2:
        scene = scenes.render(scenes.sample_scene(rng), long)
        return np.ascontiguousarray(scene[:height, :width])
    total = np.full((height, width, 3), 128.0)
    for period, std in OCTAVES:
        noise = rng.normal(size=(height // period + 2, width // period + 2, 3))
        total += std * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return total.clip(0, 255).astype(np.uint8)


def encoded(index: int, name: str) -> dict[str, Any]:
    """The record: image (JPEG), caption, id."""
    picture = draw(index, name)[..., ::-1]
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return {"image": jpeg, "caption": f"picture {index}, {picture.shape[1]} wide", "id": f"{name}{index:05d}"}


class Pictures(tfds.core.GeneratorBasedBuilder):
    """A set in ArrayRecord."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, records: list[dict[str, Any]], **keywords: Any) -> None:
        self._records = records
        super().__init__(file_format="array_record", **keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        features = {"image": image, "caption": tfds.features.Text(), "id": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager: Any) -> dict[str, Iterator]:
        del manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in self._records:
            yield record["id"], {**record, "image": io.BytesIO(record["image"])}


def write(folder: Path, name: str, number: int) -> tuple[str, list[str]]:
    """A set of so many pictures, made if it is not there: (its TFDS folder, its tars)."""
    home = folder / f"{name}-{number}"
    done = home / "done.json"
    if not done.exists():
        records = [encoded(index, name) for index in range(number)]
        builder = Pictures(records, data_dir=str(home))
        builder.download_and_prepare()
        tars = []
        for start in range(0, number, SHARD):
            tars.append(str(home / f"{start // SHARD:04d}.tar"))
            with tarfile.open(tars[-1], "w") as tar:
                for record in records[start : start + SHARD]:
                    add(tar, f"{record['id']}.jpg", record["image"])
                    add(tar, f"{record['id']}.txt", record["caption"].encode())
        done.write_text(json.dumps({"tfds": str(builder.data_path), "tars": tars}))
    found = json.loads(done.read_text())
    return found["tfds"], found["tars"]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """One file into a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
