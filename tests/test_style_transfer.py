"""The measure of style transfer, on renders whose style and content are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.evaluation import style_recognition as recognition
from ediffi_jax.evaluation import style_transfer
from ediffi_jax.evaluation.style_transfer import Case, make_cases, measure

CASES = make_cases(2, seed=1)


@pytest.fixture(scope="module")
def classify() -> recognition.StyleClassifier:
    return recognition.trained()


def test_prompts_with_a_relation_are_new_combinations_and_those_without_have_none():
    for case in make_cases(2, seed=3):
        assert case.scene.relation and scenes.held_out(case.scene) and case.prompt == scenes.canonical(case.scene)
        assert "style" not in case.prompt
    assert not any(case.scene.relation for case in make_cases(2, seed=3, relation=False))


def drawn(case: Case, style: str, objects: tuple[scenes.Object, ...] = ()) -> np.ndarray:
    """The picture of the prompt's objects (or others) in a style."""
    spots = zip(objects or case.scene.objects, (0.28, 0.72))
    placed = tuple(dataclasses.replace(o, x=x, y=0.5, radius=0.18) for o, x in spots)
    return scenes.render(scenes.Scene(objects=placed, style=style), 128)


@pytest.mark.parametrize("wear", [False, True])
def test_styles_of_new_renders_are_recognised(classify: recognition.StyleClassifier, wear: bool) -> None:
    found, names = recognition.renders(20, seed=11, resolution=256)
    rng = np.random.default_rng(0)
    seen = classify([recognition.worn(picture, rng) if wear else picture for picture in found])
    assert np.mean([a == b for a, b in zip(seen, names, strict=True)]) >= 0.97


def test_cases_are_held_out_references_and_prompts_apart_from_them() -> None:
    assert [case.style for case in CASES] == [style for style in v.STYLES for _ in range(2)]
    assert CASES == make_cases(2, seed=1) and CASES != make_cases(2, seed=2)
    for case in CASES:
        assert scenes.held_out(case.reference) and not any(style in case.prompt for style in v.STYLES)
        wanted = {(o.colour, o.shape) for o in case.scene.objects}
        assert len(wanted) == 2 and not wanted & {(o.colour, o.shape) for o in case.reference.objects}
        assert all(f"{colour} {shape}" in case.prompt for colour, shape in wanted)


def test_a_perfect_transfer_is_all_right_and_an_ignored_or_copied_reference_is_not(
    classify: recognition.StyleClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    perfect = measure(np.stack([drawn(case, case.style) for case in CASES]), CASES, classify)
    assert perfect.recognised == perfect.content == 1 and perfect.copied == 0 and perfect.read == 12
    ignored = measure(np.stack([drawn(case, "flat") for case in CASES]), CASES, classify)
    assert ignored.recognised == pytest.approx(1 / 6) and ignored.content == 1 and ignored.found == {"flat": 12}
    copied = measure(np.stack([drawn(c, c.style, c.reference.objects) for c in CASES]), CASES, classify)
    assert copied.recognised == copied.copied == 1 and copied.content == 0
    monkeypatch.setattr(style_transfer, "READABLE", ("flat",))
    neon = [case for case in CASES if case.style == "neon"]
    unread = measure(np.stack([drawn(case, "neon") for case in neon]), neon, classify)
    assert unread.content is None and unread.read == 0 and "content -" in unread.row()
