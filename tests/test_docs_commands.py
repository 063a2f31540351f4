"""What README and docs/ tell a user to type works: README's Python runs, every verb's flags and config keys exist."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from doc_commands import blocks, commands
from PIL import Image

import ediffi_jax

FEWER = ("num=4", "num=1")  # in what is run here


def mistakes(root: Path, *pages: Path) -> list[str]:
    command = [sys.executable, root / "tests/doc_commands.py", *pages]
    done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def test_every_command_would_be_taken_by_its_verb(root: Path) -> None:
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    assert sum(len(commands(page.read_text())) for page in pages) > 100
    assert mistakes(root, *pages) == []


def test_a_wrong_command_is_found(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "    python -m launch.sample --prompts=x --out=y  # a comment\n\n"
        "```bash\nX=1 python -m launch.train --config=configs/sr256.py \\\n  --config.optimizer.lrr=1\n```\n"
        "`python -m launch.trane` and `python -m launch.local -- --setps=5`, `python -m launch.sample --out=z`\n"
    )
    found = mistakes(root, page)
    for what in ("unknown flag --prompts", "no key 'lrr'", "there is no launch.trane", "unknown flag --setps"):
        assert sum(what in line for line in found) == 1, found
    assert len(found) == 4


def test_every_line_of_readme_for_the_shell_is_checked_somewhere(root: Path) -> None:
    text = (root / "README.md").read_text()
    extras = set(re.findall(r'^    "(\w+)": \[', (root / "setup.py").read_text(), re.M))
    for line in "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines():
        line = line.partition(" #")[0].strip()
        if match := re.fullmatch(r"bash (launch/\w+\.sh)", line):
            assert (root / match[1]).is_file(), line
        elif line.startswith("pip install"):
            assert set(re.findall(r"\[(\w+)\]", line)) <= extras, line
        else:
            assert not line or line.startswith(("python -m launch.", "source .venv/bin/activate", "git clone")), line
    assert set(re.findall(r"`\[(\w+)\]`", text)) == extras  # the table of extras


@pytest.mark.parametrize("page", ["README.md", "docs"])
def test_python_in_the_pages_is_python(root: Path, page: str) -> None:
    path = root / page
    for file in path.glob("*.md") if path.is_dir() else [path]:
        for block in blocks(file.read_text(), "python"):
            ast.parse(block, filename=str(file))


@pytest.mark.slow
def test_readme_runs_and_python_and_verb_make_the_same_picture(root: Path, tmp_path: Path) -> None:
    text = (root / "README.md").read_text()
    python = "\n".join(blocks(text, "python"))
    shell = next(block for block in blocks(text, "bash") if "launch.sample" in block and "--num=4" in block)
    assert FEWER[0] in python and FEWER[0] in shell
    python = python.replace(*FEWER) + (
        "import numpy as np\n"
        "assert images.shape == (1, 256, 256, 3) and images.dtype == np.uint8\n"
        "assert x0.shape == (1, 16, 16, 3) and np.isfinite(x0).all() and abs(np.asarray(x0)).max() < 3\n"
        f"np.save({str(tmp_path / 'images.npy')!r}, images)\n"
    )
    environment = {"EDIFFI_CACHE": str(tmp_path / "cache"), **os.environ, "XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", python], check=True, cwd=root, env=environment, timeout=300)
    ((_, flags),) = [command for command in commands(f"```bash\n{shell}```") if command[0] == "sample"]
    flags = [flag.replace(*FEWER).replace("runs/", f"{tmp_path}/") for flag in flags]
    subprocess.run([sys.executable, "-m", "launch.sample", *flags], check=True, cwd=root, env=environment, timeout=300)
    picture = np.asarray(Image.open(tmp_path / "samples/0000.png"))
    assert np.array_equal(picture, np.load(tmp_path / "images.npy")[0])


def test_the_citation_names_this_version(root: Path) -> None:
    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    assert cited["version"] == ediffi_jax.__version__ and cited["license"] == "Apache-2.0"
    assert cited["references"][0]["url"].endswith("2211.01324")
