"""Files of this machine in place of objects of a store: copied here to be read, or written here and then sent.

    gs://BUCKET/a/b  ─▶  $XDG_CACHE_HOME/ediffi_jax/objects/<16 hex digits>/BUCKET/a/b

The digits cover names, sizes and generations of the objects: what was replaced in the store is copied anew, what was
copied stays for later runs, and a killed copy goes on with the files that it lacks. Weights are mapped and pictures
are read at random, which stores do badly. What is sent has a marker, sent last: without it there is nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ediffi_jax import stores
from ediffi_jax.stores import StoreError

KINDS = ("gs://", "s3://")
FOLDER = "objects"
BLOCK = 32 * 2**20  # bytes of one request, which has a time-out
STREAMS = 8  # files at once
SHOWN = 2**20  # bytes from which on there is a progress bar
PARTIAL = ".partial"
VERSIONS = ("generation", "ETag", "etag", "md5Hash", "crc32c", "updated", "mtime")  # the first that a store tells


def cache_home(kind: str) -> Path:
    """Where objects are copied: ``$XDG_CACHE_HOME/ediffi_jax/<kind>``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ediffi_jax" / kind


def local(path: str | os.PathLike[str], wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A path of this machine as it is; of an object, or of all objects below a prefix, a copy on this machine.

    Args:
        path: on a disk or in a store.
        wanted: which names below the prefix are needed.

    Raises:
        StoreError: nothing there, no such bucket, the store refused, no room for the copy, or it changed meanwhile.
        SilentStoreError: the store did not answer.
    """
    if not stores.is_remote(path):
        return Path(path).expanduser()
    listing = Listing.read(path, wanted)
    home = cache_home(FOLDER) / listing.digest
    root = home / listing.root
    with _writing(path, home):
        home.mkdir(parents=True, exist_ok=True)
        lacking = listing.lacking(root)
    if not lacking:
        return root
    with _writing(path, home), open(home / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second finds the files
        for partial in home.rglob(f"*{PARTIAL}"):
            partial.unlink()
        listing.copy(path, root)
    if Listing.read(path, wanted) != listing:
        shutil.rmtree(home, ignore_errors=True)
        raise StoreError(f"{os.fspath(path)} changed while it was copied; start again")
    return root


@dataclasses.dataclass(frozen=True)
class Listing:
    """Objects of a store.

    Attributes:
        root: bucket and name of the object, or of the prefix.
        objects: name below the root, "" for the object itself -> size in bytes, and generation.
    """

    root: str
    objects: Mapping[str, tuple[int, str]]

    @classmethod
    def read(cls, path: str | os.PathLike[str], wanted: Callable[[str], bool]) -> Listing:
        """Asks the store. Raises as `local`."""
        system, root = _system(path)
        with stores.reaching(path):
            try:
                found = system.info(root)
                several = found["type"] == "directory"
                objects = system.find(root, detail=True) if several else {root: found}
            except FileNotFoundError as error:
                raise StoreError(f"{os.fspath(path)}: no such object, and none below it") from error
        kept = {}
        for full, told in objects.items():
            name = full.removeprefix(root).lstrip("/")
            if full.endswith("/") or not wanted(name):  # the first are folders, as some programs make them
                continue
            if ".." in full.split("/"):
                raise StoreError(f"{os.fspath(path)}: the name {name!r} cannot be a file's")
            version = next((str(told[key]) for key in VERSIONS if told.get(key)), "")
            kept[name] = int(told["size"]), version
        return cls(root, kept)

    @property
    def digest(self) -> str:
        """16 hex digits over all that is known of the objects."""
        return hashlib.sha256(json.dumps([self.root, sorted(self.objects.items())]).encode()).hexdigest()[:16]

    def lacking(self, root: Path) -> list[str]:
        """Names whose files are not below a folder."""
        there = {name: root / name if name else root for name in self.objects}
        sizes = {name: file.stat().st_size if file.is_file() else None for name, file in there.items()}
        return [name for name, (size, _) in self.objects.items() if sizes[name] != size]

    def copy(self, path: str | os.PathLike[str], root: Path) -> None:
        """Makes the files that are lacking below a folder. Raises OSError and StoreError."""
        system, names = _system(path)[0], self.lacking(root)
        total, title = sum(self.objects[name][0] for name in names), f"copying {os.fspath(path)}"
        pool = ThreadPoolExecutor(STREAMS)
        with tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=total < SHOWN, mininterval=2.0) as bar:

            def fill(name: str) -> None:
                file = root / name if name else root
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_name(file.name + PARTIAL)
                with open(partial, "wb") as target:
                    for data in self._blocks(system, path, name):
                        target.write(data)
                        bar.update(len(data))
                    target.flush()
                    os.fsync(target.fileno())
                partial.replace(file)

            try:
                list(pool.map(fill, names))
            finally:
                pool.shutdown(cancel_futures=True)

    def _blocks(self, system: Any, path: str | os.PathLike[str], name: str) -> Iterator[bytes]:
        full, size = f"{self.root}/{name}" if name else self.root, self.objects[name][0]
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK, size)
            try:
                with stores.reaching(path):
                    data = system.cat_file(full, start=start, end=end)
            except FileNotFoundError:
                data = b""
            if len(data) != end - start:
                raise StoreError(f"{os.fspath(path)} changed while it was copied; start again")
            yield data


def vacant(path: str | os.PathLike[str], marker: str, ours: Callable[[str], bool]) -> bool:
    """Whether there is nothing below a prefix but what a killed `send` of ours left there. Raises as `local`."""
    target = stores.at(path)
    with stores.reaching(target):
        names = [inner.name for inner in target.iterdir()] if target.is_dir() else []
    return marker not in names and all(map(ours, names))


@contextlib.contextmanager
def sending(path: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """A folder that may be written into, not there yet: the path itself; for one in a store a temporary one, then sent.

    Raises:
        StoreError: as `send`.
    """
    if not stores.is_remote(path):
        yield Path(path).expanduser()
        return
    with tempfile.TemporaryDirectory() as here:
        folder = Path(here) / stores.at(path).name
        yield folder
        send(folder, path, last)


def send(folder: Path, path: str | os.PathLike[str], last: str) -> None:
    """Uploads all files below a folder, the one named `last` after all others. Raises StoreError."""
    system, root = _system(path)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    files.sort(key=lambda file: file == folder / last)
    total = sum(file.stat().st_size for file in files)
    title = f"sending to {os.fspath(path)}"
    with (
        tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=total < SHOWN, mininterval=2.0) as bar,
        stores.reaching(path),
    ):
        for file in files:
            try:
                system.put_file(os.fspath(file), f"{root}/{file.relative_to(folder).as_posix()}")
            except FileNotFoundError as error:
                raise StoreError(f"cannot write to {os.fspath(path)}: no such bucket") from error
            bar.update(file.stat().st_size)


def _system(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """The store's client, and bucket and name as it has them.

    Raises:
        StoreError: it is not installed, or there is none.
    """
    if not os.fspath(path).startswith(KINDS):
        raise StoreError(f"{os.fspath(path)} is in no known kind of store; expected {' or '.join(KINDS)}")
    from fsspec.core import url_to_fs

    with stores.reaching(path):
        system, root = url_to_fs(os.fspath(stores.at(path)))
    return system, root.rstrip("/")


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str], home: Path) -> Iterator[None]:
    """Around what writes the copy. Raises StoreError for a disk that cannot take it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TimeoutError) or error.errno is None:
            raise
        reason = f"{error.strerror}; XDG_CACHE_HOME names another place"
        raise StoreError(f"{os.fspath(path)} cannot be copied to {home}: {reason}") from error
