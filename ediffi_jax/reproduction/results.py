"""A claim's result with what it was measured with, as one JSON file: reports join claims of several calls."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.study import Study, StudyError

FILE = "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A claim and what measuring it gave.

    Attributes:
        number, name, title, says, source: the claim's.
        seeds, budget, cascade: the study's.
        seconds: of its parts, over all calls.
        machine: processor, cores, versions.
    """

    number: int
    name: str
    title: str
    says: str
    source: str
    result: Result
    seeds: tuple[int, ...]
    budget: str
    cascade: str
    seconds: float
    machine: str


def measured(claim: Claim, study: Study, result: Result, seconds: float) -> Measured:
    """Puts them together."""
    told = {field: getattr(claim, field) for field in ("number", "name", "title", "says", "source")}
    asked = {field: getattr(study, field) for field in ("seeds", "budget", "cascade")}
    return Measured(**told, **asked, result=result, seconds=seconds, machine=machine())


def write(folder: Path, what: Measured) -> None:
    """Writes result.json, whole or not at all."""
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(dataclasses.asdict(what), indent=1), encoding="utf-8")
    os.replace(partial, folder / FILE)


def read(folder: Path) -> Measured | None:
    """The result in a claim's folder, None if there is none yet.

    Raises:
        StudyError: it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Measured(**{**held, "result": _result(held["result"]), "seeds": tuple(held["seeds"])})
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged; remove it, and the same command makes it anew") from error


def machine() -> str:
    """Processor, cores that this process may use, accelerators, jax."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = "" if jax.default_backend() == "cpu" else f", {jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{_processor()}, {cores} core{'' if cores == 1 else 's'}{devices}, jax {jax.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _result(held: Mapping[str, Any]) -> Result:
    findings = tuple(Finding(**{**row, "values": tuple(row["values"])}) for row in held["findings"])
    tables = tuple(
        Table(title=t["title"], head=tuple(t["head"]), rows=tuple(map(tuple, t["rows"]))) for t in held["tables"]
    )
    pictures = tuple(Picture(**picture) for picture in held["pictures"])
    return Result(findings=findings, how=held["how"], tables=tables, pictures=pictures, remarks=tuple(held["remarks"]))
