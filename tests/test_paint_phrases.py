"""Phrases of a prompt, and overlays of what was painted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ediffi_jax as ed
from ediffi_jax.paint import phrases
from ediffi_jax.paint.canvas import check_legend
from ediffi_jax.paint.palette import PALETTE
from ediffi_jax.paint.spans import find
from ediffi_jax.pictures import PictureError


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle and a blue square on a gray background", ["red circle", "blue square", "gray background"]),
        ("a red circle to the left of a blue square, and a red circle", ["red circle", "blue square", "red circle#2"]),
        ("on the left a green heart and on the right a red triangle", ["green heart", "red triangle"]),
        ("A golden-retriever's puppy; photo", ["golden-retriever's puppy", "photo"]),
        ("circle and red circle and circle", ["circle", "red circle", "circle#3"]),
        ("there is none of it", ["none"]),
        ("", []),
        ("… !?", []),
    ],
)
def test_phrases_are_the_groups_of_content_words(prompt: str, expected: list[str]) -> None:
    assert phrases(prompt) == expected


WORDS = st.sampled_from("red Circle blue square the of and, left; red circle. ring's é".split())


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=14))
def test_every_phrase_is_found_where_it_is_and_none_twice(parts: list[str]) -> None:
    prompt = " ".join(parts)
    spans = [find(prompt, phrase) for phrase in phrases(prompt)]
    assert len(set(spans)) == len(spans)
    assert spans == sorted(spans)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))


def test_no_more_phrases_than_asked_for() -> None:
    assert phrases("a cat, a dog, a hen, a cow", most=2) == ["cat", "dog"]


def test_a_canvas_can_hold_the_whole_palette() -> None:
    check_legend({colour: f"phrase {index}" for index, colour in enumerate(PALETTE)})


def test_show_lays_each_mask_over_the_picture_in_its_own_colour() -> None:
    gray = np.full((256, 256, 3), 100, np.uint8)
    shown = np.asarray(ed.show(gray, paint={"red circle": ed.paint.left(), "blue square": "right"}))
    border = 4  # of the sheet
    inside_left, inside_right = shown[border + 128, border + 40], shown[border + 128, border + 200]
    first, second = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in PALETTE[:2])
    np.testing.assert_allclose(inside_left, 100 + 0.3 * (first - 100.0), atol=1)
    np.testing.assert_allclose(inside_right, 100 + 0.3 * (second - 100.0), atol=1)
    np.testing.assert_array_equal(shown[border + 128, border + 127], first)  # the mask's edge
    assert shown.shape[0] > 256 + 2 * border + 2 * 15  # the legend's two lines below


def test_show_without_paint_is_the_pictures_enlarged() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    shown = np.asarray(ed.show(images, columns=2))
    np.testing.assert_array_equal(shown[4:196, 4:196], images[0].repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(shown[4:196, 200:392], images[1].repeat(3, 0).repeat(3, 1))


def test_show_refuses_what_is_no_picture_and_paintings_of_another_number() -> None:
    with pytest.raises(PictureError, match=r"images are float64\[3, 3\]; expected uint8"):
        ed.show(np.zeros((3, 3)))
    with pytest.raises(PictureError, match="1 paintings for 2 pictures"):
        ed.show(np.zeros((2, 64, 64, 3), np.uint8), paint=[{"red": "left"}])
    with pytest.raises(ed.UserError, match="does not exist"):
        ed.show(np.zeros((64, 64, 3), np.uint8), paint={"red": "nowhere.png"})
