"""From an input to a data set: when it counts as there, and what is told about it.

    DIR/pairs_<fingerprint>-train.array_record-00000-of-00007 …   the records
    DIR/dataset_info.json, features.json                          TFDS's description, written last
    DIR/report.json, report.html, rejected.csv, timing.json       what was taken, what not and why, how fast
    DIR/prepared.json                                             settings that every data set in DIR shares
    DIR/complete.json                                             which input and settings it was made of
    DIR/work/                                                     looked-at units and verdicts, for the next run

The fingerprint in the names covers contents and settings, wherever and whenever they were prepared. Input that
grew is another data set: its files are written beside the old ones, dataset_info.json is replaced, and then the
old files are removed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ediffi_jax.data.folders import Disk, ObjectStore, folder_at, inside
from ediffi_jax.data.prepare import exclusion, scoring, shards, sources, summary
from ediffi_jax.data.prepare.reasons import PrepareError
from ediffi_jax.data.prepare.running import Running
from ediffi_jax.data.prepare.settings import Settings, digest
from ediffi_jax.data.prepare.shards import TRAIN, VALIDATION
from ediffi_jax.data.prepare.steps import Steps
from ediffi_jax.data.prepare.summary import Summary

DESCRIPTION, COMPLETE = "prepared.json", "complete.json"
COMMON = ("resolution", "format", "captions")  # settings that change what a record is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What there is after a run.

    Attributes:
        folder: of the data set.
        report: `report.json`.
        examined: records that this run looked at; 0 if all had been.
        samples: some taken records, (encoded picture, caption), for the report.
        timing: `timing.json`: one entry for each run that had something to do.
    """

    folder: str
    report: dict[str, Any]
    examined: int
    samples: list[tuple[bytes, str]]
    timing: list[dict[str, Any]]


Page = Callable[[Prepared], str]  # makes report.html


def prepare(
    location: str,
    out: str,
    settings: Settings,
    running: Running,
    *,
    data_dir: str = "",
    split: str = "train",
    page: Page | None = None,
    keep_work: bool = True,
) -> Prepared:
    """Prepares a data set, or what of it is not there yet.

    Args:
        location: the input, see `sources`.
        out: folder, or prefix in an object store, that gets the data set.
        settings: what is taken, and as what.
        running: where the pipelines run.
        data_dir, split: of a TFDS input.
        page: makes the report's page.
        keep_work: keep what later runs need not do again.

    Returns:
        See `Prepared`.

    Raises:
        PrepareError: no usable input, too much of it damaged, nothing left of it, a folder that cannot be written
            or holds something else, networks that cannot score.
        EncoderError: networks that cannot be read.
    """
    _check_apart(location, out)
    running.check()
    seen = scoring.fingerprint(settings)
    each = digest([settings.each(), *seen]) if seen else settings.each()
    units = sources.list_units(location, settings, data_dir=data_dir, split=split)
    if not units:
        raise PrepareError(f"--input={location} has no records")
    keys = [digest([each, unit.identity]) for unit in units]
    across = {**settings.across(), "exclude": exclusion.fingerprint(settings.exclude)}
    folder = _open(out)
    _claim(folder, out, settings)
    wanted = digest([across, keys])
    if _is_complete(folder, wanted):
        report, timing = (json.loads(folder.read(name)) for name in ("report.json", "timing.json"))
        return Prepared(folder=out, report=report, examined=0, samples=[], timing=timing)
    work = Steps(out, wanted)
    examined, seconds = work.examine(dict(zip(keys, units, strict=True)), settings, running)
    choosing = work.choose(keys, settings, running)
    found = summary.summarise(keys, work.chosen, settings.validation)
    _write(folder, "rejected.csv", summary.rejected_lines(keys, work.chosen))
    _refuse(found, settings, out)
    fingerprint = digest([across, each, found.contents.hexdigest()])
    planned = [
        shard
        for name in (TRAIN, VALIDATION)
        for shard in shards.plan(name, found.shares[name], fingerprint, settings.shard_mb)
    ]
    writing = work.write(planned, found.held_out_below, settings, running)
    timing = _timing(
        folder, examined=examined, examine=seconds, choose=choosing, write=writing, workers=running.workers
    )
    report = {"settings": _told(settings), "input": location, **found.to_json()}
    prepared = Prepared(folder=out, report=report, examined=examined, samples=work.samples(found), timing=timing)
    _write(folder, "report.json", json.dumps(report, indent=1) + "\n")
    if page is not None:
        _write(folder, "report.html", page(prepared))
    shards.describe(out, planned, fingerprint, settings, f"Pictures of {settings.resolution} pixels with captions.")
    _write(folder, COMPLETE, json.dumps({"input": wanted, "name": shards.dataset_name(fingerprint)}) + "\n")
    work.sweep(keys if keep_work else [], planned, keep_work)
    return prepared


def _check_apart(location: str, out: str) -> None:
    """Raises PrepareError if the data set would be part of its input."""
    if "://" not in f"{location}{out}" and not location.startswith("tfds:"):
        below, above = os.path.realpath(out), os.path.realpath(location)
        if os.path.isdir(above) and os.path.commonpath([below, above]) == above:
            raise PrepareError(f"--out={out} is inside --input={location}; expected a folder beside it")


def _open(out: str) -> Disk | ObjectStore:
    """The folder of the data set, made if absent. Raises PrepareError if it cannot be written."""
    folder = folder_at(out)
    try:
        folder.make()
    except OSError as error:
        raise PrepareError(f"{out!r} cannot be written: {error.strerror or error}") from error
    return folder


def _claim(folder: Disk | ObjectStore, out: str, settings: Settings) -> None:
    """Describes the folder. Raises PrepareError if a data set of other records is there."""
    described = {name: getattr(settings, name) for name in COMMON}
    try:
        there = json.loads(folder.read(DESCRIPTION)) if folder.size(DESCRIPTION) is not None else {}
        if folder.size("dataset_info.json") is not None:
            if not there:
                raise PrepareError(f"{out!r} holds a data set that was made otherwise; expected another folder")
            for name, value in described.items():
                if there.get(name) != value:
                    differ = f"{name} is {there.get(name)!r} there and {value!r} here"
                    raise PrepareError(f"{out!r} holds other data: {differ}; expected the same, or another folder")
    except (OSError, ValueError) as error:
        raise PrepareError(f"{out!r} cannot be used: {error}") from error
    if there != described:
        _write(folder, DESCRIPTION, json.dumps(described) + "\n")


def _is_complete(folder: Disk | ObjectStore, wanted: str) -> bool:
    """Whether the data set of this input and these settings is there, with all its files."""
    try:
        info, complete = (json.loads(folder.read(name)) for name in ("dataset_info.json", COMPLETE))
    except (OSError, ValueError):
        return False
    if complete != {"input": wanted, "name": info["name"]}:
        return False
    files = [
        f"{info['name']}-{split['name']}.array_record-{index:05d}-of-{len(split['shardLengths']):05d}"
        for split in info["splits"]
        for index in range(len(split["shardLengths"]))
    ]
    return all(folder.size(name) for name in files)


def _refuse(found: Summary, settings: Settings, out: str) -> None:
    """Raises PrepareError if too much is damaged, or nothing is left."""
    often = ", ".join(f"{reason} {count}" for reason, count in found.reasons.most_common(5) if reason)
    where = f"all are listed in {os.fspath(inside(out, 'rejected.csv'))}"
    if found.bad > settings.max_bad_fraction * found.records:
        limit = f"--max_bad_fraction={settings.max_bad_fraction:g} allows"
        raise PrepareError(f"{found.bad} of {found.records} records are damaged, more than {limit} ({often}); {where}")
    if not found.split_records(TRAIN):
        raise PrepareError(f"no record of {found.records} is left to train on ({often}); {where}")


def _told(settings: Settings) -> dict[str, Any]:
    fields = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _timing(folder: Disk | ObjectStore, **entry: Any) -> list[dict[str, Any]]:
    """Adds this run to `timing.json`."""
    try:
        before = json.loads(folder.read("timing.json"))
    except (OSError, ValueError):
        before = []
    entry = {name: round(value, 3) for name, value in entry.items()}
    _write(folder, "timing.json", json.dumps([*before, entry], indent=1) + "\n")
    return [*before, entry]


def _write(folder: Disk | ObjectStore, name: str, content: str | Iterable[str]) -> None:
    def fill(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines([content] if isinstance(content, str) else content)

    try:
        folder.write(name, fill)
    except OSError as error:
        path = os.fspath(inside(folder.path, name))
        raise PrepareError(f"{path!r} cannot be written: {error.strerror or error}") from error
