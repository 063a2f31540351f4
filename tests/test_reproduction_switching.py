"""The claim about prompt switching: who sees which step, what is read, and the whole run."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ediffi_jax import guidance, samplers
from ediffi_jax.cascade import load
from ediffi_jax.data import scenes
from ediffi_jax.evaluation import prompt_switching
from ediffi_jax.reproduction import switching
from ediffi_jax.reproduction.claim import REPRODUCED
from ediffi_jax.reproduction.study import Study


@pytest.mark.parametrize("share", switching.SHARES)
@pytest.mark.parametrize("steps", [1, 7, switching.STEPS])
def test_the_last_steps_see_the_second_prompt(share: float, steps: int) -> None:
    sigmas = np.float32(samplers.power(steps))
    level = np.float32(switching.switch_level(sigmas, share))
    denoise = guidance.switch_prompt(lambda x, _: x * 0, lambda x, _: x * 0 + 1, level)
    seen = [float(denoise(jnp.zeros(()), sigma)) for sigma in sigmas[:-1]]
    assert seen == sorted(seen)
    assert sum(seen) == round(share * steps)


def test_prompts_of_a_case_share_nothing_and_are_known() -> None:
    cases = prompt_switching.make_cases(50, 3)
    assert cases == prompt_switching.make_cases(60, 3)[:50] != prompt_switching.make_cases(50, 4)
    for case in cases:
        first, second = case.scenes
        words = [{w for o in scene.objects for w in o.binding} for scene in case.scenes]
        assert not words[0] & words[1] and len(words[0]) == len(words[1]) == 4
        assert {first.relation, second.relation} & {"left of", "right of"}
        assert {first.relation, second.relation} & {"above", "below"}
        assert not scenes.held_out(first) and not scenes.held_out(second)
        assert [scene.relation in prompt for scene, prompt in zip(case.scenes, case.prompts)] == [True, True]


def _painted(case: prompt_switching.Case, colours: int, shapes: int, layout: int) -> np.ndarray:
    """A render with each part from one of the two prompts."""
    level = case.scenes[layout].relation in prompt_switching.AXES[0]
    places = ((0.27, 0.5), (0.73, 0.5)) if level else ((0.5, 0.27), (0.5, 0.73))
    things = tuple(
        scenes.Object(colour=c.colour, shape=s.shape, x=x, y=y, radius=0.19)
        for c, s, (x, y) in zip(case.scenes[colours].objects, case.scenes[shapes].objects, places)
    )
    return scenes.render(scenes.Scene(objects=things), 64)


@pytest.mark.parametrize(("colours", "shapes", "layout"), [(0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 1), (1, 1, 0)])
def test_each_part_is_read_by_itself(colours: int, shapes: int, layout: int) -> None:
    cases = prompt_switching.make_cases(3, 5)
    read = prompt_switching.read(np.stack([_painted(case, colours, shapes, layout) for case in cases]), cases)
    for part, whose in (("colours", colours), ("shapes", shapes), ("layout", layout)):
        assert np.array_equal(read[part], np.tile([whose == 0, whose == 1], (3, 1))), part
    for which in (0, 1):
        assert np.all(read["objects"][:, which] == (colours == shapes == which))


def test_an_empty_picture_belongs_to_nobody() -> None:
    gray = np.full((1, 32, 32, 3), 132, np.uint8)
    assert not any(found.any() for found in prompt_switching.read(gray, prompt_switching.make_cases(1)).values())


def test_shares_and_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 pairs that turn at 50 %: the numbers follow from the parts, which a second run only reads."""
    made = []

    def part(draw: object, cases: list, share: float) -> dict:
        made.append(share)
        late = share >= 0.5
        rows = [[not late, late]] * 63 + [[False, False]]
        pictures = np.full((64, 4, 4, 3), round(100 * share), np.uint8)
        coded = base64.b64encode(pictures.tobytes()).decode()
        return {"side": 4, "pictures": coded, "read": {name: rows for name in prompt_switching.PARTS}}

    monkeypatch.setattr(switching, "_part", part)
    study = Study(folder=tmp_path, shared=tmp_path, budget="hours", seeds=(0, 1), say=lambda line: None)
    for _ in range(2):
        result = switching.run(study)
    assert made == 2 * list(switching.SHARES)
    first, second = result.findings[:2]
    assert first.values == second.values == (63 / 64, 63 / 64) and first.n == 64
    changes = [finding.values for finding in result.findings if "change" in finding.what]
    assert changes == [(7.0, 7.0), (30.0, 30.0), (100.0, 100.0)]
    assert result.verdict == REPRODUCED
    assert [(tmp_path / picture.file).exists() for picture in result.pictures] == [True, True]
    rows = {row[0]: row for row in result.tables[0].rows}
    assert rows["60 %"][1] == "18 of 30" and rows["0 %"][2] == rows["100 %"][2] == "-"


@pytest.mark.pod
def test_the_ends_are_ordinary_samples(tmp_path: Path) -> None:
    study = Study(folder=tmp_path, shared=tmp_path, budget="seconds", seeds=(7,), say=lambda line: None)
    switching.run(study)
    cascade = load("scenes")
    base = dataclasses.replace(cascade, stages=cascade.stages[:1])
    cases = prompt_switching.make_cases(2, 7)
    for name, which in (("last000", 0), ("last100", 1)):
        part = study.remembered(f"seed7/{name}", dict, pairs=2, sampler=switching.SAMPLER, steps=switching.STEPS)
        prompts = [case.prompts[which] for case in cases]
        sampled = base.sample(prompts, seed=7, sampler=switching.SAMPLER, steps=switching.STEPS, progress=False)
        assert np.abs(switching._pictures(part).astype(int) - sampled).max() <= 1
