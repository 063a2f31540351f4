"""The documentation builds as a site without a warning: links, anchors, pages left out, docstrings of the interface."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ediffi_jax


def build(project: Path, out: Path) -> subprocess.CompletedProcess:
    """Not with --quiet: it hides warnings from --strict, too."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={out}"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(root, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_broken_link_or_a_page_left_out_fails(root: Path, tmp_path: Path) -> None:
    settings = re.sub(r"(?s)nav:\n.*", "nav: [index.md]\n", (root / "mkdocs.yml").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"(?s)  - mkdocstrings:.*?(?=\nvalidation:)", "", settings))
    (tmp_path / "docs/index.md").write_text("# Start\n\n[nowhere](absent.md), [nothing](#absent)\n")
    (tmp_path / "docs/left_out.md").write_text("# Left out\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for what in ("absent.md", "#absent", "left_out.md", "3 warnings"):
        assert what in done.stderr + done.stdout


def test_every_page_is_built(root: Path, site: Path) -> None:
    pages = {path.stem for path in (root / "docs").glob("*.md")} - {"index"}
    assert {path.parent.name for path in site.glob("*/index.html")} == pages


def test_the_interface_is_described_without_importing_it(site: Path) -> None:
    page = (site / "api/index.html").read_text()
    described = set(re.findall(r'id="ediffi_jax\.([\w.]+)"', page))
    modules = {"encoders": "encoders.encoders"}  # its functions are in the module of the same name
    for name, (_, attribute) in ediffi_jax._NAMES.items():
        path = f".{attribute}" if attribute else f"{modules.get(name, name)}."
        assert any(found.endswith(path) if attribute else found.startswith(path) for found in described), name
    for path in ("training.loop.train", "training.config.default", "training.schedule.Phase", "cascade.Cascade.sample"):
        assert path in described
    assert "D_c + w (D_c - D_0)" in page  # a docstring of guidance


def test_no_page_asks_another_server_for_what_it_shows(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert re.findall(r"<(?:script|img|iframe)[^>]+src=\"https?://", text) == [], page
        sheets = re.findall(r"<link[^>]+rel=\"stylesheet\"[^>]*>", text)
        assert [sheet for sheet in sheets if "http" in sheet] == [], page
