"""A folder of samples: 0000.png …, contact_sheet.png, and samples.jsonl, a line for each image.

A line holds all that its image depends on. With the prompts of all lines, in order,
`cascade.sample(prompts, **line["settings"])` makes the same images again, bit for bit on the same
machine with the same versions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from ediffi_jax import copies, stores
from ediffi_jax.cascade import Batch, Cascade
from ediffi_jax.pictures import PictureError, contact_sheet, make_folder, write_bytes, write_png
from ediffi_jax.release import package_versions
from ediffi_jax.request import Request
from ediffi_jax.stage import CascadeError

RECORDS, SHEET = "samples.jsonl", "contact_sheet.png"
NUMBERED = re.compile(r"\d{4,}\.png")  # what a run names its pictures
SHEET_LIMIT = 400  # pictures on a contact sheet


def read_prompts(prompts: Sequence[str], file: str | os.PathLike | None) -> list[str]:
    """The prompts given one by one, then those of a file, one a line (empty lines are skipped).

    Raises:
        CascadeError: none at all, or an unreadable file.
    """
    lines: list[str] = []
    if file:
        try:
            lines = copies.local(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CascadeError(f"cannot read prompts from {file}: {error}") from error
    found = [*prompts, *(line.strip() for line in lines if line.strip())]
    if not found:
        raise CascadeError('no prompt; expected --prompt="..." or a --prompts_file with one prompt a line')
    return found


def per_stage(text: str | None, kind: type, what: str) -> Any:
    """Reads "2.5", or "base=2.5,sr64=0" as {"base": 2.5, "sr64": 0.0}; None or "" is None.

    Raises:
        CascadeError: a value that is no `kind`.
    """
    if not text:
        return None
    try:
        if "=" not in text:
            return kind(text)
        return {stage.strip(): kind(value) for stage, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        expected = f"one {kind.__name__} or stage={kind.__name__},stage={kind.__name__}"
        raise CascadeError(f"--{what}={text}; expected {expected}") from error


def write_samples(out: str | os.PathLike, cascade: Cascade, request: Request, style: Any = None) -> Path | epath.Path:
    """Samples and writes; each image as soon as it is ready, the rest also when interrupted.

    Pictures that the folder's own samples.jsonl lists make way once the first new one is ready.

    Args:
        out: the folder, made if absent.
        cascade: what samples.
        request: what to sample, from `cascade.request`.
        style: what the record says about the style image: a path or paths.

    Returns:
        The folder.

    Raises:
        PictureError: the folder cannot be written.
    """
    folder = make_folder(out, remote=True)
    planned = lines_of(cascade, request, style)
    lines: list[dict[str, Any]] = []
    shown: list[Any] = []
    last = cascade.stages[-1].spec.name
    try:
        for index, image in _images(cascade.run(request), last):
            if not lines:
                remove_recorded(folder)
            write_png(folder / planned[index]["file"], image)
            lines.append(planned[index])
            if len(shown) < SHEET_LIMIT:
                shown.append(image)
    finally:
        if lines:
            write_records(folder, lines)
            columns = request.num if 1 < request.num <= 16 else None
            captions = [line["prompt"] for line in lines[: len(shown)]]
            write_png(folder / SHEET, contact_sheet(shown, captions, columns))
    return folder


def lines_of(cascade: Cascade, request: Request, style: Any = None) -> list[dict[str, Any]]:
    """What samples.jsonl says of each image, in order; arguments as in `write_samples`."""
    common = {**record(cascade, request), "settings": settings(request, style)}
    painted = [{"paint": request.paint.record(p)} if request.paint else {} for p in range(len(request.prompts))]
    return [
        {"file": f"{index:04d}.png", "index": index, "prompt": request.prompts[prompt], "seed": request.seed}
        | common
        | painted[prompt]
        for index, prompt in enumerate(p for p in range(len(request.prompts)) for _ in range(request.num))
    ]


def write_records(folder: Path | epath.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes samples.jsonl; raises PictureError if it cannot be written."""
    write_bytes(folder / RECORDS, "".join(json.dumps(line) + "\n" for line in lines).encode())


def remove_recorded(folder: Path | epath.Path) -> None:
    """Removes the numbered pictures of an earlier run, which its samples.jsonl lists, and that record.

    Raises:
        PictureError: one cannot be removed.
    """
    if not (folder / RECORDS).exists():
        return
    try:
        names = [str(line["file"]) for line in read_records(folder)]
    except (CascadeError, KeyError, TypeError):
        return  # not a record of ours
    try:
        for name in (*filter(NUMBERED.fullmatch, names), RECORDS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise PictureError(f"{folder}: the samples of an earlier run cannot be removed: {error}") from error


def settings(request: Request, style: Any = None) -> dict[str, Any]:
    """The arguments of `Cascade.sample`, defaults filled in, that make the request's images again."""
    return {
        "num": request.num,
        "seed": request.seed,
        "guidance": {name: stage.guidance for name, stage in request.stages.items()},
        "negative": list(request.negative) or None,
        "style": style,
        "style_weight": dict(request.style_weight) or None,
        "encoders": list(request.encoders),
        "sampler": {name: stage.name for name, stage in request.stages.items()},
        "steps": {name: stage.steps for name, stage in request.stages.items()},
        "batch_size": request.batch_size,
        **(request.paint.settings() if request.paint else {}),
    }


def record(cascade: Cascade, request: Request) -> dict[str, Any]:
    """What else the images depend on: the cascade, its noise grids, versions, and the device."""
    device = cascade.stages[0].devices[0]
    return {
        "cascade": {"name": cascade.folder.name, "fingerprint": cascade.fingerprint},
        "stages": {name: dataclasses.asdict(stage) for name, stage in request.stages.items()},
        "versions": package_versions(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": len(cascade.stages[0].devices),
            "compute_dtype": cascade.stages[0].compute_dtype,
            "matmul_precision": jax.config.jax_default_matmul_precision,
        },
    }


def read_records(folder: str | os.PathLike) -> list[Mapping[str, Any]]:
    """The lines of a folder's samples.jsonl.

    Raises:
        CascadeError: no such file, or a line that is no JSON.
    """
    path = stores.at(folder) / RECORDS
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CascadeError(f"cannot read {path}: {error}") from error


def _images(batches: Iterable[Batch], stage: str) -> Iterator[tuple[int, Any]]:
    """(index, image) one by one."""
    for batch in batches:
        yield from zip(batch.indices.tolist(), batch.images[stage], strict=True)
