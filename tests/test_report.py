"""The report stands alone: nothing outside the file is needed, and everything in it is escaped."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from ediffi_jax.evaluation.report import Report, contact_sheet, loss_figure, png_bytes


class Balanced(HTMLParser):
    """Collects tags that are not closed in order."""

    VOID = {"img", "meta"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_is_one_wellformed_file_with_its_pictures_inside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    report = Report(title="Trial <1>")
    report.heading("A & B")
    report.text("ran `launch.train` & more")
    report.table(("step", "seconds"), [("base <single>", 1.23456), ("experts", 7)])
    report.pictures(images, ["a red circle", 'a "quoted" <b>', "c"])
    curves = {"single": np.linspace(2, 1, 8), "ensemble": np.linspace(2, 1.1, 8)}
    report.figure(loss_figure(curves, cuts=(0.25,), sigma_at={0.25: 0.27}), path=tmp_path / "loss.png", alt="loss")
    report.write(tmp_path / "report.html")

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<b>" not in page and "base &lt;single&gt;" in page and "<code>launch.train</code>" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    embedded = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)]
    assert len(embedded) == 4
    for png, image in zip(embedded, images, strict=False):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    assert embedded[3] == (tmp_path / "loss.png").read_bytes()


def test_png_keeps_every_pixel() -> None:
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)


def test_a_contact_sheet_holds_every_picture_where_expected() -> None:
    images = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(images, columns=2, gap=1)
    assert sheet.shape == (11, 15, 3)
    assert (sheet[1:5, 8:14] == 20).all() and (sheet[6:10, 1:7] == 30).all()
    assert (sheet[6:10, 8:14] == 255).all()
