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


def name_of(folder: str | os.PathLike) -> str:
    """What `find` takes for this folder: a bundled release's name, or the absolute path."""
    path = Path(folder).resolve()
    return next((name for name, place in bundled().items() if place.resolve() == path), str(path))


def find(name_or_path: str | os.PathLike) -> Path | epath.Path:
    """The folder that a user's name or path means: a bundled name first, then a path.

    In an object store that may be a workdir; a release is read from files on this machine.

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
            if (path / CASCADE_FILE).exists():
                raise ReleaseError(f"{path} is a release in an object store; copy it to this machine first")
            if not (path / FOLDER).is_dir():
                raise ReleaseError(f"{path} holds no checkpoint; expected the workdir of a launch.train that has saved")
        return path
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ReleaseError(f"{path} is a file; expected a release folder or a training workdir")
    raise ReleaseError(
        f"no cascade {str(name_or_path)!r}: no such folder, and not bundled{nearest(str(name_or_path), known)}"
    )
