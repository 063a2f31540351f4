"""Embeddings in an object store: the files of a disk, read through copies; nothing that stores cannot do.

The store is emulated below the paths (fsspec), so that `epath` and all above it are the real ones.
"""

from __future__ import annotations

import numpy as np
import pytest
from etils.epath import backend
from store import Bucket

from ediffi_jax import encoders
from ediffi_jax.data import embeddings, folders
from ediffi_jax.data.loader import LoaderError, make_loader
from ediffi_jax.data.scenes.builder import ScenesConfig, prepare
from ediffi_jax.stores import StoreError
from ediffi_jax.training import config as training_config
from ediffi_jax.training import embedder, encode

NUMBER = 12
OUT = "gs://bucket/embeddings"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A config, and embeddings of its data on a disk."""
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, ScenesConfig(resolution=64, num_scenes=NUMBER))
    config = training_config.default()
    changes = {"dir": str(folder), "resolution": 16, "num_scenes": NUMBER, "clip_resolution": 32, "captions": 1}
    config.data.update(changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "LENGTHS", (48,))
        run(config, folder / "embeddings")
        yield config, folder / "embeddings"


def run(config, out, **changes) -> list[str]:
    lines: list[str] = []
    fields = {"batch_size": 8, "shard_records": 5, "mesh": {"data": -1, "fsdp": 1}, **changes}
    encode.encode(config, encode.Options(out=str(out), **fields), say=lines.append)
    return lines


def batch(config, where, start=0):
    loader = make_loader(
        {**config.data, "embeddings": str(where)},
        split="train",
        seed=0,
        num_experts=1,
        batch_size=8,
        tokenizer=encoders.load("scenes", weights=False),
    )
    return loader.batch(start)


def objects() -> dict[str, bytes]:
    return {name.removeprefix("/bucket/embeddings/"): file.getvalue() for name, file in Bucket.store.items()}


def test_a_store_gets_the_files_of_a_disk_and_training_reads_the_same(prepared, bucket, tmp_path) -> None:
    config, folder = prepared
    lines = run(config, OUT)
    assert objects() == {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    assert lines[-1].startswith(f"train with --config.data.embeddings={OUT}")
    for start in (0, 5):
        here, there = batch(config, folder, start), batch(config, OUT, start)
        assert here.keys() == there.keys()
        assert all(np.array_equal(here[name], there[name]) for name in here)
    assert sorted(name for name in bucket.read if name.endswith("record")) == [f"0000{n}.array_record" for n in range(3)]
    bucket.read.clear()
    batch(config, OUT)  # a later run has the copies
    assert bucket.read and not any(name.endswith("record") for name in bucket.read)
    assert not list((tmp_path / "cache").rglob("tmp*"))


def test_an_upload_cut_off_is_made_again(prepared, bucket) -> None:
    config, _ = prepared
    run(config, OUT)
    whole = objects()
    del bucket.store["/bucket/embeddings/train/00001.json"]  # killed between the rows and their marker
    rows = bucket.store["/bucket/embeddings/train/00002.array_record"]
    rows.truncate(1000)
    with pytest.raises(LoaderError, match=r"gs://bucket/embeddings/train' are not complete: 2 of 3 shards are missing"):
        batch(config, OUT)
    lines = run(config, OUT)
    assert sum("written" in line for line in lines) == 2 and objects() == whole
    assert not any("written" in line for line in run(config, OUT))


def test_a_copy_is_of_these_embeddings(prepared, bucket) -> None:
    """Made anew with another description, the objects have the same URL, and some the same size."""
    config, _ = prepared
    run(config, OUT)
    store = embeddings.Store.open(folders.inside(OUT, "train"))
    first = store.fetch(0)
    bucket.store.clear()
    run(config, OUT, dtype="float32")
    again = embeddings.Store.open(folders.inside(OUT, "train"))
    assert again.fetch(0) != first
    assert again.fetch(0).read_bytes() == objects()["train/00000.array_record"]


def test_other_embeddings_there_and_none_are_refused(prepared, bucket) -> None:
    config, _ = prepared
    with pytest.raises(LoaderError, match=r"no embeddings in 'gs://bucket/embeddings/train'; make them"):
        batch(config, OUT)
    run(config, OUT)
    with pytest.raises(LoaderError, match=r"'gs://bucket/embeddings/train' holds other embeddings: rows.int8"):
        run(config, OUT, int8=True)


def test_a_store_without_its_client_is_one_line(prepared, monkeypatch) -> None:
    config, _ = prepared

    def missing(self, name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", missing)
    with pytest.raises(StoreError, match=r"needs gcsfs: pip install '.*\[gcp\]'") as caught:
        run(config, OUT)
    assert "\n" not in str(caught.value)
