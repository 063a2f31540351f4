"""Preconditioning against EDM's definitions and limits; the masked loss against closed forms and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ediffi_jax.denoiser import interval_loss, loss_weight, precondition

try:
    enable_x64 = jax.enable_x64
except AttributeError:  # jax < 0.8
    from jax.experimental import enable_x64

SIGMA_DATA = 0.5


def normal(seed: int, shape: tuple[int, ...] = (4, 3, 3, 2)) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def network(x: jax.Array, c_noise: jax.Array) -> jax.Array:
    return jnp.tanh(2.0 * x) + c_noise[:, None, None, None]


def test_no_noise_is_the_identity() -> None:
    x = normal(0)
    np.testing.assert_array_equal(precondition(network)(x, 0.0), x)
    np.testing.assert_allclose(precondition(network)(x, 1e-6), x, atol=1e-5)


def test_pure_noise_is_the_network_alone() -> None:
    sigma, x = 1e6, 1e6 * normal(1)
    f = network(x / sigma, jnp.full((4,), np.log(sigma) / 4))
    np.testing.assert_allclose(precondition(network)(x, sigma), SIGMA_DATA * f, rtol=1e-5, atol=1e-5)


def test_the_network_is_told_a_quarter_of_the_log() -> None:
    seen = []
    precondition(lambda x, c_noise: seen.append(c_noise) or x)(normal(0), jnp.array([0.002, 1.0, 10.0, 80.0]))
    np.testing.assert_allclose(seen[0], np.log([0.002, 1.0, 10.0, 80.0]) / 4, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
def test_inputs_and_targets_of_the_network_have_unit_variance(sigma: float) -> None:
    """What defines EDM's coefficients (its Appendix B.6): c_in x and (y - c_skip x) / c_out, c_skip the smallest c_out."""
    clean, noise = SIGMA_DATA * normal(0, (64, 8, 8, 3)), normal(1, (64, 8, 8, 3))
    x = clean + sigma * noise
    seen = []
    skipped = precondition(lambda x_in, c: seen.append(x_in) or jnp.zeros_like(x_in), SIGMA_DATA)(x, sigma)
    c_out = precondition(lambda x_in, c: jnp.ones_like(x_in), SIGMA_DATA)(x, sigma) - skipped
    assert abs(float(jnp.std(seen[0])) - 1) < 0.02
    assert abs(float(jnp.std((clean - skipped) / c_out)) - 1) < 0.02
    np.testing.assert_allclose(loss_weight(sigma, SIGMA_DATA), 1 / c_out[0, 0, 0, 0] ** 2, rtol=2e-3)


def test_one_level_for_all_and_one_each_agree() -> None:
    x, denoise = normal(2), precondition(network)
    levels = jnp.array([0.1, 1.0, 1.0, 7.0])
    rows = [denoise(x[i : i + 1], levels[i])[0] for i in range(4)]
    np.testing.assert_allclose(denoise(x, levels), jnp.stack(rows), rtol=1e-6)


def test_the_best_denoiser_of_gaussian_data_has_its_closed_form_loss() -> None:
    shape, s = (512, 6, 6, 3), 0.3
    sigma = jnp.repeat(jnp.array([0.01, 0.3, 2.0, 40.0]), 128)
    images, noise = s * normal(3, shape), normal(4, shape)
    losses = interval_loss(
        lambda x, level: x * s**2 / (s**2 + level[:, None, None, None] ** 2), images, noise, sigma, 0.0, jnp.inf
    )
    expected = loss_weight(sigma) * s**2 * sigma**2 / (s**2 + sigma**2)
    np.testing.assert_allclose(losses.reshape(4, 128).mean(1), expected.reshape(4, 128).mean(1), rtol=0.03)


def test_outside_the_interval_loss_and_gradient_are_exactly_zero() -> None:
    """Even with a network that gives infinity or no number there, and noise levels of 0 and infinity."""
    low, high = jnp.float32(0.3), jnp.float32(1.5)
    below, last = jnp.nextafter(low, jnp.float32(0)), jnp.nextafter(high, jnp.float32(0))
    sigma = jnp.array([0.0, below, low, 1.0, last, high, 80.0, jnp.inf])
    inside = np.array([0, 0, 1, 1, 1, 0, 0, 0], bool)
    images, noise = normal(5, (8, 3, 3, 2)), normal(6, (8, 3, 3, 2))

    def losses(theta: jax.Array) -> jax.Array:
        def expert(x: jax.Array, level: jax.Array) -> jax.Array:
            bad = jnp.where((level < low) | (level >= high), jnp.inf, 1.0) * jnp.where(level > 2, jnp.nan, 1.0)
            return theta[:, None, None, None] * jnp.sin(x) * bad[:, None, None, None]

        return interval_loss(expert, images, noise, sigma, low, high)

    theta = jnp.linspace(0.5, 1.5, 8)
    values, jacobian = losses(theta), jax.jacobian(losses)(theta)
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(jacobian))
    np.testing.assert_array_equal(np.asarray(values) > 0, inside)
    np.testing.assert_array_equal(np.diag(jacobian) != 0, inside)
    assert np.all(np.asarray(values)[~inside] == 0) and np.all(np.asarray(jacobian)[~inside] == 0)


def test_samples_inside_are_not_changed_by_those_outside() -> None:
    images, noise, sigma = normal(7), normal(8), jnp.array([0.2, 0.7, 1.1, 60.0])
    masked = interval_loss(precondition(network), images, noise, sigma, 0.5, 2.0)
    plain = interval_loss(precondition(network), images, noise, sigma, 0.0, jnp.inf)
    np.testing.assert_array_equal(masked, jnp.where(jnp.array([False, True, True, False]), plain, 0.0))


def test_gradient_is_that_of_finite_differences() -> None:
    with enable_x64(True):
        images, noise = (jnp.asarray(np.asarray(normal(seed)), jnp.float64) for seed in (9, 10))
        sigma = jnp.array([0.1, 0.6, 1.3, 5.0])

        def loss(theta: jax.Array) -> jax.Array:
            denoise = precondition(lambda x, c: theta[0] * jnp.tanh(theta[1] * x) + theta[2] * c[:, None, None, None])
            return interval_loss(denoise, images, noise, sigma, 0.5, 2.0).sum()

        theta, step = jnp.array([0.7, 1.3, -0.4]), 1e-5
        numeric = [(loss(theta.at[i].add(step)) - loss(theta.at[i].add(-step))) / (2 * step) for i in range(3)]
        np.testing.assert_allclose(jax.grad(loss)(theta), jnp.array(numeric), rtol=1e-7)
