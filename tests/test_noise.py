"""p(sigma) against scipy's log-normal, and draws within an interval against the restricted distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ediffi_jax.noise import Interval, LogNormal, NoiseError, draw_sigma

NOISE = LogNormal()
REFERENCE = stats.lognorm(s=1.2, scale=np.exp(-1.2))
INTERVALS = [(0.0, 1 / 8), (1 / 8, 511 / 512), (511 / 512, 1.0), (0.0, 1.0), (0.3, 0.301)]


def test_quantile_and_cdf_are_those_of_scipy() -> None:
    q = np.concatenate([[1e-7, 1e-5, 0.001], np.linspace(0.01, 0.99, 99), [0.999, 0.99999]])
    np.testing.assert_allclose(NOISE.quantile(q), REFERENCE.ppf(np.float32(q)), rtol=2e-5)
    sigma = REFERENCE.ppf(q)
    np.testing.assert_allclose(NOISE.cdf(sigma), q, rtol=2e-5)


def test_quantile_and_cdf_undo_each_other() -> None:
    q = np.linspace(0.001, 0.999, 999, dtype=np.float32)
    np.testing.assert_allclose(NOISE.cdf(NOISE.quantile(q)), q, rtol=1e-5)
    sigma = np.geomspace(0.01, 10.0, 200, dtype=np.float32)
    np.testing.assert_allclose(NOISE.quantile(NOISE.cdf(sigma)), sigma, rtol=1e-4)


def test_both_ends_are_exact() -> None:
    assert NOISE.quantile(0.0) == 0.0 and np.isposinf(NOISE.quantile(1.0))
    assert NOISE.cdf(0.0) == 0.0 and NOISE.cdf(np.inf) == 1.0
    assert NOISE.edge(0.0) == 0.0 and np.isposinf(NOISE.edge(1.0))


def test_edges_are_the_papers_thresholds() -> None:
    known = {
        1 / 2: 0.3012,
        1 / 4: 0.1341,
        3 / 4: 0.6766,
        1 / 8: 0.0757,
        7 / 8: 1.198,
        255 / 256: 7.331,
        511 / 512: 9.610,
    }
    for q, sigma in known.items():
        assert abs(NOISE.edge(q) / sigma - 1) < 1e-3
        assert NOISE.edge(q) == np.float32(REFERENCE.ppf(q))
        np.testing.assert_allclose(NOISE.quantile(q), NOISE.edge(q), rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_draws_follow_the_restricted_distribution(low: float, high: float) -> None:
    sigma = np.asarray(draw_sigma(jax.random.key(7), NOISE, Interval(low, high), (20_000,)), np.float64)
    # The mass above sigma is exact where the mass below has no digits left.
    position = 1 - (REFERENCE.sf(sigma) - (1 - high)) / (high - low)
    assert stats.kstest(position, "uniform").pvalue > 0.01
    assert np.unique(sigma).size > 19_000 or high - low < 0.01


def test_the_top_interval_is_drawn_with_full_resolution() -> None:
    """Float32 has only 32768 numbers in [511/512, 1), so drawing u there could give no more sigmas than that."""
    sigma = draw_sigma(jax.random.key(0), NOISE, Interval(511 / 512, 1.0), (400_000,))
    assert np.unique(np.asarray(sigma)).size > 150_000


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_extreme_draws_stay_inside_and_finite(low: float, high: float, monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = jnp.array([0.0, 1.0 - 2.0**-23, 0.5], jnp.float32)
    monkeypatch.setattr(jax.random, "uniform", lambda *args, **kwargs: extremes)
    sigma = np.asarray(draw_sigma(jax.random.key(0), NOISE, Interval(low, high), (3,)))
    assert np.all(np.isfinite(sigma)) and np.all(sigma > 0)
    assert np.all(sigma >= NOISE.quantile(low)) and np.all(sigma < NOISE.quantile(high))


def test_given_edges_bound_the_draw_exactly() -> None:
    low, high = np.float32(0.2), np.nextafter(np.float32(0.2), np.float32(1.0))
    sigma = draw_sigma(jax.random.key(0), NOISE, Interval(0.3, 0.6), (1000,), low, high)
    assert np.all(np.asarray(sigma) == low)


def test_intervals_may_be_mapped_over_experts() -> None:
    keys = jax.random.split(jax.random.key(3), 3)
    stacked = Interval(jnp.array([low for low, _ in INTERVALS[:3]]), jnp.array([high for _, high in INTERVALS[:3]]))
    together = jax.jit(jax.vmap(lambda key, interval: draw_sigma(key, NOISE, interval, (64,))))(keys, stacked)
    for key, (low, high), row in zip(keys, INTERVALS[:3], together, strict=True):
        np.testing.assert_allclose(row, draw_sigma(key, NOISE, Interval(low, high), (64,)), rtol=1e-5)


@pytest.mark.parametrize("bad", [{"std": 0.0}, {"std": -1.0}, {"mean": float("nan")}, {"std": float("inf")}])
def test_impossible_parameters_are_refused(bad: dict) -> None:
    with pytest.raises(NoiseError, match="expected finite numbers and std > 0"):
        LogNormal(**bad)
