"""The scorer: at least 99 % on clean renders, measured floors on degraded ones, and it must notice what is wrong."""

import dataclasses

import cv2
import numpy as np
import pytest

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import segmentation
from ediffi_jax.data.scenes import vocabulary as v


def flat_scenes(number, seed):
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < number:
        scene = scenes.sample_scene(rng)
        if scene.style == "flat":
            found.append(scene)
    return found


TRAINED = flat_scenes(60, seed=7)
HELD_OUT = [s for binding in (False, True) for _, s in scenes.heldout_prompts(30, seed=3, binding=binding)]


def noisy(picture, std):
    noise = np.random.default_rng(0).normal(0, std, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def down_up(picture, factor):
    side = picture.shape[0]
    small = cv2.resize(picture, (side // factor,) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def blurred(picture, std):
    return cv2.GaussianBlur(picture, (0, 0), std)


def share_right(resolution, degrade=lambda picture: picture, sample=TRAINED + HELD_OUT):
    return np.mean([scenes.score(degrade(scenes.render(s, resolution)), s).all for s in sample])


@pytest.mark.parametrize("resolution", [64, 256])
def test_clean_renders_are_read(resolution):
    assert share_right(resolution) >= 0.99  # measured (600 scenes): 1.0


def test_clean_coarse_renders_are_read_approximately():
    assert share_right(16, sample=HELD_OUT) >= 0.98  # measured: 1.0
    assert share_right(16, sample=TRAINED) >= 0.93  # measured (300 scenes): 0.98; thin moons of groups are hard


@pytest.mark.parametrize(
    ("resolution", "degrade", "least"),
    [
        (256, lambda p: blurred(p, 3.0), 0.99),  # measured (600 scenes): 1.0
        (256, lambda p: noisy(p, 20), 0.99),  # 1.0
        (256, lambda p: down_up(p, 4), 0.99),  # 1.0
        (256, lambda p: down_up(p, 8), 0.98),  # 0.998
        (256, lambda p: noisy(blurred(down_up(p, 4), 1.5), 6), 0.99),  # 1.0
        (64, lambda p: noisy(p, 8), 0.99),  # 1.0
    ],
    ids=["blur3", "noise20", "down4", "down8", "all", "noise8-at-64"],
)
def test_degraded_renders_are_read(resolution, degrade, least):
    assert share_right(resolution, degrade, TRAINED[::2] + HELD_OUT[::2]) >= least


def test_a_wash_of_colour_does_no_harm():
    wash = np.array([9, -7, 6])
    assert share_right(256, lambda p: np.clip(p * 0.94 + wash, 0, 255).astype(np.uint8), HELD_OUT[::2]) >= 0.97


def test_swapped_colours_are_noticed():
    for scene in [s for s in HELD_OUT if s.objects[0].colour != s.objects[1].colour][:30]:
        a, b = scene.objects
        swapped = (dataclasses.replace(a, colour=b.colour), dataclasses.replace(b, colour=a.colour))
        got = scenes.score(scenes.render(dataclasses.replace(scene, objects=swapped), 256), scene)
        assert not got.all and got.count
        if a.shape != b.shape:
            assert not (got.colours and got.shapes and got.relation)


def test_wrong_shape_or_colour_is_named():
    scene = next(s for s in HELD_OUT if s.relation == "left of")
    a, b = scene.objects
    shape = next(s for s in v.SHAPES if s not in (a.shape, b.shape))
    colour = next(c for c in v.COLOURS if c not in (a.colour, b.colour))
    picture = scenes.render(dataclasses.replace(scene, objects=(dataclasses.replace(a, shape=shape), b)), 256)
    got = scenes.score(picture, scene)
    assert (got.count, got.colours, got.shapes, got.relation) == (True, True, False, True)
    picture = scenes.render(dataclasses.replace(scene, objects=(a, dataclasses.replace(b, colour=colour))), 256)
    got = scenes.score(picture, scene)
    assert (got.count, got.colours, got.shapes, got.relation) == (True, False, True, True)


def test_turned_pictures_have_the_opposite_relation():
    for scene in HELD_OUT[::2]:
        if scene.relation == "inside":
            continue
        flip = 1 if scene.relation in ("left of", "right of") else 0
        picture = np.ascontiguousarray(np.flip(scenes.render(scene, 256), axis=flip))
        assert not scenes.score(picture, scene).relation
        opposite = dataclasses.replace(scene, relation=v.INVERSE[scene.relation])
        assert scenes.score(picture, opposite).relation


def test_missing_and_surplus_objects_are_noticed():
    for scene in [s for s in HELD_OUT if s.relation != "inside"][:20]:
        one = scenes.Scene(objects=scene.objects[:1], background=scene.background)
        assert not scenes.score(scenes.render(one, 256), scene).count
        assert not scenes.score(scenes.render(scene, 256), one).count


def test_an_empty_picture_has_nothing_right():
    empty = np.full((256, 256, 3), 132, np.uint8)
    assert scenes.read(empty) == []
    got = scenes.score(empty, HELD_OUT[0])
    assert not (got.count or got.colours or got.shapes or got.relation)


def test_noise_alone_is_no_crash():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert not scenes.score(noise, HELD_OUT[0]).all


def test_places_and_sizes_are_measured():
    for scene in HELD_OUT[:30]:
        if scene.relation == "inside":
            continue
        seen = scenes.read(scenes.render(scene, 256))
        for thing in scene.objects:
            nearest = min(seen, key=lambda s: abs(s.x - thing.x) + abs(s.y - thing.y))
            assert abs(nearest.x - thing.x) < 0.015 and abs(nearest.y - thing.y) < 0.015
            assert abs(max(nearest.width, nearest.height) - 2 * thing.radius) < 0.03


def test_pastel_pictures_are_read_too():
    sample = [dataclasses.replace(s, style="pastel") for s in HELD_OUT[:40]]
    assert share_right(256, sample=sample) >= 0.95


def test_background_is_fitted_through_objects_that_reach_the_border():
    image = np.full((128, 128, 3), (132, 132, 132), np.float32)
    image[:, :, 0] += np.arange(128)[:, None] * 0.5
    expected = image[:, 0, 0].copy()
    image[40:90, :30] = (222, 28, 36)
    np.testing.assert_allclose(segmentation.background(image)[:, 64, 0], expected, atol=1.0)


@pytest.mark.parametrize("picture", [np.zeros((64, 64), np.uint8), np.zeros((64, 32, 3), np.uint8), np.zeros((64, 64, 3))])
def test_other_arrays_are_refused(picture):
    with pytest.raises(scenes.SceneError, match="square uint8"):
        scenes.read(picture)
