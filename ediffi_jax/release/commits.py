"""Which checkpoints of a run are complete.

disk     checkpoints/<step>             moved there by Orbax when it is whole
store    checkpoints/<step>[.<version>] whole when Orbax has written its marker, last of all; a step that is saved
                                        anew has a higher version, and the highest whole one counts
"""

from __future__ import annotations

import os
import re

from etils import epath

from ediffi_jax import stores

FOLDER = "checkpoints"
MARKER = "commit_success.txt"  # Orbax's
NAME = re.compile(r"(\d+)(?:\.(\d+))?")


def folder_of(workdir: str | os.PathLike[str]) -> epath.Path:
    """The checkpoints of a workdir, as the absolute path that Orbax insists on."""
    return stores.absolute(workdir) / FOLDER


def committed(folder: str | os.PathLike[str]) -> dict[int, epath.Path]:
    """Step -> complete checkpoint in a `checkpoints` folder, oldest first. Raises OSError."""
    folder = stores.at(folder)
    if not folder.exists():
        return {}
    if not stores.is_remote(folder):
        return dict(sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdigit()))
    whole = sorted((*version(path), path) for path in names(folder) if (path / MARKER).exists())
    return {step: path for step, _, path in whole}


def names(folder: epath.Path) -> list[epath.Path]:
    """Everything in a store that is, was or is becoming a checkpoint."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.exists() else []


def version(path: epath.Path) -> tuple[int, int]:
    """Step and version that a checkpoint's name says."""
    step, number = NAME.fullmatch(path.name).groups()
    return int(step), int(number or 0)


def remove(path: epath.Path) -> None:
    """Removes a checkpoint from a store, its marker first, so that no part of it passes for the whole."""
    (path / MARKER).unlink(missing_ok=True)
    path.rmtree(missing_ok=True)
