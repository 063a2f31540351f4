"""A folder for every finished request: pictures, what went in, and the command that makes the pictures again.

    RESULTS/20261123-134455-000/   0000.png …   canvas.png   style.png   samples.jsonl   command.txt   result.zip
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import os
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ediffi_jax import release, samples
from ediffi_jax.cascade import Cascade
from ediffi_jax.pictures import PictureError, make_folder, write_bytes, write_png
from ediffi_jax.request import Request
from ediffi_jax.studio_page.wishes import Wishes

ARCHIVE = "result.zip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Where the files of a finished request are.

    Attributes:
        folder: that holds them.
        pictures: its PNGs.
        command: that makes them again, to be run in `folder` or where the archive was unpacked.
        archive: all of it as one file.
    """

    folder: Path
    pictures: tuple[Path, ...]
    command: str
    archive: Path


class Results:
    """Writes results below one folder, which is made at once; raises PictureError if it cannot be."""

    def __init__(self, folder: str | os.PathLike, cascade: Cascade) -> None:
        self.folder, self.cascade = make_folder(folder).resolve(), cascade

    def write(self, wishes: Wishes, request: Request, images: UInt8[np.ndarray, "n h w 3"]) -> Result:
        """The files of one request.

        Args:
            wishes: what the page was asked for.
            request: the same, checked.
            images: the last stage's.

        Raises:
            PictureError: the folder cannot be written.
        """
        folder = self._fresh()
        pictures = tuple(folder / f"{index:04d}.png" for index in range(len(images)))
        for path, image in zip(pictures, images, strict=True):
            write_png(path, image)
        sources: list[Path] = []
        for name, picture in (("canvas.png", wishes.canvas), ("style.png", wishes.style)):
            if picture is not None:
                sources.append(folder / name)
                write_bytes(sources[-1], _png(picture))
        text = command(release.name_of(self.cascade.folder), wishes, request)
        write_bytes(folder / "command.txt", text.encode() + b"\n")
        style = "style.png" if wishes.style is not None else None
        samples.write_records(folder, samples.lines_of(self.cascade, request, style))
        listed = [*pictures, *sources, folder / "command.txt", folder / samples.RECORDS]
        write_bytes(folder / ARCHIVE, _archive(listed))
        return Result(folder=folder, pictures=pictures, command=text, archive=folder / ARCHIVE)

    def _fresh(self) -> Path:
        """A new folder named after the time, and numbered within the second."""
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        for number in range(1000):
            folder = self.folder / f"{now}-{number:03d}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
            except OSError as error:
                raise PictureError(f"cannot write to the folder {self.folder}: {error.strerror}") from error
        raise PictureError(f"{self.folder} holds 1000 results of this very second; expected fewer")


def command(cascade: str, wishes: Wishes, request: Request) -> str:
    """The `launch.sample` line that makes the request's pictures again, in one line for a POSIX shell."""
    flags: list[tuple[str, Any]] = [
        ("cascade", cascade), ("prompt", request.prompts[0]), ("num", request.num), ("seed", request.seed),
        ("guidance", _per_stage({name: stage.guidance for name, stage in request.stages.items()})),
        ("steps", _per_stage({name: stage.steps for name, stage in request.stages.items()})),
    ]  # fmt: skip
    flags += [("negative", request.negative[0])] if request.negative else []
    if wishes.encoders is not None:
        flags.append(("encoders", ",".join(request.encoders)))
    if wishes.style is not None:
        flags.append(("style", "style.png"))
        flags += [("style_weight", _per_stage(request.style_weight))] if request.style_weight else []
    if request.paint is not None:
        legend = ",".join(f"{colour}={phrase}" for colour, phrase in wishes.legend.items())
        flags += [("canvas", "canvas.png"), ("legend", legend), ("paint_weight", f"{wishes.paint_weight:g}")]
    words = [f"--{name}={value}" for name, value in [*flags, ("batch_size", request.batch_size), ("out", "again")]]
    return shlex.join(["python", "-m", "launch.sample", *words])


def _per_stage(values: Any) -> str:
    return ",".join(f"{name}={value:g}" for name, value in values.items())


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _archive(files: Sequence[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return buffer.getvalue()
