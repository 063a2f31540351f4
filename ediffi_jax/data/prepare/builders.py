"""TFDS image-caption data sets in ArrayRecord, read without TensorFlow: one image feature, one of texts.

Features are found by their kind: the first image; the first of the usual caption names (`coco_captions` has
`captions`, a sequence of {text, id}); `image/id`, `id` or `image/filename` as the id, else the number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from ediffi_jax import copies, errors
from ediffi_jax.data.prepare.reasons import PrepareError, Rejection
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import UNIT_RECORDS, Item, Unit, make_unit, meta_fields

IDS = ("image/id", "image_id", "id", "key", "image/filename", "filename")


def units_of_builder(name: str, split: str, data_dir: str) -> list[Unit]:
    """Units of a registered data set, downloaded and prepared if it is not there. Raises PrepareError."""
    import tensorflow_datasets as tfds

    try:
        keywords = {"data_dir": data_dir} if data_dir else {}
        builder = tfds.builder(name, file_format="array_record", **keywords)
        if not (epath.Path(builder.data_path) / "dataset_info.json").exists():
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        close = errors.nearest(
            name, [known for known in tfds.list_builders(with_community_datasets=False) if "caption" in known]
        )
        raise PrepareError(f"TFDS has no data set {name!r}{close}") from error
    except ImportError as error:
        message = f"TFDS cannot prepare {name!r} without another package ({error}); give the folder of a prepared one"
        raise PrepareError(message) from error
    except (ValueError, OSError, AssertionError) as error:
        raise PrepareError(f"TFDS cannot prepare {name!r}: {str(error).splitlines()[0]}") from error
    return units_of_folder(epath.Path(builder.data_path), split)


def units_of_folder(folder: epath.Path, split: str) -> list[Unit]:
    """Units of a prepared data set's split; one in an object store is copied to this machine first.

    Raises:
        PrepareError: no such split, or another file format.
        StoreError: it cannot be copied here.
    """
    source, image = _open(os.fspath(folder), split)
    about = hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest()
    spec = {"folder": os.fspath(folder), "split": split, "image": image}
    starts = range(0, len(source), UNIT_RECORDS)
    ends = [min(start + UNIT_RECORDS, len(source)) for start in starts]
    return [make_unit("builders", {**spec, "start": a, "stop": b}, about) for a, b in zip(starts, ends, strict=True)]


@functools.lru_cache(maxsize=4)
def _open(folder: str, split: str) -> tuple[Sequence[Any], str]:
    """The records of a split with pictures still encoded, and the name of the image feature."""
    import tensorflow_datasets as tfds

    # ArrayRecord does not reliably read objects.
    here = copies.local(folder, lambda name: "array_record" not in name or f"-{split}.array_record" in name)
    builder = tfds.builder_from_directory(here)
    images = [name for name, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    if not images:
        raise PrepareError(f"the data set in {folder!r} has no image among its features")
    if split not in builder.info.splits:
        choices = errors.nearest(split, builder.info.splits)
        raise PrepareError(f"the data set in {folder!r} has no split {split!r}{choices}")
    if builder.info.file_format.value != "array_record":
        found = builder.info.file_format.value
        expected = "expected array_record (tfds build --file_format=array_record)"
        raise PrepareError(f"the data set in {folder!r} is in {found} files; {expected}")
    image = "image" if "image" in images else images[0]
    return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()}), image


def read(spec: Mapping[str, Any], settings: Settings) -> Iterator[Item]:
    """The items of a range of records."""
    source, image = _open(spec["folder"], spec["split"])
    names = (settings.id_key,) if settings.id_key else IDS
    for number in range(spec["start"], spec["stop"]):
        row = source[number]
        own = next((row[name] for name in names if name in row), None)
        own = own.decode("utf-8", "replace") if isinstance(own, bytes) else own
        id = f"{spec['split']}-{number}" if own is None else str(own)
        item = Item(id=id, source=f"{spec['split']}[{number}]", encoded=row[image])
        try:
            meta = {name: value for name, value in row.items() if name != image}
            yield dataclasses.replace(item, **meta_fields(meta, settings))
        except Rejection as rejection:
            yield dataclasses.replace(item, problem=rejection)
