"""An object store for tests, emulated below the paths (fsspec), so that `epath` and all above it are the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Objects by name: no folders to make, nothing renamed, nothing appended to."""

    protocol = "gs"
    cachable = False
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    read: ClassVar[list[str]] = []  # objects opened for reading, in order

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def open(self, path, mode="rb", **kwargs):
        assert mode in ("r", "rb", "w", "wb"), f"stores cannot open in mode {mode}"
        self.read += [Path(str(path)).name] if "r" in mode else []
        return super().open(path, mode, **kwargs)

    def mkdir(self, *args, **kwargs):
        raise AssertionError("stores have no folders")

    makedirs = rename = mv = move = mkdir


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty bucket, and an empty cache."""
    Bucket.store, Bucket.pseudo_dirs, Bucket.read = {}, [""], []
    files = backend.fsspec_backend
    local = type(files)._get_filesystem
    monkeypatch.setattr(
        type(files), "_get_filesystem", lambda self, name: Bucket() if name == "gcs" else local(self, name)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bucket
