"""The scorer on all styles: clean renders, worn ones and enlarged ones are read, and what is wrong in them is noticed."""

import dataclasses

import cv2
import numpy as np
import pytest

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import segmentation, styles, unstyle
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.evaluation.style_recognition import worn

RNG = np.random.default_rng(31)
PAIRS = [scenes.sample_scene(RNG, held_out=True, binding=bool(i % 2)) for i in range(20)]
PAIRS += [dataclasses.replace(scene, gradient_to="navy") for scene in PAIRS[:6] if scene.background != "navy"]
ANY = [scenes.sample_scene(RNG) for _ in range(12)]  # counts, textures, sizes
OTHERS = v.STYLES[1:]  # than flat, which has tests of its own


def picture(scene, style, resolution=256):
    return scenes.render(dataclasses.replace(scene, style=style), resolution)


def right(image, scene, style):
    return scenes.score(image, dataclasses.replace(scene, style=style)).all


@pytest.mark.parametrize("style", OTHERS)
def test_clean_renders_are_read(style):
    # measured (200 scenes of each kind, seed 20): at least 0.99
    assert np.mean([right(picture(scene, style), scene, style) for scene in PAIRS + ANY]) >= 0.97


@pytest.mark.parametrize("style", OTHERS)
def test_renders_enlarged_from_64_pixels_are_read(style):
    def enlarged(scene):
        return cv2.resize(picture(scene, style, 64), (256, 256), interpolation=cv2.INTER_CUBIC)

    assert np.mean([right(enlarged(scene), scene, style) for scene in PAIRS[::3] + ANY[::2]]) >= 0.94


@pytest.mark.parametrize("style", OTHERS)
def test_blurred_noised_and_tinted_renders_are_read(style):
    rng = np.random.default_rng(0)
    sample = PAIRS[1::3] + ANY[1::2]
    assert np.mean([right(worn(picture(scene, style), rng), scene, style) for scene in sample]) >= 0.9


@pytest.mark.parametrize("style", v.STYLES)
def test_swapped_colours_and_wrong_shapes_are_noticed(style):
    for scene in [s for s in PAIRS if len({o.colour for o in s.objects}) == 2][:5]:
        a, b = scene.objects
        swapped = (dataclasses.replace(a, colour=b.colour), dataclasses.replace(b, colour=a.colour))
        asked = dataclasses.replace(scene, style=style)
        assert not scenes.score(picture(dataclasses.replace(scene, objects=swapped), style), asked).all
        shape = next(s for s in v.SHAPES if s not in (a.shape, b.shape))
        other = dataclasses.replace(scene, objects=(dataclasses.replace(a, shape=shape), b))
        got = scenes.score(picture(other, style), asked)
        assert not got.shapes and got.colours and got.count


@pytest.mark.parametrize("style", OTHERS)
def test_missing_objects_and_empty_pictures_are_noticed(style):
    scene = next(s for s in PAIRS if s.relation == "above")
    one = dataclasses.replace(scene, objects=scene.objects[:1], relation="")
    got = scenes.score(picture(one, style), dataclasses.replace(scene, style=style))
    assert not (got.count or got.colours or got.shapes or got.relation)
    ground = np.clip(segmentation.background(picture(one, style).astype(np.float32)[::2, ::2]), 0, 255)
    if style != "mosaic":  # an empty mosaic still has its tiles
        assert scenes.read(ground.astype(np.uint8), style) == []


@pytest.mark.parametrize("style", styles.BRUSHES)
def test_places_sizes_and_holders_are_measured(style):
    for scene in PAIRS[:8]:
        seen = scenes.read(picture(scene, style), style)
        assert [s.on for s in seen] == ([-1, 0] if scene.relation == "inside" else [-1, -1])
        for thing in scene.objects:
            found = next(s for s in seen if (s.colour, s.shape) == thing.binding)
            assert abs(found.x - thing.x) < 0.02 and abs(found.y - thing.y) < 0.02
            assert abs(max(found.width, found.height) - 2 * thing.radius) < 0.04


def test_a_mosaic_without_its_joints_is_the_picture_at_16_pixels():
    for scene in ANY:
        plain = dataclasses.replace(scene, style="flat")
        expected = cv2.resize(scenes.render(plain, 256), (16, 16), interpolation=cv2.INTER_AREA).astype(int)
        dim = expected.max(axis=-1) < 240  # brighter ones were clipped
        assert np.abs(unstyle.mosaic(picture(scene, "mosaic")) - expected)[dim].mean() < 2


def test_noise_alone_and_unknown_styles():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for style in v.STYLES:
        assert not right(noise, PAIRS[0], style)
    with pytest.raises(scenes.SceneError, match="unknown style 'neo'"):
        scenes.read(noise, "neo")
