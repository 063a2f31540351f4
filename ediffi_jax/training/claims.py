"""Numbered objects in a folder, each written once by whoever is first: what disks and object stores both can do.

Neither rename nor append nor a lock is needed, only creation if absent: on a disk the open mode ``x``, in an
object store the same as a condition on the upload.
"""

from __future__ import annotations

import os
import re

import fsspec
from etils import epath

from ediffi_jax.stores import is_remote

NAME = re.compile(r"(\d+)\.json")


def numbers(folder: epath.Path) -> list[int]:
    """The numbers taken, ascending; none without the folder. Raises OSError."""
    try:
        if is_remote(folder):
            store, prefix = fsspec.core.url_to_fs(os.fspath(folder))
            store.invalidate_cache()  # what others wrote since
            names = [path.rpartition("/")[2] for path in store.ls(prefix, detail=False)]
        else:
            names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in map(NAME.fullmatch, names) if match)


def place(folder: epath.Path, number: int) -> epath.Path:
    """Where the object of a number is."""
    return folder / f"{number}.json"


def create(folder: epath.Path, number: int, text: str) -> bool:
    """Writes the object unless there is one; the text is like no other's. Returns whether it did. Raises OSError."""
    path = place(folder, number)
    try:
        if is_remote(folder):
            store, name = fsspec.core.url_to_fs(os.fspath(path))
            store.pipe_file(name, text.encode(), mode="create")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        return is_remote(folder) and path.read_text() == text  # an upload tried again finds its own
    return True
