"""The comparison sheets: each cell is the picture that `Cascade.sample` makes alone, in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cascade_fakes as fakes
import numpy as np
import pytest

from ediffi_jax import grids, pictures, release
from ediffi_jax.cascade import Cascade, CascadeError, load

PROMPTS = fakes.CAPTIONS[:2]
WISHES = {"seed": 3, "steps": 2, "progress": False}
STYLES = [np.full((20, 30, 3), value, np.uint8) for value in (40, 220)]


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    root = tmp_path_factory.mktemp("grids")
    return load(release.write_release(root / "release", fakes.make_release(root, specs=(fakes.BASE,))))


def cell(sheet: np.ndarray, row: int, column: int, side: int = 8) -> np.ndarray:
    y, x = 4 + row * (side + 16 + 4), 4 + column * (side + 4)
    return sheet[y : y + side, x : x + side]


def test_a_column_for_each_choice_of_encoders(cascade: Cascade) -> None:
    sheet = grids.encoders(cascade, PROMPTS, **WISHES)
    for column, names in enumerate((["t5"], ["clip_text"], ["t5", "clip_text"])):
        for row, image in enumerate(cascade.sample(PROMPTS, encoders=names, **WISHES)):
            np.testing.assert_array_equal(cell(sheet, row, column), image)


def test_a_column_for_each_reference_under_its_picture(cascade: Cascade) -> None:
    sheet = grids.styles(cascade, PROMPTS, STYLES, style_weight=3.0, **WISHES)
    assert (cell(sheet, 0, 0) == 255).all()
    np.testing.assert_array_equal(cell(sheet, 1, 0), cascade.sample(PROMPTS, **WISHES)[0])
    for column, style in enumerate(STYLES):
        np.testing.assert_array_equal(cell(sheet, 0, column + 1), pictures.read_style(style, 8))
        for row, image in enumerate(cascade.sample(PROMPTS, style=style, style_weight=3.0, **WISHES)):
            np.testing.assert_array_equal(cell(sheet, row + 1, column + 1), image)


def test_no_reference_is_refused(cascade: Cascade) -> None:
    with pytest.raises(CascadeError, match="expected at least one style image"):
        grids.styles(cascade, PROMPTS, [], **WISHES)


@pytest.mark.slow
def test_the_verb_writes_the_sheet(cascade: Cascade, tmp_path: Path) -> None:
    pictures.write_png(tmp_path / "style.png", STYLES[0])
    words = [f"--cascade={cascade.folder}", f"--prompt={PROMPTS[0]}", f"--style={tmp_path / 'style.png'}", "--steps=2"]
    command = [sys.executable, "-m", "launch.grid", *words, f"--out={tmp_path / 'deep' / 'grid.png'}"]
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pictures.read_style(tmp_path / "deep" / "grid.png", 32).shape == (32, 32, 3)
