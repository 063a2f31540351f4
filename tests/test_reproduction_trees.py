"""Claims 1 and 9: what makes the comparison of trees fair, the arithmetic behind the findings, the whole in small."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ediffi_jax.evaluation.curves import Point
from ediffi_jax.experts import Ensemble
from ediffi_jax.reproduction import ensemble, tree_measures, tree_runs, trees
from ediffi_jax.reproduction.claim import CONTRADICTED, REPRODUCED
from ediffi_jax.reproduction.study import Study


def study(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> Study:
    claim = folder / "claim"
    claim.mkdir(exist_ok=True)
    return Study(folder=claim, shared=folder / "shared", budget="seconds", seeds=seeds, say=lambda line: None)


@pytest.mark.parametrize("budget", ["minutes", "hours"])
@pytest.mark.parametrize("tree", tree_runs.TREES)
def test_every_noise_level_sees_as_many_images_in_every_tree(tree: str, budget: str) -> None:
    size = tree_runs.SIZES[budget]
    images = 0
    for interval in Ensemble(cuts=tree_runs.TREES[tree]).intervals:
        own = tree_runs.node_steps(size, interval) * size.batch_size
        assert own / (interval.high - interval.low) == pytest.approx(size.more, rel=0.01)
        images += own
    assert images == pytest.approx(size.more, rel=0.005)


@pytest.mark.parametrize("budget", ["minutes", "hours"])
def test_sizes_are_whole_steps(budget: str) -> None:
    size = tree_runs.SIZES[budget]
    for images in (size.early, size.late, size.more, size.evaluate):
        assert images % size.batch_size == 0
    assert size.late % (10 * size.evaluate) == 0  # else `fall` would compare stretches of unequal length


def test_the_change_of_loss_is_of_the_means_inside_the_interval() -> None:
    first, second = np.array([4.0, 2.0, 1.0, 1.0]), np.array([3.0, 2.0, 1.0, 2.0])
    assert tree_measures.change(first, second) == pytest.approx(0.0)  # (3 + 2 + 1 + 2) / (4 + 2 + 1 + 1)
    assert tree_measures.change(first, second, 0.0, 0.25) == pytest.approx(-25)
    assert tree_measures.change(first, second, 0.75, 1.0) == pytest.approx(100)


@pytest.mark.parametrize("rate", [0.0, 0.3, 2.0])
def test_the_fall_of_an_exponential_is_known(rate: float) -> None:
    curve = [(10 * i, float(np.exp(-rate * i / 100))) for i in range(1, 101)]
    assert tree_measures.fall(curve) == pytest.approx(100 * (1 - np.exp(-rate * 0.2)), abs=1e-9)


def told(fid: float) -> dict[str, Any]:
    """What `tree_measures.points` gives, FID lowest at w = 1."""
    how = {"sampler": {"base": "deis_ab3"}, "steps": {"base": 16}, "resize": "pil_bicubic"}
    described = {"name": "tower"}
    settings = {"network": described, "clip": described, "protocol": described, "n": 10, "resize": "pil_bicubic"}
    points = [
        Point(
            guidance=w, seed=0, n=10, reference_n=10, fid=fid + abs(w - 1), kid=0.0, kid_std=0.0, kid_subset_size=10,
            precision=0.5, recall=0.5, clip_score=0.2 + 0.01 * w, right=None, **how,
        )
        for w in tree_measures.GUIDANCE
    ]  # fmt: skip
    return {
        "settings": {**settings, "reference": {"fingerprint": "0"}},
        "points": [dataclasses.asdict(point) for point in points],
    }


@pytest.mark.parametrize(("better", "verdict"), [(True, REPRODUCED), (False, CONTRADICTED)])
def test_verdicts_follow_what_was_measured(
    better: bool, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, FID and accuracy of every tree are all better than the single model's, or all worse."""
    gain = {"single": 0.0, "two": 1.0, "extremes": 2.0, "quarters": 2.0 if better else 1.0}
    sign = 1 if better else -1

    def losses(study: Study, seed: int, regime: str, tree: str) -> np.ndarray:
        return (1 - 0.05 * sign * gain[tree]) * (1 + 0.001 * seed) * np.linspace(2, 1, 16)

    def points(study: Study, seed: int, regime: str, tree: str) -> dict[str, Any]:
        return told(fid=50 - sign * gain[tree] - 0.1 * seed * gain[tree])

    def shares(study: Study, seed: int, regime: str, tree: str) -> dict[str, dict[str, float]]:
        right = 0.5 + 0.05 * sign * gain[tree]
        return {f"{w:g}": dict.fromkeys((*tree_measures.PARTS, "all"), right) for w in tree_measures.GUIDANCE}

    monkeypatch.setattr(tree_measures, "losses", losses)
    monkeypatch.setattr(tree_measures, "points", points)
    monkeypatch.setattr(tree_measures, "shares", shares)
    monkeypatch.setattr(tree_measures, "base_curve", lambda study, seed: [(i, 1.0) for i in range(1, 11)])
    for claim in (ensemble.CLAIM, trees.CLAIM):
        result = claim.run(study(tmp_path))
        assert result.verdict == verdict
        for picture in result.pictures:
            with Image.open(tmp_path / "claim" / picture.file) as image:
                assert min(image.size) > 300
    assert result.findings[0].values == pytest.approx((-10 * sign,) * 3)
    first = ensemble.CLAIM.run(study(tmp_path)).findings
    assert [f.mean for f in first[:3]] == pytest.approx([-10 * sign, -2 * sign - 0.2, 10 * sign], abs=0.01)
    assert "w = 1" in first[1].what


@pytest.mark.pod
def test_both_claims_in_small_and_once_more_from_memory(tmp_path: Path) -> None:
    """Trains every tree of one seed. The same call again trains and measures nothing, to the same numbers."""
    results = [claim.run(study(tmp_path, seeds=(100,))) for claim in (ensemble.CLAIM, trees.CLAIM)]
    model = tree_runs.model(study(tmp_path), 100, "late", "quarters")
    assert model.stages[0].ensemble.cuts == (0.25, 0.5, 0.75)
    again = [
        claim.run(dataclasses.replace(study(tmp_path, seeds=(100,)), say=pytest.fail))
        for claim in (ensemble.CLAIM, trees.CLAIM)
    ]
    assert again == results
