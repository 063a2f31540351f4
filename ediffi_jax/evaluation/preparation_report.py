"""What a preparation of data came to, as a page and as lines of text; the verb's two jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ediffi_jax.data import views
from ediffi_jax.data.prepare.reasons import MENDED, REASONS, PrepareError
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.errors import install
from ediffi_jax.evaluation.report import Report


def prepare(
    location: str,
    out: str,
    settings: Settings,
    running: Mapping[str, Any],
    *,
    data_dir: str,
    split: str,
    keep_work: bool,
) -> Any:
    """Prepares a data set with its page; see `data.prepare.prepare`.

    Args:
        location, out, settings, data_dir, split, keep_work: as there.
        running: fields of `data.prepare.running.Running`.

    Returns:
        A `Prepared`.

    Raises:
        PrepareError: as there, or Apache Beam is not installed.
    """
    logging.disable(logging.WARNING)  # on import, Beam tells of clients of Google Cloud that are not installed
    try:
        from ediffi_jax.data.prepare import prepare as preparation
        from ediffi_jax.data.prepare.running import Running
    except ImportError as error:
        raise PrepareError(f"launch.prepare needs apache-beam: {install('beam')}") from error
    finally:
        logging.disable(logging.NOTSET)
    place = {"data_dir": data_dir, "split": split}
    return preparation.prepare(location, out, settings, Running(**running), page=page, keep_work=keep_work, **place)


def make_hashes(location: str, out: str, settings: Settings, *, data_dir: str, split: str) -> str:
    """Makes a list for `--exclude`; returns what to print. Raises PrepareError, see `exclusion.write`."""
    from ediffi_jax.data.prepare import exclusion

    listed, failed = exclusion.write(location, out, settings, data_dir=data_dir, split=split)
    unread = f", {failed} could not be read" if failed else ""
    return f"{listed} pictures listed in {out}{unread}"


def told(made: Any) -> str:
    """A `Prepared` in a few lines."""
    report = made.report
    splits = ", ".join(f"{count} {split}" for split, count in report["splits"].items())
    lines = [f"{made.folder}: {report['taken']} of {report['records']} records ({splits})"]
    if report["rejected"]:
        lines.append("not taken: " + ", ".join(f"{count} {reason}" for reason, count in report["rejected"].items()))
    if report["mended"]:
        lines.append("mended: " + ", ".join(f"{count} {way}" for way, count in report["mended"].items()))
    if not made.examined:
        lines.append("nothing new to look at")
    side = report["settings"]["resolution"]
    lines.append(f"train on it: --config.data.name={made.folder} --config.data.source_resolution={side}")
    return "\n".join(lines)


def page(made: Any) -> str:
    """`report.html` of a `Prepared`."""
    report = made.report
    settings, side = report["settings"], report["settings"]["resolution"]
    made_of = Report(title="Prepared data")
    made_of.text(
        f"`{report['input']}`: {report['taken']} of {report['records']} records taken, {report['bad']} damaged; at "
        f"{side}x{side} pixels {report['picture_bytes'] / 1e6:.1f} MB of {settings['format']}."
    )
    made_of.table(("split", "records"), list(report["splits"].items()))
    made_of.heading("What was not taken")
    made_of.text("Every record is in `rejected.csv` with its reason.")
    rows = [(reason, count, REASONS[reason], _examples(report, reason)) for reason, count in report["rejected"].items()]
    made_of.table(("reason", "records", "meaning", "for instance"), rows)
    if report["mended"]:
        made_of.heading("What was mended")
        rows = [(way, count, MENDED[way]) for way, count in report["mended"].items()]
        made_of.table(("way", "records", "meaning"), rows)
    made_of.heading("What was taken")
    for title, name in (("shorter side, pixels", "shorter_side_pixels"), ("words in the caption", "caption_words")):
        made_of.table((title, "records"), [row for row in report[name].items() if row[1]])
    made_of.pictures([views.decode(encoded) for encoded, _ in made.samples], [caption for _, caption in made.samples])
    made_of.heading("How fast")
    made_of.table(
        ("records looked at", "seconds", "records/s", "seconds to compare all", "seconds to write"),
        [
            (run["examined"], run["examine"], run["examined"] / max(run["examine"], 1e-3), run["choose"], run["write"])
            for run in made.timing
        ],
    )
    made_of.heading("Settings")
    made_of.table(("setting", "value"), list(settings.items()))
    return made_of.page()


def _examples(report: Mapping[str, Any], reason: str) -> str:
    return "; ".join(f"{source} ({detail})" if detail else source for source, detail in report["examples"][reason])
