"""Pictures on disk: whole or absent, contact sheets laid out as said, style images read alike from anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ediffi_jax import pictures
from ediffi_jax.pictures import PictureError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_png_reads_back_bit_for_bit(tmp_path: Path) -> None:
    image = noise(5, 7)
    pictures.write_png(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.write_bytes(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PictureError, match="No space left"):
        pictures.write_bytes(tmp_path / "a", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PictureError, match="cannot write to the folder"):
        pictures.make_folder(tmp_path / "file" / "out")
    assert list(pictures.make_folder(tmp_path / "a" / "b").iterdir()) == []


def test_a_contact_sheet_holds_its_pictures_row_by_row() -> None:
    images = [noise(16, 16, seed) for seed in range(5)]
    sheet = pictures.contact_sheet(images, columns=3)
    assert sheet.shape == (2 * 20 + 4, 3 * 20 + 4, 3)
    for index, image in enumerate(images):
        y, x = 4 + index // 3 * 20, 4 + index % 3 * 20
        assert np.array_equal(sheet[y : y + 16, x : x + 16], image)
    captioned = pictures.contact_sheet([noise(64, 64)], ["a caption much too long for it" * 3])
    assert captioned.shape[0] > 64 + 8 and (captioned[68:] < 128).any()
    assert pictures.contact_sheet([noise(256, 256)] * 40, columns=40).shape[1] <= pictures.SHEET_WIDTH + 41 * 4 + 40
    with pytest.raises(PictureError, match="no pictures"):
        pictures.contact_sheet([])
    with pytest.raises(PictureError, match="1 captions for 2"):
        pictures.contact_sheet(images[:2], ["a"])


def test_a_style_image_is_its_centre_square_whatever_it_comes_as(tmp_path: Path) -> None:
    image = noise(30, 50)
    pictures.write_png(tmp_path / "style.png", image)
    expected = np.asarray(Image.fromarray(image[:, 10:40]).resize((16, 16), Image.Resampling.BICUBIC))
    for style in (image, Image.fromarray(image), str(tmp_path / "style.png"), tmp_path / "style.png"):
        assert np.array_equal(pictures.read_style(style, 16), expected)
    assert pictures.read_style(Image.fromarray(image).convert("RGBA"), 16).shape == (16, 16, 3)


def test_unusable_style_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    pictures.write_png(tmp_path / "cut.png", noise(64, 64))
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "cut.png"):
        with pytest.raises(PictureError, match="is unreadable"):
            pictures.read_style(tmp_path / name, 16)
    with pytest.raises(PictureError, match="does not exist"):
        pictures.read_style(tmp_path / "absent.png", 16)
    with pytest.raises(PictureError, match="expected uint8"):
        pictures.read_style(np.zeros((3, 4, 4), np.uint8), 16)
