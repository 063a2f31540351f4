"""Fréchet distance, KID, precision and recall, resize filters: against closed forms, brute force and torch-fidelity."""

from __future__ import annotations

import math

import metric_peers as peers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from ediffi_jax.evaluation import frechet, resize
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.frechet import frechet_distance, moments
from ediffi_jax.evaluation.kid import kid, mmd
from ediffi_jax.evaluation.precision_recall import precision_recall

DEGREE = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}


def sides(n: int, d: int, shift: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)).astype(np.float32), (rng.normal(size=(n, d)) @ mixing + shift).astype(np.float32)


def test_frechet_distance_of_gaussians_with_known_moments():
    rng = np.random.default_rng(0)
    d, n = 6, 7
    a, b = rng.uniform(0.5, 2, (2, d))  # standard deviations along common axes
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    mu = rng.normal(size=(2, d))
    first, second = (
        frechet.Moments(n=n, mean=m, scatter=(n - 1) * axes @ np.diag(s**2) @ axes.T) for m, s in zip(mu, (a, b))
    )
    expected = ((mu[0] - mu[1]) ** 2).sum() + ((a - b) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [20, 400])  # fewer and more vectors than features
def test_frechet_distance_is_that_of_both_peers(n):
    a, b = sides(n, 32)
    ours = frechet_distance(moments(a), moments(b))
    statistics = [(np.mean(x.astype(np.float64), 0), np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b)]
    fidelity = [{"mu": mu, "sigma": sigma} for mu, sigma in statistics]
    expected = peers.torch_fid.fid_statistics_to_metric(*fidelity, False)[peers.torch_fid.KEY_METRIC_FID]
    assert ours == pytest.approx(expected, rel=1e-5)
    assert ours == pytest.approx(peers.pytorch_fid.calculate_frechet_distance(*statistics[0], *statistics[1]), rel=1e-4)


def test_moments_do_not_depend_on_blocks_and_survive_large_means():
    x = (np.random.default_rng(0).normal(size=(1000, 8)) + 1e4).astype(np.float32)
    exact = x.astype(np.float64)
    for block in (7, 128, 1000):
        found = moments(x, block=block)
        assert found.n == 1000
        np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-14)
        # Adding squares up in float32 would be off by more than the covariance itself.
        np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-9)


def test_features_that_cannot_be_measured_are_refused():
    with pytest.raises(EvaluationError, match="not finite"):
        moments(np.array([[1.0, np.nan]]))
    with pytest.raises(EvaluationError, match="no pictures"):
        moments(np.zeros((0, 4)))
    with pytest.raises(EvaluationError, match="expected at least 2"):
        frechet_distance(moments(np.ones((1, 4))), moments(np.ones((5, 4))))
    with pytest.raises(EvaluationError, match="4 features against 5"):
        frechet_distance(moments(np.ones((3, 4))), moments(np.ones((5, 5))))


def test_mmd_is_that_of_torch_fidelity():
    a, b = sides(60, 16)
    expected = peers.torch_kid.kernel_mmd(a.astype(np.float64), b.astype(np.float64), **DEGREE)
    assert mmd(a.astype(np.float64), b.astype(np.float64)) == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased_and_grows_with_the_difference():
    same = [kid(*sides_of_one(seed), subsets=1, subset_size=100).mean for seed in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(len(same))
    assert kid(*sides(300, 16, shift=0.5)).mean > 20 * np.std(same)


def sides_of_one(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of one distribution; rows i nearly equal, as pictures of one caption are."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(200, 8))
    return shared + 0.1 * rng.normal(size=(200, 8)), shared + 0.1 * rng.normal(size=(200, 8))


def test_kid_says_how_large_its_subsets_are_and_repeats_itself():
    a, b = sides(50, 8)
    assert kid(a, b) == kid(a, b) and kid(a, b).subset_size == 25 and kid(a, b).std > 0
    with pytest.raises(EvaluationError, match="KID of 50 against 3"):
        kid(a, b[:3])


def test_precision_and_recall_are_those_of_torch_fidelity_and_of_brute_force():
    a, b = sides(150, 5, shift=0.0, seed=3)
    a[:40] += 9.0  # far from anything real, and with means that float32 would feel
    ours = precision_recall(a + 100, b + 100)
    theirs = peers.torch_prc.calculate_precision_recall_full(*(torch.from_numpy(x) for x in (a, b)), 3, 10000)
    assert (ours.precision, ours.recall) == pytest.approx(theirs, abs=1e-6)
    assert 0.2 < ours.precision < 0.8 and ours.recall > 0.2
    assert ours.precision == pytest.approx(brute_share(a, b)) and ours.recall == pytest.approx(brute_share(b, a))


def brute_share(rows: np.ndarray, centres: np.ndarray) -> float:
    distance = lambda x, y: float(np.sqrt(((x.astype(np.float64) - y) ** 2).sum()))  # noqa: E731
    radii = [sorted(distance(c, o) for o in centres)[3] for c in centres]
    return np.mean([any(distance(x, c) <= r for c, r in zip(centres, radii)) for x in rows])


def test_precision_needs_more_pictures_than_neighbours():
    with pytest.raises(EvaluationError, match="expected more than k = 3"):
        precision_recall(np.ones((3, 2)), np.ones((9, 2)))


@pytest.mark.parametrize("size", [17, 31, 80])  # smaller, and larger than the picture
def test_resize_filters_are_what_they_are_called(size):
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
    t = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    torch_way = F.interpolate(t, (size, size), mode="bilinear", align_corners=False)
    tf1_way = interpolate_bilinear_2d_like_tensorflow1x(t, size=(size, size), align_corners=False)
    smooth = F.interpolate(t, (size, size), mode="bilinear", align_corners=False, antialias=True)
    for name, expected in (("torch_bilinear", torch_way), ("tf1_bilinear", tf1_way), ("pil_bilinear", smooth)):
        found = resize.resize(x, size, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=2e-3, err_msg=name)


def test_pillows_filters_do_not_alias_and_stay_in_range():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    for name in ("pil_bicubic", "pil_lanczos", "pil_bilinear"):
        small = resize.resize(stripes, 16, name)
        assert np.ptp(small[:, :, 2:-2]) < 40 and small.min() >= 0 and small.max() <= 255, name
    assert np.ptp(resize.resize(stripes, 16, "tf1_bilinear")) == 0  # every sample hits a white stripe
    assert resize.resize(stripes, 16, "tf1_bilinear").max() == 255
    assert np.array_equal(resize.resize(stripes, 64), stripes)


def test_an_unknown_filter_names_the_nearest():
    with pytest.raises(EvaluationError, match="unknown resize filter 'bicubic'; did you mean 'pil_bicubic'"):
        resize.resize(np.zeros((1, 4, 4, 3), np.uint8), 4, "bicubic")
