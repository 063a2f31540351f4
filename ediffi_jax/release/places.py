"""Where releases are: bundled with the package, or a folder of the user's."""

from __future__ import annotations

import os
from pathlib import Path

from etils import epath

from ediffi_jax import stores
from ediffi_jax.errors import nearest
from ediffi_jax.release.commits import FOLDER
from ediffi_jax.release.spec import ReleaseError

RELEASES = Path(__file__).resolve().parent.parent / "releases"
CASCADE_FILE = "cascade.json"
# Prefix, in cascade.json, of encoders that come with the package.
BUNDLED = "bundled:"


def bundled() -> dict[str, Path]:
    """Name -> folder of the releases that come with the package."""
    return {path.parent.name: path.parent for path in sorted(RELEASES.glob("*/cascade.json"))}


def bundled_encoders() -> dict[str, Path]:
    """Name -> folder of the encoders that come with the package."""
    return {path.parent.name: path for path in sorted(RELEASES.glob("*/encoders"))}


def place(path: str | os.PathLike) -> Path | epath.Path:
    """A path on a disk or in a store."""
    return stores.at(path) if stores.is_remote(path) else Path(path)


def name_of(folder: str | os.PathLike) -> str:
    """What `find` takes for this folder: a bundled release's name, or the absolute path or URL."""
    if stores.is_remote(folder):
        return os.fspath(folder)
    path = Path(folder).resolve()
    return next((name for name, place in bundled().items() if place.resolve() == path), str(path))


def find(name_or_path: str | os.PathLike) -> Path | epath.Path:
    """The folder that a user's name or path means: a bundled name first, then a path.

    Raises:
        ReleaseError: neither; with the nearest bundled names.
        StoreError: the store refused or did not answer.
    """
    known = bundled()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if stores.is_remote(name_or_path):
        path = stores.at(name_or_path)
        with stores.reaching(path):
            if not (path / CASCADE_FILE).exists() and not (path / FOLDER).is_dir():
                expected = "expected a release folder, or the workdir of a launch.train that has saved"
                raise ReleaseError(f"{path} holds neither {CASCADE_FILE} nor a checkpoint; {expected}")
        return path
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ReleaseError(f"{path} is a file; expected a release folder or a training workdir")
    raise ReleaseError(
        f"no cascade {str(name_or_path)!r}: no such folder, and not bundled{nearest(str(name_or_path), known)}"
    )
