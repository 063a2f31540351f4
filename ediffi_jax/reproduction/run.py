"""Measures claims one after the other and keeps the report up to date.

OUT/run.json                 what all claims share; another budget or cascade is refused
OUT/<claim>/                 its parts, pictures and result.json
OUT/shared/                  data and training runs that claims share
OUT/report.html              rewritten after every claim
OUT/reproduction.md, images/ the same for a documentation page
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ediffi_jax.pictures import make_folder
from ediffi_jax.reproduction import claims, report, results
from ediffi_jax.reproduction.claim import Claim
from ediffi_jax.reproduction.results import Measured
from ediffi_jax.reproduction.study import Study, StudyError, seconds_spent

RUN = "run.json"
_FORMAT = 1


def reproduce(
    out: str | os.PathLike,
    *,
    budget: str,
    seeds: Sequence[int],
    names: Sequence[str] | None = None,
    cascade: str = "scenes",
    say: Callable[[str], None] = print,
) -> list[Measured]:
    """Measures what is not measured yet; returns all results in the folder, in the list's order.

    Calls with different `names` may share one folder, also at the same time.

    Args:
        out: folder.
        budget: of `study.BUDGETS`.
        seeds: whole repetitions; more may be added later.
        names: claims; default all.
        cascade: release for the claims that train nothing.
        say: takes a line for each claim and part.

    Raises:
        StudyError: no such claim, or the folder holds another run.
        Interrupted: stopped while training; calling again continues.
        PictureError: the folder cannot be written.
    """
    wanted = claims.chosen(names)
    folder = make_folder(out)
    _own(folder, {"format": _FORMAT, "budget": budget, "cascade": cascade})
    found: list[Measured] = []
    for index, claim in enumerate(wanted, start=1):
        say(f"[{index}/{len(wanted)}] {claim.number}. {claim.title}")
        study = Study(
            folder=make_folder(folder / claim.name),
            shared=make_folder(folder / "shared"),
            budget=budget,
            seeds=tuple(seeds),
            cascade=cascade,
            say=say,
        )
        _measure(claim, study)
        found = [told for name in claims.NAMES if (told := results.read(folder / name))]
        report.write(found, folder)
    return found


def _measure(claim: Claim, study: Study) -> None:
    """Runs one claim and writes its result.json."""
    result = claim.run(study)
    seconds = seconds_spent(study.folder)
    results.write(study.folder, results.measured(claim, study, result, seconds))


def _own(folder: Path, settings: dict[str, object]) -> None:
    """Writes run.json, or finds the same settings there."""
    path = folder / RUN
    if not path.exists():
        path.write_text(json.dumps(settings), encoding="utf-8")
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is damaged; choose another --out") from error
    for key, value in settings.items():
        if held.get(key) != value:
            raise StudyError(
                f"{folder} holds a run with {key} = {held.get(key)}, this one has {value}; choose another --out"
            )
