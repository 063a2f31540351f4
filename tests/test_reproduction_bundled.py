"""The claims that train nothing, measured on renders whose content is known; as pod tests, on the bundled cascade."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import vocabulary as v
from ediffi_jax.evaluation import paint_control, style_transfer
from ediffi_jax.paint import PAINT_WEIGHT
from ediffi_jax.reproduction import bundled, claims, embeddings, paint, style
from ediffi_jax.reproduction.claim import IN_PART, REPRODUCED, Finding, Result
from ediffi_jax.reproduction.study import Study
from ediffi_jax.stage import CascadeError

SEEDS = (3, 4)


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    once = functools.cache(bundled.load)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bundled, "load", once)
        yield


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(folder=tmp_path, shared=tmp_path, budget="seconds", seeds=SEEDS, say=lambda text: None)


def render(things: tuple[scenes.Object, ...], look: str = "flat") -> np.ndarray:
    return scenes.render(scenes.Scene(objects=things, style=look), 128)


def found(result: Result, what: str) -> Finding:
    [finding] = [finding for finding in result.findings if finding.what == what]
    return finding


def test_encoders_are_compared_caption_by_caption(study, monkeypatch):
    def draw(cascade, prompts, seed, encoders):
        asked = {text: scene for kind in embeddings.KINDS for text, scene in embeddings.captions(kind, 2, seed)}
        right = [scenes.render(asked[prompt], 128) for prompt in prompts]
        if set(encoders) == {"t5", "clip_text"}:
            return np.stack(right)
        return np.stack([right[0], np.full_like(right[0], 132)] if encoders == ["t5"] else 2 * [right[0][::-1] * 0])

    monkeypatch.setattr(bundled, "draw", draw)
    result = embeddings.run(study)
    assert found(result, "short: share all right, T5 + CLIP minus T5 only").values == (0.5, 0.5)
    assert found(result, "long: share all right, T5 + CLIP minus CLIP only").values == (1.0, 1.0)
    assert found(result, "long: share all right, T5 only minus CLIP only").values == (0.5, 0.5)
    assert max(found(result, "long: FID, T5 + CLIP minus CLIP only").values) < 0
    assert sum(finding.decisive for finding in result.findings) == 5 and result.verdict == REPRODUCED
    monkeypatch.setattr(bundled, "draw", None)  # a finished run is read, not made again
    assert embeddings.run(study) == result


def test_captions_are_what_they_are_called_and_their_scenes_are_read_right():
    for kind in embeddings.KINDS:
        asked = embeddings.captions(kind, 12, seed=5)
        assert asked == embeddings.captions(kind, 12, seed=5) != embeddings.captions(kind, 12, seed=6)
        for text, scene in asked:
            assert scene.kind == "mixed" and all(f"{o.colour} {o.shape}" in text for o in scene.objects)
            assert (len(text.split()) >= embeddings.LONG) == (kind == "long") and len(scene.objects) > 2 * (
                kind == "long"
            )
        assert np.mean([scenes.score(scenes.render(scene, 128), scene).all for _, scene in asked]) == 1.0


def test_paint_is_control_over_the_weight(study, monkeypatch):
    def draw(cascade, prompts, seed, paint, paint_weight):
        cases = paint_control.make_cases(3, seed)
        assert list(prompts) == [case.prompt for case in cases] and paint == [case.paint() for case in cases]
        pictures = []
        for case in cases:  # the first object always where it belongs, the second only with weight enough
            boxes = case.boxes if paint_weight >= PAINT_WEIGHT else case.boxes[:1] * 2
            centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
            things = [
                scenes.Object(colour=colour, shape=shape, x=x, y=y, radius=0.12)
                for (colour, shape), (x, y) in zip(case.bindings, centres)
            ]
            pictures.append(render(tuple(things[: 2 if paint_weight >= PAINT_WEIGHT else 1])))
        return np.stack(pictures)

    monkeypatch.setattr(bundled, "draw", draw)
    result = paint.run(study)
    name = paint.SHARES["inside"]
    assert found(result, f"{name}: w' = 1.2 minus unpainted").values == (0.5, 0.5)
    assert found(result, f"{name}: w' = 1.2 minus 0.3").values == (0.5, 0.5)
    assert found(result, f"{paint.SHARES['whole']}: w' = 1.2 minus unpainted").values == (1.0, 1.0)
    assert found(result, f"{name}: w' = 2.4").values == (1.0, 1.0) and result.verdict == REPRODUCED


@pytest.mark.parametrize("keeps", [True, False])
def test_style_is_taken_and_content_kept_or_not(study, monkeypatch, keeps):
    def draw(cascade, prompts, seed, style=None):
        cases = style_transfer.make_cases(1, seed)
        assert style is None or [picture.shape for picture in style] == 6 * [(256, 256, 3)]
        looks = [case.style if style else "flat" for case in cases]
        drawn = [case.scene if keeps or not style else case.reference for case in cases]
        return np.stack([scenes.render(dataclasses.replace(s, style=look), 256) for s, look in zip(drawn, looks)])

    monkeypatch.setattr(bundled, "draw", draw)
    result = style.run(study)
    gain = found(result, f"{style.SHARES['recognised']}: with minus without the reference").values
    assert gain == pytest.approx([1 - 1 / len(v.STYLES)] * 2)
    assert found(result, f"{style.SHARES['content']}, with").values == ((1.0, 1.0) if keeps else (0.0, 0.0))
    assert found(result, f"{style.SHARES['copied']}, with").values == ((0.0, 0.0) if keeps else (1.0, 1.0))
    assert result.verdict == (REPRODUCED if keeps else IN_PART)


def test_the_release_is_cut_at_a_resolution():
    assert [s.spec.name for s in bundled.opened("scenes", 64).stages] == ["base", "sr64"]
    with pytest.raises(CascadeError, match="256 pixels; expected at least 512"):
        bundled.opened("scenes", 512)


def test_kept_pictures_come_back():
    pictures = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    assert np.array_equal(bundled.decoded(bundled.coded(pictures)), pictures[: bundled.KEPT])
    assert np.array_equal(bundled.decoded(bundled.coded(pictures[::3])), pictures[::3])


@pytest.mark.pod
@pytest.mark.parametrize("name", ["embeddings", "paint", "style"])
def test_the_bundled_cascade_is_measured(study, name):
    [claim] = claims.chosen([name])
    result = claim.run(study)
    assert all(np.isfinite(finding.values).all() for finding in result.findings)
    for picture in result.pictures:
        assert min(Image.open(study.folder / picture.file).size) > 200
