"""Pictures with captions for the tests of `launch.prepare`: smooth colours, no two alike, and files of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ediffi_jax.data.prepare.settings import Settings


def photo(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A picture of its own: 6x8 random colours, enlarged smoothly."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 92} if format == "JPEG" else {}) | options)
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def pairs(numbers: range, **size: int) -> dict[str, bytes | str]:
    """`p0007.jpg` with `p0007.txt`, for each number."""
    files: dict[str, bytes | str] = {}
    for number in numbers:
        files[f"{number % 3}/p{number:04d}.jpg"] = encoded(photo(number, **size))
        files[f"{number % 3}/p{number:04d}.txt"] = f"picture number {number}"
    return files


def tar(path: Path, samples: dict[str, dict[str, bytes | str]]) -> Path:
    """A WebDataset tar of {key: {suffix: contents}}."""
    with tarfile.open(path, "w") as file:
        for key, pieces in samples.items():
            for suffix, data in pieces.items():
                data = data if isinstance(data, bytes) else data.encode()
                member = tarfile.TarInfo(f"{key}{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return path


def settings(**changes) -> Settings:
    return Settings(**{"resolution": 32, "validation": 0.1, "max_bad_fraction": 1.0, **changes})


def rows(folder: Path, split: str = "train") -> list[dict]:
    """The records of a data set, by id, pictures as stored bytes."""
    source = tfds.builder_from_directory(folder).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return sorted((dict(row) for row in source), key=lambda row: row["id"])


class TinyCaptions(tfds.core.GeneratorBasedBuilder):
    """Of the shape of `coco_captions`: an image, a sequence of {text, id}, and two features of names."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = {"text": tfds.features.Text(), "id": tfds.features.Scalar(np.int64)}
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": tfds.features.Scalar(np.int64),
            "captions": tfds.features.Sequence(text),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 40), "val": self._generate_examples(40, 44)}

    def _generate_examples(self, start, stop):
        for number in range(start, stop):
            captions = [{"text": f"caption {k} of {number}", "id": 10 * number + k} for k in range(3)]
            yield (
                number,
                {
                    "image": io.BytesIO(encoded(photo(number))),
                    "image/filename": f"{number:06d}.jpg",
                    "image/id": 1000 + number,
                    "captions": captions,
                },
            )
