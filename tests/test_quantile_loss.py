"""Losses per quantile against the closed form of Gaussian data.

For x ~ N(0, s²) the best denoiser is D(x) = s² x / (s² + σ²), with error s² σ² / (s² + σ²).
With s = σ_data the weight λ makes its loss 1 at every σ.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ediffi_jax.evaluation.quantile_loss import QuantileLoss, compare, midpoints, quantile_loss
from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import LogNormal

NOISE = LogNormal(mean=-0.5, std=1.2)


def best(scale: float):
    return lambda x, sigma: x * scale**2 / (scale**2 + jnp.asarray(sigma) ** 2)


def test_the_best_denoiser_of_gaussian_data_has_loss_one_everywhere() -> None:
    images = 0.5 * jax.random.normal(jax.random.key(1), (256, 8, 8, 3))
    result = quantile_loss(best(0.5), images, NOISE, sigma_data=0.5, count=8, seed=3)
    assert result.losses.shape == (8, 256)
    np.testing.assert_allclose(result.losses.mean(axis=1), 1.0, atol=0.03)


def test_another_scale_gives_its_own_closed_form() -> None:
    images = 0.2 * jax.random.normal(jax.random.key(2), (256, 8, 8, 3))
    result = quantile_loss(best(0.2), images, NOISE, sigma_data=0.5, count=8)
    sigma = np.asarray(NOISE.quantile(jnp.asarray(result.quantiles)))
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = weight * 0.04 * sigma**2 / (0.04 + sigma**2)
    np.testing.assert_allclose(result.losses.mean(axis=1), expected, rtol=0.03)


def test_equal_models_differ_by_nothing_and_a_worse_one_is_found_where_it_is_worse() -> None:
    images = 0.5 * jax.random.normal(jax.random.key(3), (64, 4, 4, 3))
    ensemble = Ensemble(cuts=(0.25, 0.75), noise=NOISE)
    good = best(0.5)

    def worse_in_the_middle(x, sigma):
        return good(x, sigma) * jnp.where(ensemble.route(sigma) == 1, 0.9, 1.0)

    a = quantile_loss(good, images, NOISE, count=16)
    again = compare(a, quantile_loss(good, images, NOISE, count=16), ensemble)
    assert all(c.change == 0 and c.error == 0 for c in again)
    found = compare(a, quantile_loss(worse_in_the_middle, images, NOISE, count=16), ensemble)
    assert abs(found[0].change) < 1e-6 and abs(found[2].change) < 1e-6
    assert found[1].change > 5 * found[1].error > 0


def test_curves_average_cells_and_intervals() -> None:
    loss = QuantileLoss(quantiles=midpoints(8), losses=np.arange(16.0).reshape(8, 2))
    np.testing.assert_allclose(loss.curve(4), [1.5, 5.5, 9.5, 13.5])
    np.testing.assert_allclose(loss.per_image(0.5, 1.0), [11.0, 12.0])
    assert loss.quantiles[0] > 0 and loss.quantiles[-1] < 1
