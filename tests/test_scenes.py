"""Scenes: the shapes against supersampled masks, the sampler against what captions promise, JSON round trips."""

import collections
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import __main__ as sheets
from ediffi_jax.data.scenes import heldout, rendering, sampling, shapes
from ediffi_jax.data.scenes import vocabulary as v


def draw(number, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [scenes.sample_scene(rng, **options) for _ in range(number)]


MANY = draw(3000)


def polygon(points, x, y):
    """Even-odd rule, written without distances."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1]):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


def heart_mask(x, y):
    """Two discs and a square on its corner; the tip points down."""
    k = 1 / (0.25 + np.sqrt(0.125))
    y = k * (0.75 + np.sqrt(0.125)) / 2 - y
    x, y = x / k, y / k
    discs = [np.hypot(x - s, y - 0.75) < np.sqrt(0.125) for s in (-0.25, 0.25)]
    return discs[0] | discs[1] | (np.abs(x) + np.abs(y - 0.5) < 0.5)


MASKS = {
    "circle": lambda x, y: x**2 + y**2 < 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.94,
    "triangle": lambda x, y: polygon([(0, -0.92), (1, 0.92), (-1, 0.92)], x, y),
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.36) & (np.maximum(np.abs(x), np.abs(y)) < 1),
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.52**2),
    "heart": heart_mask,
    "moon": lambda x, y: (
        ((x - shapes.MOON_SHIFT) ** 2 + y**2 < 1)
        & ((x - shapes.MOON_SHIFT - 0.56) ** 2 + y**2 > 0.74**2)
    ),
}


@pytest.mark.parametrize("shape", v.SHAPES)
def test_shape_is_its_mask_and_its_distance_is_euclidean(shape):
    axis = (np.arange(600) + 0.5) / 200 - 1.5
    x, y = axis[None, :], axis[:, None]
    distance, mask = shapes.SDFS[shape](x, y), MASKS[shape](x, y)
    near = np.abs(distance) > 0.006
    np.testing.assert_array_equal((distance < 0)[near], mask[near])
    measured = (ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)) / 200
    close = np.abs(measured) < 0.08  # anti-aliasing looks no farther; corners are inexact inside
    assert np.quantile(np.abs(distance - measured)[close], 0.97) < 0.012
    assert np.abs([axis[mask.any(0)][[0, -1]].sum(), axis[mask.any(1)][[0, -1]].sum()]).max() < 0.02  # centred
    assert 1.84 < np.ptp(axis[mask.any(0)]) <= 2.01 or shape == "moon"


def supersampled(scene, resolution):
    """The flat style by point samples: an independent rendering without anti-aliasing."""
    factor = max(4, 512 // resolution)
    fine = resolution * factor
    picture = rendering.backdrop(scene, fine)
    centres = (np.arange(fine) + 0.5) / fine
    for thing in reversed(scene.objects):
        x, y = (centres[None, :] - thing.x) / thing.radius, (centres[:, None] - thing.y) / thing.radius
        picture[MASKS[thing.shape](x, y)] = v.COLOURS[thing.colour]
    return picture.reshape(resolution, factor, resolution, factor, 3).mean((1, 3))


@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_flat_render_agrees_with_point_sampling(resolution):
    solid = [s for s in MANY if s.style == "flat" and all(o.texture == "solid" for o in s.objects)]
    for scene in solid[: 20 if resolution < 256 else 5]:
        error = np.abs(scenes.render(scene, resolution).astype(float) - supersampled(scene, resolution))
        assert error.mean() < 0.7
        assert np.quantile(error, 0.999) < 26  # an eighth of a pixel, at corners


@pytest.mark.parametrize("style", v.STYLES)
def test_one_scene_at_all_resolutions(style):
    for scene in [s for s in MANY if s.style == style][:6]:
        large = scenes.render(scene, 256)
        for resolution in (64, 16):
            averaged = cv2.resize(large, (resolution, resolution), interpolation=cv2.INTER_AREA)
            error = np.abs(averaged.astype(float) - scenes.render(scene, resolution))
            assert error.mean() < 2.5, (style, resolution)


def test_styles_change_the_whole_picture():
    scene = next(s for s in MANY if s.style == "flat" and s.kind == "relation")
    pictures = [
        scenes.render(scenes.Scene(objects=scene.objects, relation=scene.relation, style=style), 64)
        for style in v.STYLES
    ]
    for a, b in itertools.combinations(pictures, 2):
        changed = np.abs(a.astype(float) - b).max(-1) > 8
        assert changed.mean() > 0.3


def test_render_refuses_tiny_pictures():
    with pytest.raises(scenes.SceneError, match="at least 8"):
        scenes.render(MANY[0], 4)


def test_colours_are_far_apart():
    def lab(colours):
        values = np.array(list(colours.values()), np.float32)[None] / 255
        return cv2.cvtColor(values, cv2.COLOR_RGB2LAB)[0]

    objects, grounds = lab(v.COLOURS), lab(v.BACKGROUNDS)
    among = [np.linalg.norm(a - b) for a, b in itertools.combinations(objects, 2)]
    against = [np.linalg.norm(a - b) for a, b in itertools.product(objects, grounds)]
    assert min(among) > 34 and min(against) > 28


def test_kinds_come_in_their_shares():
    kinds = collections.Counter(s.kind for s in MANY)
    for kind, share in sampling.KINDS.items():
        assert abs(kinds[kind] / len(MANY) - share) < 0.03
    relations = collections.Counter(s.relation for s in MANY if s.relation)
    assert set(relations) == set(v.RELATIONS) and min(relations.values()) > 0.15 * relations.total()
    flat = sum(s.style == "flat" for s in MANY) / len(MANY)
    assert abs(flat - sampling.FLAT_SHARE) < 0.04


def test_objects_are_in_the_frame_and_apart():
    for scene in MANY:
        for o in scene.objects:
            assert min(o.x, o.y) - o.radius >= 0.039 and max(o.x, o.y) + o.radius <= 0.961
        if scene.relation == "inside":
            inner, outer = scene.objects
            assert inner.radius < 0.5 * outer.radius and inner.colour != outer.colour
            continue
        for a, b in itertools.combinations(scene.objects, 2):
            gap = max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius
            assert gap > 0.04, scene


def test_relations_hold_in_the_coordinates():
    signs = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
    for scene in MANY:
        if scene.relation in signs:
            a, b = scene.objects
            sx, sy = signs[scene.relation]
            along = sx * (b.x - a.x) + sy * (b.y - a.y)
            across = abs(sy * (b.x - a.x)) + abs(sx * (b.y - a.y))
            assert along > 0.3 and across < 0.15


def test_inner_objects_do_not_reach_the_outline():
    for scene in [s for s in MANY if s.relation == "inside"]:
        inner, outer = scene.objects
        angle = np.linspace(0, 2 * np.pi, 32)
        x = (inner.x + inner.radius * np.cos(angle) - outer.x) / outer.radius
        y = (inner.y + inner.radius * np.sin(angle) - outer.y) / outer.radius
        assert shapes.SDFS[outer.shape](x[None], y[None]).max() < -0.05


def test_training_never_sees_what_is_held_out():
    seen = set()
    for scene in MANY:
        bindings = {o.binding for o in scene.objects}
        assert not bindings & v.HELD_OUT_BINDINGS
        seen |= {frozenset(pair) for pair in itertools.combinations(bindings, 2)}
    for binding in (False, True):
        for caption, scene in scenes.heldout_prompts(200, seed=1, binding=binding):
            pair = frozenset(o.binding for o in scene.objects)
            assert heldout.held_out(scene) and pair not in seen
            assert bool(pair & v.HELD_OUT_BINDINGS) == binding
            assert scene.style == "flat" and scene.relation and caption == scenes.canonical(scene)


def test_a_tenth_of_all_pairs_is_held_out_whichever_way_round():
    bindings = list(itertools.product(v.COLOURS, v.SHAPES))
    pairs = list(itertools.combinations(bindings, 2))
    marked = [heldout.pair_held_out(a, b) for a, b in pairs]
    assert marked == [heldout.pair_held_out(b, a) for a, b in pairs]
    assert 0.08 < np.mean(marked) < 0.12
    assert not any(heldout.pair_held_out(a, a) for a in bindings)


def test_prompts_are_different_and_repeatable():
    prompts = scenes.heldout_prompts(300, seed=0)
    assert len({text for text, _ in prompts}) == 300
    assert prompts == scenes.heldout_prompts(300, seed=0)
    assert prompts != scenes.heldout_prompts(300, seed=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_json_round_trip(seed):
    scene = scenes.sample_scene(np.random.default_rng(seed), held_out=bool(seed % 2))
    assert scenes.Scene.from_json(scene.to_json()) == scene
    assert len(scene.to_json()) < 300


@pytest.mark.parametrize("text", ["", "{}", "[1,2]", '[[["medium","solid","red"]],"","gray","","flat"]'])
def test_other_json_is_refused(text):
    with pytest.raises(scenes.SceneError, match="not a scene"):
        scenes.Scene.from_json(text)


def test_unknown_words_are_refused_with_the_nearest():
    with pytest.raises(scenes.SceneError, match="did you mean 'circle'"):
        scenes.Object(colour="red", shape="cirle")
    red = scenes.Object(colour="red", shape="circle")
    with pytest.raises(scenes.SceneError, match="2 objects"):
        scenes.Scene(objects=(red,), relation="above")
    with pytest.raises(scenes.SceneError, match="1 to 4"):
        scenes.Scene(objects=())


def test_sheet_command(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert sheets.main([f"--out={out}", "--columns=2", "--resolution=16"]) == 0
    assert cv2.imread(str(out)).shape == (6 * 132 + 4, 2 * 132 + 4, 3)
    assert sheets.main([f"--out={tmp_path / 'none' / 'sheet.png'}", "--columns=1"]) == 2
    assert "error:" in capsys.readouterr().err
