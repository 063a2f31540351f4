"""Claim 8: which numbers are compared with which, what decides, and that only the degradation differs in training."""

from __future__ import annotations

import itertools
from pathlib import Path

import cascade_fakes as fakes
import numpy as np
import pytest

from ediffi_jax import release
from ediffi_jax.cascade import load
from ediffi_jax.evaluation import enlarged
from ediffi_jax.reproduction import degradation
from ediffi_jax.reproduction.degradation import DRAWN, TRUE
from ediffi_jax.reproduction.degradation_networks import CLEAN, DEGRADED, OFF, ON, SIZES, recipe
from ediffi_jax.reproduction.study import Study

SEEDS = (0, 1, 2)
NETWORKS = tuple(itertools.product((OFF, ON), (CLEAN, DEGRADED)))
PLAIN = {"right": 0.5, "distance": 0.3, "bias_red": 0.1, "bias_green": 0.0, "bias_blue": -0.2, "error": 3.0}


def rows() -> dict[degradation.Key, dict[str, float]]:
    keys = [(seed, *network, drawn) for seed, network, drawn in itertools.product(SEEDS, NETWORKS, (*DRAWN, TRUE))]
    return {key: {**PLAIN, "distance": 0.3 + key[0]} for key in keys}  # seeds differ by more than networks


def named(found: tuple, *parts: str) -> degradation.Finding:
    (one,) = (one for one in found if all(part in one.what for part in parts))
    return one


def test_a_network_is_compared_with_the_clean_one_of_its_seed() -> None:
    told = rows()
    for seed, gain in zip(SEEDS, (0.05, 0.06, 0.07), strict=True):
        told[seed, "off", "cascade", "hasty"] = {
            **PLAIN,
            "distance": 0.3 + seed - gain,
            "right": 0.75,
            "bias_green": -7.0,
        }
        told[seed, "off", "cascade", "released"] |= {"bias_green": -1.5 - seed}
    found = degradation.findings(told, SEEDS, 64)
    better = named(found, "distance to", "degraded − clean, augmentation off", "base hasty")
    assert better.values == pytest.approx((-0.05, -0.06, -0.07)) and better.below == 0 and better.outcome == "holds"
    assert named(found, "right", "degraded − clean, augmentation off", "hasty").values == pytest.approx((0.25,) * 3)
    cost = named(found, "rise", "degraded − clean, augmentation off", "hasty")
    assert cost.values == pytest.approx((-0.05, -0.06, -0.07)) and not cost.decisive
    bias = named(found, "bias", "degraded, augmentation off")
    assert bias.values == pytest.approx((1.5, 2.5, 3.5)) and bias.below == 2 and bias.outcome == "open"
    assert named(found, "bias", "degraded, augmentation on").values == pytest.approx((0.2,) * 3)
    decisive = [finding.decisive for finding in found]
    assert decisive == sorted(decisive, reverse=True)
    assert not any(finding.decisive for finding in found if "augmentation on" in finding.what)


def test_accuracy_decides_only_where_the_clean_network_errs() -> None:
    told = rows()
    for seed in SEEDS:
        told[seed, "off", CLEAN, "released"] |= {"right": 0.99}
    found = degradation.findings(told, SEEDS, 64)
    assert not named(found, "right", "degraded − clean, augmentation off", "released").decisive
    assert named(found, "right", "degraded − clean, augmentation off", "over-guided").above == 0


def test_networks_of_a_seed_differ_in_the_degradation_alone() -> None:
    made = {network: recipe(SIZES["hours"], 1, *network, "scenes", Path("data")).to_dict() for network in NETWORKS}
    for (augmentation, preset), config in made.items():
        assert config["data"].pop("degrade") == ("" if preset == CLEAN else preset)
        assert (config["aug"]["max_level"] > 0) == (config["aug"]["level"] > 0) == (augmentation == "on")
        clean = made[augmentation, CLEAN]
        assert config == {**clean, "data": config["data"]}
        assert config["data"] == {key: value for key, value in clean["data"].items() if key != "degrade"}


def test_enlarging_is_the_cascades_and_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    cascade = load(release.write_release(tmp_path / "release", fakes.make_release(tmp_path)))
    drawn = cascade.sample(fakes.CAPTIONS, seed=5, batch_size=3, return_stages=True, progress=False)
    conditioning = cascade.encoders.encode(fakes.CAPTIONS)
    for batch_size in (2, 3):
        made = enlarged.enlarge(cascade.stages[1], conditioning, drawn["base"], seed=5, batch_size=batch_size)
        # The cascade hands its pictures on before they are rounded to 8 bits.
        assert np.abs(made.astype(int) - drawn["sr16"]).mean() < 0.5
    other = enlarged.enlarge(cascade.stages[1], conditioning, drawn["base"], seed=6, batch_size=3)
    assert np.abs(made.astype(int) - other).mean() > 5


@pytest.mark.pod
def test_a_study_runs_from_training_to_verdict_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    study = Study(folder=tmp_path / "d", shared=tmp_path / "s", budget="seconds", seeds=(100, 101), say=said.append)
    study.folder.mkdir()
    result = degradation.CLAIM.run(study)
    assert all(len(finding.values) == 2 and np.isfinite(finding.values).all() for finding in result.findings)
    assert result.verdict and all((study.folder / picture.file).exists() for picture in result.pictures)
    parts = len(said)
    assert degradation.CLAIM.run(study) == result and len(said) == parts
