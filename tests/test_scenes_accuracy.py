"""Accuracy and colour drift against pictures whose content is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ediffi_jax.data import scenes
from ediffi_jax.evaluation.scenes_accuracy import accuracy, box_average, colour_drift


@pytest.fixture(scope="module")
def wanted() -> list[scenes.Scene]:
    return [scene for _, scene in scenes.heldout_prompts(24, seed=3)]


def test_clean_renders_are_right_and_shuffled_ones_are_not(wanted):
    pictures = np.stack([scenes.render(scene, 128) for scene in wanted])
    right = accuracy(pictures, wanted)
    assert right.shares["all"] >= 0.95
    assert right.number == 24 and sum(n for _, n in right.by_relation.values()) == 24
    wrong = accuracy(np.roll(pictures, 1, axis=0), wanted)
    assert wrong.shares["all"] <= 0.1 and wrong.shares["count"] >= 0.9


def test_an_attribute_that_is_wrong_is_the_one_reported(wanted):
    scene = next(s for s in wanted if s.relation == "left of")
    mirrored = scenes.render(scene, 128)[:, ::-1]
    moved = accuracy(mirrored[None], [scene])
    assert moved.shares["relation"] == 0 and moved.shares["colours"] == 1
    other = next(c for c in ("red", "blue", "green") if c not in {o.colour for o in scene.objects})
    first = dataclasses.replace(scene.objects[0], colour=other)
    recoloured = scenes.render(dataclasses.replace(scene, objects=(first, scene.objects[1])), 128)
    changed = accuracy(recoloured[None], [scene])
    assert changed.shares["colours"] == 0 and changed.shares["relation"] == 1


def test_standard_error_is_the_binomial_one(wanted):
    pictures = np.stack([scenes.render(scene, 64) for scene in wanted])
    half = np.concatenate([pictures[:12], np.zeros_like(pictures[12:])])
    found = accuracy(half, wanted)
    p = found.shares["all"]
    assert 0.3 < p <= 0.5
    assert found.error("all") == pytest.approx(np.sqrt(p * (1 - p) / 24))


def test_drift_is_the_offset_added_and_edges_do_not_count(wanted):
    final = np.stack([scenes.render(scene, 128) for scene in wanted])
    base = np.round(box_average(final, 16)).astype(np.uint8)
    same = colour_drift(base, final)
    assert same.absolute < 0.6
    offset = np.array([4, -6, 0])
    shifted = colour_drift(base, np.clip(final.astype(int) + offset, 0, 255).astype(np.uint8))
    # Saturated colours cannot move further, so the bias is at most the offset.
    assert shifted.bias[0] == pytest.approx(4, abs=1.0)
    assert shifted.bias[1] == pytest.approx(-6, abs=1.5)
    assert shifted.bias[2] == pytest.approx(0, abs=0.5)


def test_box_average_keeps_the_mean():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    np.testing.assert_allclose(box_average(pictures, 4).mean((1, 2)), pictures.mean((1, 2)))
