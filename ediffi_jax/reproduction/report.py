"""What was measured, for readers: report.html in one file, and the same as Markdown with its pictures beside it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ediffi_jax.evaluation.report import Report
from ediffi_jax.reproduction.claim import Finding
from ediffi_jax.reproduction.results import Measured

HTML, MARKDOWN, IMAGES = "report.html", "reproduction.md", "images"
RULE = (
    "A finding is a mean over seeds with its standard deviation and a 95 % interval (Student's t over the seeds; of"
    " shares the wider of it and Wilson's). It holds if the whole interval lies on the claimed side, fails if it lies"
    " on the other, and is open otherwise. A claim is reproduced if all findings that decide hold, contradicted if all"
    " fail, reproduced in part if some hold, else not decided."
)
SUMMARY = ("", "claim", "what decides", "mean ± spread", "95 % interval", "claimed", "", "verdict")
DETAIL = ("", "mean ± spread", "95 % interval", "claimed", "outcome", "each seed", "n")


def write(found: Sequence[Measured], folder: Path) -> None:
    """Writes report.html, reproduction.md and images/ into the folder that holds the claims' folders."""
    page(found, folder).write(folder / HTML)
    (folder / IMAGES).mkdir(exist_ok=True)
    for told in found:
        for picture in told.result.pictures:
            shutil.copyfile(folder / told.name / picture.file, folder / IMAGES / _image(told, picture.file))
    (folder / MARKDOWN).write_text(markdown(found), encoding="utf-8")


def page(found: Sequence[Measured], folder: Path) -> Report:
    """The HTML report."""
    report = Report(title="The claims of eDiff-I, measured at quarter scale")
    report.text(_made(found))
    report.table(SUMMARY, [row for told in found for row in _summary(told)])
    report.text(RULE)
    for told in found:
        report.heading(f"{told.number}. {told.title}: {told.result.verdict}")
        report.text(f"{told.says} ({told.source})")
        report.text(told.result.how)
        report.table(DETAIL, _details(told))
        for picture in told.result.pictures:
            with Image.open(folder / told.name / picture.file) as image:
                report.pictures([np.asarray(image.convert("RGB"))], [picture.caption])
        for table in told.result.tables:
            report.text(table.title)
            report.table(table.head, table.rows)
        for remark in told.result.remarks:
            report.text(remark)
        report.text(_conditions(told))
    return report


def markdown(found: Sequence[Measured]) -> str:
    """The same page, with pictures as files of images/."""
    parts = [
        "# The paper's claims, measured",
        _made(found),
        _table(SUMMARY, [r for t in found for r in _summary(t)]),
        RULE,
    ]
    for told in found:
        parts += [f"## {told.number}. {told.title}: {told.result.verdict}", f"*{told.says}* ({told.source})"]
        parts += [told.result.how, _table(DETAIL, _details(told))]
        parts += [f"![{p.caption}]({IMAGES}/{_image(told, p.file)})\n\n{p.caption}" for p in told.result.pictures]
        parts += [f"{table.title}\n\n{_table(table.head, table.rows)}" for table in told.result.tables]
        parts += [*told.result.remarks, _conditions(told)]
    return "\n\n".join(parts) + "\n"


def text(found: Sequence[Measured]) -> str:
    """A line for each claim, for a terminal."""
    return "\n".join(f"{told.number}. {told.title}: {told.result.verdict}" for told in found)


def interval(finding: Finding) -> str:
    """In brackets; empty where one seed leaves it unbounded."""
    low, high = finding.interval
    return f"[{_number(finding, low)}, {_number(finding, high)}]" if math.isfinite(low) and math.isfinite(high) else ""


def mean(finding: Finding) -> str:
    """Mean ± standard deviation over seeds."""
    shown = _number(finding, finding.mean)
    return shown if math.isnan(finding.spread) else f"{shown} ± {finding.spread:.{finding.digits}f}"


def _number(finding: Finding, value: float) -> str:
    return f"{value:.{finding.digits}f}".replace("-", "−")


def _bound(finding: Finding) -> str:
    if finding.above is not None:
        return f"> {finding.above:g}".replace("-", "−")
    return f"< {finding.below:g}".replace("-", "−") if finding.below is not None else ""


def _summary(told: Measured) -> list[tuple[str, ...]]:
    """A row for each decisive finding; the first says which claim it is and the verdict."""
    rows = []
    for finding in (f for f in told.result.findings if f.decisive):
        row = (finding.what, mean(finding), interval(finding), _bound(finding), finding.outcome)
        first = not rows
        rows.append(
            (str(told.number) if first else "", told.title if first else "", *row, told.result.verdict if first else "")
        )
    return rows


def _details(told: Measured) -> list[tuple[str, ...]]:
    return [
        (
            finding.what,
            mean(finding),
            interval(finding),
            _bound(finding),
            finding.outcome,
            ", ".join(_number(finding, value) for value in finding.values),
            str(finding.n),
        )
        for finding in told.result.findings
    ]


def _made(found: Sequence[Measured]) -> str:
    budgets = sorted({told.budget for told in found})
    machines = sorted({told.machine for told in found})
    minutes = sum(told.seconds for told in found) / 60
    return (
        f"Made by `python -m launch.reproduce --budget={'|'.join(budgets)}`; {'; '.join(machines)}; parts of"
        f" {minutes:.0f} minutes in all, some side by side."
    )


def _conditions(told: Measured) -> str:
    seeds = ",".join(map(str, told.seeds))
    few = " Fewer than three seeds: a try, no measurement." if len(told.seeds) < 3 else ""
    command = f"python -m launch.reproduce --claims={told.name} --budget={told.budget} --seeds={seeds}"
    return f"Command: `{command}`; {told.seconds / 60:.1f} minutes; {told.machine}.{few}"


def _image(told: Measured, file: str) -> str:
    return f"reproduction_{told.name}_{Path(file).name}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
