"""Files of one folder, on a disk or in an object store (gs://, s3://); each is there whole or not at all.

disk     a file is written beside its place, flushed, and moved there
store    one upload makes an object. Nothing is moved, appended to or locked, for stores cannot; large
         files are written on this machine and uploaded, and copied to it before they are read,
         because ArrayRecord neither writes nor reliably reads objects
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from etils import epath

from ediffi_jax import stores
from ediffi_jax.copies import cache_home
from ediffi_jax.data.views import LoaderError
from ediffi_jax.stores import is_remote

TEMPORARY = ".tmp"


def inside(folder: str | os.PathLike[str], name: str) -> epath.Path:
    """A folder in a folder; unlike `pathlib` it leaves the two slashes of gs:// alone."""
    return epath.Path(folder) / name


@dataclasses.dataclass(frozen=True)
class Disk:
    """A folder of this machine, or of a file system mounted on it."""

    path: Path

    def make(self) -> None:
        """Makes the folder, and finds out whether files can be written. Raises OSError if not."""
        self.path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.path).close()

    def size(self, name: str) -> int | None:
        """Bytes of a file, None without it."""
        try:
            return (self.path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str) -> str:
        """A text. Raises OSError."""
        return (self.path / name).read_text(encoding="utf-8")

    def bytes(self, name: str) -> bytes:
        """A small file. Raises OSError."""
        return (self.path / name).read_bytes()

    def write(self, name: str, fill: Callable[[Path], None]) -> int:
        """Lets `fill` write a file; returns its size. Raises OSError, and what `fill` raises."""
        temporary = self.path / f"{name}.{os.getpid()}{TEMPORARY}"
        try:
            fill(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            size = temporary.stat().st_size
            temporary.replace(self.path / name)
            return size
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there. Raises OSError."""
        (self.path / name).unlink(missing_ok=True)

    def sweep(self, ours: Callable[[str], bool]) -> None:
        """Removes what killed processes left half-written of the files whose names are `ours`."""
        for leftover in self.path.glob(f"*{TEMPORARY}"):
            if ours(leftover.name):
                leftover.unlink(missing_ok=True)

    def fetch(self, name: str, identity: str, kind: str = "") -> Path:
        """The file itself; the others are what an object's copy is kept under."""
        del identity, kind
        return self.path / name


@dataclasses.dataclass(frozen=True)
class ObjectStore:
    """A prefix in a bucket."""

    path: epath.Path

    def make(self) -> None:
        """Prefixes need no making. Raises StoreError if it fails, or its client is not installed."""
        with stores.reaching(self.path):
            self.path.exists()

    def size(self, name: str) -> int | None:
        """Bytes of an object, None without it."""
        with stores.reaching(self.path):
            try:
                return (self.path / name).stat().length
            except FileNotFoundError:
                return None

    def read(self, name: str) -> str:
        """A text. Raises OSError."""
        with stores.reaching(self.path):
            return (self.path / name).read_text()

    def bytes(self, name: str) -> bytes:
        """A small object. Raises OSError."""
        with stores.reaching(self.path):
            return (self.path / name).read_bytes()

    def write(self, name: str, fill: Callable[[Path], None]) -> int:
        """Lets `fill` write a file here and uploads it; returns its size. Raises OSError, and what `fill` raises."""
        with tempfile.TemporaryDirectory() as folder, stores.reaching(self.path):
            temporary = Path(folder) / name
            fill(temporary)
            epath.Path(temporary).copy(self.path / name, overwrite=True)
            return temporary.stat().st_size

    def remove(self, name: str) -> None:
        """Removes an object, if it is there. Raises OSError."""
        with stores.reaching(self.path):
            (self.path / name).unlink(missing_ok=True)

    def sweep(self, ours: Callable[[str], bool]) -> None:
        """Nothing: what an interrupted upload leaves is no object."""

    def fetch(self, name: str, identity: str, kind: str = "embeddings") -> Path:
        """A copy on this machine, made on first use and kept for later runs.

        Args:
            name: of the object.
            identity: what the objects of this prefix are; other contents are kept under another one.
            kind: folder of the cache.

        Raises:
            LoaderError: it cannot be copied.
        """
        key = hashlib.sha256(f"{self.path}\0{identity}".encode()).hexdigest()[:16]
        copy = cache_home(kind) / key / name
        try:
            if not copy.exists() or copy.stat().st_size != self.size(name):
                copy.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=copy.parent) as folder, stores.reaching(self.path):
                    (self.path / name).copy(Path(folder) / name)
                    (Path(folder) / name).replace(copy)
        except OSError as error:
            raise LoaderError(f"{self.path / name} cannot be copied to {copy.parent}: {error}") from error
        return copy


def folder_at(path: str | os.PathLike[str]) -> Disk | ObjectStore:
    """The folder of a path or a URL."""
    return ObjectStore(stores.at(path)) if is_remote(path) else Disk(Path(path))
