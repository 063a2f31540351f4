"""Masks of painted phrases: files, arrays, regions and canvases, at any size, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ediffi_jax import paint
from ediffi_jax.paint import PaintError, masks


def png(array: np.ndarray, path: Path) -> Path:
    Image.fromarray(array).save(path)
    return path


def test_masks_of_every_kind_agree(tmp_path: Path) -> None:
    half = np.zeros((30, 40), bool)
    half[:, :20] = True
    expected = np.zeros((8, 8), np.uint8)
    expected[:, :4] = 255
    picture = Image.fromarray(255 * half.astype(np.uint8))
    path = png(255 * half.astype(np.uint8), tmp_path / "half.png")
    transparent = np.full((30, 40, 4), 255, np.uint8)
    transparent[~half] = (255, 255, 255, 0)
    canvas = np.where(half[..., None], np.uint8([250, 5, 0]), np.uint8([0, 0, 255])).astype(np.uint8)
    canvas_path = png(canvas, tmp_path / "canvas.png")
    kinds = [half, half.astype(int), half.astype(np.uint8), 255 * half.astype(np.uint8), half.astype(np.float16)]
    kinds += [half[..., None], half.tolist(), picture, picture.convert("1"), picture.convert("RGB"), path, str(path)]
    kinds += [transparent, Image.fromarray(transparent), Image.fromarray(half.astype(np.uint16) * 65535)]
    kinds += ["left", "box:0,0,0.5,1", f"#ff0000@{canvas_path}", f"#f00@{canvas_path}", jnp.asarray(half)]
    kinds += [paint.left(), paint.box(0, 0, 0.5, 1), paint.from_canvas(canvas, {"red": "x", "#0000ff": "y"})["x"]]
    for kind in kinds:
        levels, source, digest = masks.read(kind, 8)
        assert np.array_equal(levels, expected), kind
        again, same, _ = masks.read(source, 8)
        assert np.array_equal(again, levels) and same == source and len(digest) == 64


def test_regions_are_exact_and_soft_values_stay() -> None:
    assert np.array_equal(masks.read(paint.box(0.25, 0, 1, 0.125), 4)[0][0], [0, 128, 128, 128])
    third = masks.read("box:0,0,0.33333333,1", 16)[0]
    assert third[0, :5].tolist() == [255] * 5 and abs(int(third[0, 5]) - 85) <= 1 and not third[:, 6:].any()
    for a, b in ((paint.left(), paint.right()), (paint.top(), paint.bottom())):
        assert np.array_equal(a + b, np.ones_like(a))
    ramp = np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(4, 0)
    np.testing.assert_allclose(masks.read(ramp, 16)[0][3] / 255, ramp[0], atol=0.003)
    faint = np.zeros((8, 8), np.uint8) + np.uint8(1)  # whole numbers of at most 1 are a mask of 0 and 1 …
    assert masks.read(faint, 8)[0].min() == 255
    levels, source, _ = masks.read(faint / 255, 8)  # … but not once they have been levels
    assert np.array_equal(masks.read(source, 8)[0], levels) and levels.max() == 1


def test_a_checkerboard_is_averaged_and_not_picked_from() -> None:
    board = np.indices((512, 384)).sum(0) % 2
    assert set(np.unique(masks.read(board, 16)[0])) <= {127, 128}


@pytest.mark.parametrize(("mask", "message"), [
    (np.zeros((8, 8), bool), "empty"),
    (Image.new("L", (4, 4)), "empty"),
    (np.zeros((0, 3)), r"float64\[0, 3\]; expected \[height, width\]"),
    (np.ones((2, 3, 4, 5)), "expected"),
    (np.ones((4, 4, 3)), "picture uint8"),
    (np.full((4, 4), np.nan), "no numbers"),
    (np.full((4, 4), 255.0), "holds 255 to 255; expected 0 to 1"),
    (np.full((4, 4), -1), "holds -1 to -1"),
    ({"a": 1}, "the mask is dict; expected an image"),
    ([[1, 2], [3]], "the mask is list"),
    (None, "the mask is NoneType"),
    ("lefft", "'lefft' does not exist; did you mean 'left'"),
    ("x" * 5000, "does not exist"),
    ("box:0,0,1", "has 3 numbers"),
    ("box:0,0,a,1", "expected four numbers"),
    ("box:0.5,0,0.5,1", "expected 0 <= x0 < x1 <= 1"),
    ("box:0,0,nan,1", "expected 0 <= x0"),
    ("data:image/png;base64,abc", "damaged"),
    ("data:image/png;base64,YWJj", "not an image"),
    ("#ff0000@nowhere.png", "'nowhere.png' does not exist"),
    (".", "not an image"),
])  # fmt: skip
def test_masks_that_are_none(mask: Any, message: str) -> None:
    with pytest.raises(PaintError, match=message) as error:
        masks.read(mask, 8)
    assert "\n" not in str(error.value)


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("red circle")
    with pytest.raises(PaintError, match=r"text.png' is not an image that can be read"):
        masks.read(tmp_path / "text.png", 8)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:500])
    with pytest.raises(PaintError, match="not an image"):
        masks.read(tmp_path / "cut.png", 8)
    dot = np.zeros((1024, 1024), bool)
    dot[3, 3] = True
    with pytest.raises(PaintError, match="too small: nothing of it is left at 8x8"):
        masks.read(dot, 8)


def test_a_canvas_and_its_legend() -> None:
    canvas = np.zeros((20, 20, 4), np.uint8)
    canvas[:5] = (255, 0, 0, 255)
    canvas[5:7] = (246, 9, 9, 255)  # an edge, nearly red
    canvas[7:12] = (0, 0, 255, 255)
    canvas[12:15] = (0, 200, 0, 255)
    canvas[:5, 0] = 0
    found = paint.from_canvas(canvas, {"#ff0000": "red circle", "#0000ff": "square", "#00c800": "square"})
    assert found["red circle"].sum() == 7 * 20 - 5 and found["square"].sum() == 8 * 20
    there = "#0000ff, #ff0000, #00c800, #f60909"
    with pytest.raises(PaintError, match=f"nothing of the legend's colour #ffff00; its colours are {there}"):
        paint.from_canvas(Image.fromarray(canvas), {"#ffff00": "a"})
    with pytest.raises(PaintError, match="nothing of the legend's colour #000000"):  # transparent, not black
        paint.from_canvas(canvas, {"#000000": "a"})
    for legend, message in (
        ({"#ff0000": "a", "#f00": "b"}, "too alike"),
        ({"#gg0000": "a"}, "'#gg0000' is no colour"),
        ({}, "expected colours"),
        ([], "expected colours"),
    ):
        with pytest.raises(PaintError, match=message):
            paint.from_canvas(canvas, legend)
    for wrong in ("nowhere.png", np.zeros((4, 4)), None):
        with pytest.raises(PaintError, match="the canvas"):
            paint.from_canvas(wrong, {"red": "a"})
