"""Figures of the degradation benchmarks, of pictures for which they are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ediffi_jax.data import scenes
from ediffi_jax.data.views import shrink
from ediffi_jax.evaluation import enlarged, spectra, style_recognition

RNG = np.random.default_rng(0)
TEXTURE = RNG.integers(64, 192, size=(64, 32, 32, 3)).astype(np.uint8)  # white: equal power in all frequencies


def test_gain_is_a_filters_and_residual_is_the_noises() -> None:
    """A circular average of 3 pixels along x has the gain (1 + 2 cos ω) / 3, and adds nothing."""
    values = TEXTURE.astype(float)
    blurred = np.round((values + np.roll(values, 1, axis=2) + np.roll(values, -1, axis=2)) / 3).astype(np.uint8)
    found = spectra.describe(blurred, TEXTURE, paired=True)
    omega = np.abs(np.fft.fftfreq(32)) * 2 * np.pi
    gains = np.broadcast_to((1 + 2 * np.cos(omega)) / 3, (32, 32))
    bins = spectra.spectrum_bins(32, np.asarray(spectra.BANDS))
    for band in range(len(spectra.BANDS) - 1):
        inside = gains[bins == band]
        assert found["gain"][band] == pytest.approx(inside.mean(), abs=0.03)
        assert found["power"][band] == pytest.approx((inside**2).mean(), abs=0.03)
        assert found["residual"][band] == pytest.approx(inside.var(), abs=0.03)  # the band's gain is one number
    noise = RNG.normal(0, 10, TEXTURE.shape)
    noisy = np.round(np.clip(TEXTURE + noise, 0, 255)).astype(np.uint8)
    found = spectra.describe(noisy, TEXTURE, paired=True)
    assert found["gain"] == pytest.approx([1] * 5, abs=0.02)
    assert found["residual"] == pytest.approx([100 / (128**2 / 12)] * 5, rel=0.15)
    assert found["rmse"] == pytest.approx(10, rel=0.01) and found["bias"] == pytest.approx([0] * 3, abs=0.1)


def test_grain_of_white_noise_is_that_of_a_normal_variable() -> None:
    noisy = np.round(128 + RNG.normal(0, 10, (64, 32, 32, 3))).astype(np.uint8)
    assert spectra.grain(noisy) == pytest.approx({"grain_50": 6.74, "grain_90": 16.45}, rel=0.02)


def test_a_picture_like_its_truth_has_no_figures_against_it() -> None:
    found = spectra.describe(TEXTURE, TEXTURE, paired=True)
    assert found["power"] == pytest.approx([1] * 5) == found["gain"] and found["rmse"] == 0
    assert found["residual"] == pytest.approx([0] * 5, abs=1e-9)


def test_distance_is_that_of_two_gaussians() -> None:
    """Means apart by 2 in one of two features, deviations 1 and 3 in the other: (4 + 4) / 2."""
    a = RNG.normal(size=(200_000, 2))
    b = RNG.normal(size=(200_000, 2)) * (1, 3) + (2, 0)
    assert enlarged.distance(a, b) == pytest.approx(4, rel=0.02) and enlarged.distance(a, a) == 0


@pytest.mark.parametrize(("right", "number"), [(0, 10), (7, 10), (96, 96), (150, 200)])
def test_wilsons_interval_is_scipys(right: int, number: int) -> None:
    theirs = stats.binomtest(right, number).proportion_ci(method="wilson")
    assert enlarged.wilson(right / number, number) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_renders_are_right_and_a_tint_is_read_as_bias() -> None:
    _, wanted = zip(*scenes.heldout_prompts(6, 0), strict=True)
    truth = np.stack([scenes.render(scene, 64) for scene in wanted])
    low = np.stack([shrink(picture, 16) for picture in truth])
    rows = np.stack([style_recognition.features(picture) for picture in truth])
    standard = style_recognition.StyleClassifier(
        mean=rows.mean(axis=0), scale=rows.std(axis=0) + 1, weights=np.zeros((0, 0)), bias=np.zeros(0)
    )
    tinted = np.clip(truth.astype(int) + (3, 0, -2), 0, 255).astype(np.uint8)
    found = {"none": enlarged.measure(truth, wanted, low, truth, standard)}
    found["cascade"] = enlarged.measure(tinted, wanted, low, None, standard)
    assert found["none"].right.all() and np.all(found["none"].error == 0)
    told = enlarged.summarise(found, found["none"].features, "none")
    assert (
        told["none"]["right"] == pytest.approx([1, 6 / (6 + 1.96**2), 1], abs=1e-4)
        and told["none"]["distance"][0] == 0
        and told["none"]["error"][0] == 0
    )
    assert "error" not in told["cascade"]  # nobody knows its truth
    difference = told["cascade - none"]
    assert difference["bias_red"][0] == pytest.approx(3, abs=0.5)
    assert difference["bias_green"][0] == pytest.approx(0, abs=0.2)
    assert difference["bias_blue"][1] <= difference["bias_blue"][0] <= difference["bias_blue"][2]
    assert difference["distance"][0] > 0


@pytest.mark.pod
def test_the_proof_runs_from_training_to_table_and_goes_on(tmp_path: Path) -> None:
    """Two steps of the tiny recipe; a second call trains and draws nothing anew."""
    words = "--stage=sr64,tiny --start=scratch --steps=2 --num_scenes=64 --number=2 --base_steps=1 --batch_size=2"
    flags = [*words.split(), f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'proof'}"]
    command = [sys.executable, "-m", "benchmarks.degradation_proof", *flags]
    one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(command, check=True, timeout=800, env=one_device)
    out = tmp_path / "proof"
    report = json.loads((out / "degradation_proof.json").read_text())
    for fed in ("from_base", "from_truth"):
        assert {"released", "none", "cascade", "cascade - none"} <= report[fed].keys()
        assert all(low <= high for row in report[fed].values() for _, low, high in row.values())
    assert report["from_truth"]["renders"]["error"][0] == 0 and report["from_truth"]["renders"]["right"][0] == 1
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.npy")}
    assert len(before) == 7
    told = subprocess.run(command, check=True, timeout=800, env=one_device, capture_output=True, text=True).stdout
    assert "sr64 step" not in told and "cascade - none" in told
    assert before == {file: file.stat().st_mtime_ns for file in out.glob("*.npy")}
