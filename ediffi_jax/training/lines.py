"""The lines of a run's metrics: one file on a disk, numbered parts in a store, which cannot append.

    workdir/metrics.jsonl         on a disk
    workdir/metrics/<n>.jsonl     in a store; a part is written again as it grows, and another begun when it is full

`read` joins either.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from ediffi_jax import stores

FILE, FOLDER = "metrics.jsonl", "metrics"
PART = re.compile(r"(\d+)\.jsonl")
FULL = 1000  # lines of a part
EVERY = 10.0  # seconds between two writes of a part that grows


class FileLines:
    """Lines in one file."""

    def __init__(self, workdir: epath.Path, step: int) -> None:
        """Keeps lines up to `step`: what a killed run wrote after its last checkpoint will come again."""
        self._path = workdir / FILE
        if self._path.exists():
            kept = workdir / f"{FILE}.tmp"  # a kill while it is written leaves the old lines
            kept.write_text("".join(_until(step, self._path)))
            kept.replace(self._path)

    def append(self, line: str) -> None:
        """Adds a line."""
        with self._path.open("a") as file:
            file.write(line)

    def flush(self) -> None:
        """Nothing: every line is written at once."""


class StoreLines:
    """Lines in numbered objects, each of which is written whole."""

    def __init__(self, workdir: epath.Path, step: int) -> None:
        """Keeps lines up to `step`, like `FileLines`."""
        self._folder, self._lines, self._written = workdir / FOLDER, [], time.monotonic()
        found = _parts(self._folder)
        for path in found:
            text = path.read_text()
            kept = "".join(_until(step, path))
            if not kept:
                path.unlink()
            elif kept != text:
                path.write_text(kept)
        self._number = 1 + (int(PART.fullmatch(found[-1].name)[1]) if found else 0)

    def append(self, line: str) -> None:
        """Adds a line, which others see after `EVERY` seconds at the latest that a line follows, or `flush`."""
        self._lines.append(line)
        if time.monotonic() - self._written > EVERY or len(self._lines) >= FULL:
            self.flush()

    def flush(self) -> None:
        """Writes the part, if there is anything in it."""
        if self._lines:
            (self._folder / f"{self._number:06d}.jsonl").write_text("".join(self._lines))
        if len(self._lines) >= FULL:
            self._number, self._lines = self._number + 1, []
        self._written = time.monotonic()


def lines_of(workdir: epath.Path, step: int) -> FileLines | StoreLines:
    """Where a run that starts at `step` writes its lines."""
    return (StoreLines if stores.is_remote(workdir) else FileLines)(workdir, step)


def read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All that a run has measured, in order; nothing of a folder without metrics. Raises OSError."""
    workdir = stores.at(workdir)
    single = [workdir / FILE] if (workdir / FILE).exists() else []
    return [json.loads(line) for path in single or _parts(workdir / FOLDER) for line in _whole(path)]


def _parts(folder: epath.Path) -> list[epath.Path]:
    found = folder.iterdir() if folder.exists() else []
    return sorted((path for path in found if PART.fullmatch(path.name)), key=lambda path: path.name)


def _until(step: int, path: epath.Path) -> Iterator[str]:
    return (line for line in _whole(path) if json.loads(line)["step"] <= step)


def _whole(path: epath.Path) -> Iterator[str]:
    """Whole lines of a file; one cut short by a kill is left out."""
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if line.endswith("\n") and isinstance(json.loads(line), dict):
                yield line
