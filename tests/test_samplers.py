"""Samplers against data whose optimal denoiser and probability-flow ODE have closed forms.

For data N(mu, s^2):   D(x; sigma) = (s^2 x + sigma^2 mu) / (s^2 + sigma^2)
                       x(sigma) = mu + (x_T - mu) sqrt((s^2 + sigma^2) / (s^2 + sigma_T^2))
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ediffi_jax import samplers
from ediffi_jax.experts import Ensemble, switch
from ediffi_jax.samplers import SamplerError
from ediffi_jax.samplers.multistep import adams_bashforth_weights

try:
    enable_x64 = jax.enable_x64
except AttributeError:  # jax < 0.8
    from jax.experimental import enable_x64

MU, S = 0.3, 0.5
ALL = sorted(samplers.SAMPLERS)
# name -> sampler that stops at the grid's end, order, evaluations per step
TRUE_ORDER = {
    "euler": (samplers.Euler(), 1),
    "heun": (samplers.Heun(), 2),
    "dpmpp_2m": (samplers.DPMpp2M(), 2),
    "deis_euler": (samplers.DeisRK(method="euler", denoise_final=False), 1),
    "deis_heun2": (samplers.DeisRK(method="heun2", denoise_final=False), 2),
    "deis_kutta3": (samplers.DeisRK(denoise_final=False), 3),
    "deis_rk4": (samplers.DeisRK(method="rk4", denoise_final=False), 4),
    "deis_ab1": (samplers.DeisAB(order=1, denoise_final=False), 1),
    "deis_ab2": (samplers.DeisAB(order=2, denoise_final=False), 2),
    "deis_ab3": (samplers.DeisAB(order=3, denoise_final=False), 3),
}


def gaussian(x: jax.Array, sigma: jax.Array) -> jax.Array:
    return (S**2 * x + sigma**2 * MU) / (S**2 + sigma**2)


def exact(noise: np.ndarray, sigma_max: float, sigma: float) -> np.ndarray:
    return MU + (sigma_max * noise - MU) * np.sqrt((S**2 + sigma**2) / (S**2 + sigma_max**2))


def unit_normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def image_keys(count: int) -> jax.Array:
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(5)))(jnp.arange(count))


@pytest.mark.parametrize("name", TRUE_ORDER)
def test_order_of_convergence(name: str) -> None:
    sampler, order = TRUE_ORDER[name]
    with enable_x64(True):
        noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, 1)))
        errors = []
        for steps in (60, 120):
            sigmas = samplers.power(steps, sigma_min=0.1, sigma_max=10.0, exponent=3.0)
            x = jax.jit(functools.partial(sampler, gaussian))(noise, sigmas)
            errors.append(np.abs(x - exact(noise, 10.0, 0.1)).max())
    measured = np.log2(errors[0] / errors[1])
    assert abs(measured - order) < 0.15, f"order {measured:.2f} instead of {order}, errors {errors}"


@pytest.mark.parametrize("name", ALL)
def test_samples_have_the_datas_mean_and_variance(name: str) -> None:
    steps, kutta = 40, name == "deis_kutta3"
    sigmas = samplers.power(25, exponent=6.0) if kutta else samplers.karras(steps if name != "deis_ab1" else 160)
    sigmas = samplers.karras(160) if name == "euler" else sigmas
    x = np.asarray(samplers.get(name)(gaussian, unit_normal(64, 8, 8, 3), sigmas), np.float64)
    count = x.size
    assert abs(x.mean() - MU) < 4 * S / np.sqrt(count)
    assert abs(x.std() / S - 1) < 0.02


def test_the_papers_setting_solves_the_ode() -> None:
    """Kutta's method, exponent 6, 25 steps from 80 to 0.002 (eDiff-I Table 7): 76 evaluations."""
    noise = unit_normal(4, 4, 4, 3)
    x = samplers.DeisRK()(gaussian, noise, samplers.power(25, exponent=6.0))
    np.testing.assert_allclose(x, exact(np.asarray(noise), 80.0, 0.0), atol=1e-3)


def two_peaks(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Optimal denoiser of pixels that are 0.6 with probability 0.3, else -0.5, each with spread 0.05."""
    peaks, shares, spread = jnp.array([0.6, -0.5]), jnp.array([0.3, 0.7]), 0.05
    variance = spread**2 + sigma**2
    logits = jnp.log(shares) - (x[..., None] - peaks) ** 2 / (2 * variance)
    means = (spread**2 * x[..., None] + sigma**2 * peaks) / variance
    return jnp.sum(jax.nn.softmax(logits) * means, axis=-1)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "deis_kutta3", "deis_ab3"])
def test_both_peaks_of_a_mixture_are_found(name: str) -> None:
    grid = samplers.power(60) if name.startswith("deis") else samplers.karras(60)
    x = np.asarray(samplers.get(name)(two_peaks, unit_normal(32, 16, 16, 1), grid), np.float64)
    high = x > 0.05
    assert abs(high.mean() - 0.3) < 4 * np.sqrt(0.21 / x.size)
    for part, peak in ((x[high], 0.6), (x[~high], -0.5)):
        assert abs(part.mean() - peak) < 0.005 and abs(part.std() / 0.05 - 1) < 0.05


def test_churn_keeps_the_variance_and_changes_the_images() -> None:
    noise, keys, grid = unit_normal(128, 8, 8, 1), image_keys(128), samplers.karras(80)
    calm = samplers.Heun()(gaussian, noise, grid, keys)
    stirred = np.asarray(samplers.Heun(churn=30.0)(gaussian, noise, grid, keys), np.float64)
    assert abs(stirred.mean() - MU) < 4 * S / np.sqrt(stirred.size) and abs(stirred.std() / S - 1) < 0.03
    assert np.abs(stirred - calm).max() > 0.5
    outside = samplers.Heun(churn=30.0, churn_min=100.0)(gaussian, noise, grid, keys)
    np.testing.assert_allclose(outside, calm, atol=1e-5)


def test_churn_raises_the_level_as_in_algorithm_2() -> None:
    levels = levels_seen(samplers.Heun(churn=40.0, churn_min=0.05, churn_max=50.0), samplers.karras(10), image_keys(2))
    grid = samplers.karras(10)
    gamma = np.where((grid[:-1] >= 0.05) & (grid[:-1] <= 50.0), min(40 / 10, np.sqrt(2) - 1), 0.0)
    expected = [level for i in range(10) for level in (grid[i] * (1 + gamma[i]), grid[i + 1]) if level > 0]
    np.testing.assert_allclose(levels, expected, rtol=1e-5)


def levels_seen(sampler: samplers.Sampler, sigmas: np.ndarray, keys: jax.Array | None = None) -> list[float]:
    """The noise level of every evaluation that was really computed."""
    levels: list[float] = []

    def spying(x: jax.Array, sigma: jax.Array) -> jax.Array:
        assert jnp.ndim(sigma) == 0
        jax.experimental.io_callback(lambda level: levels.append(float(level)), None, sigma, ordered=True)
        return gaussian(x, sigma)

    jax.jit(functools.partial(sampler, spying))(unit_normal(2, 2, 2, 1), sigmas, keys).block_until_ready()
    jax.effects_barrier()
    return levels


@pytest.mark.parametrize(
    ("name", "count"),
    [("euler", 8), ("heun", 15), ("dpmpp_2m", 8), ("deis_kutta3", 25), ("deis_ab2", 9)],
)
def test_evaluations_are_counted_and_none_is_wasted(name: str, count: int) -> None:
    """8 steps. Heun skips its second stage at 0 (EDM: 2N - 1); DEIS adds one evaluation at sigma_min."""
    sigmas = samplers.power(8) if name.startswith("deis") else samplers.karras(8)
    levels = levels_seen(samplers.get(name), sigmas)
    assert len(levels) == count and min(levels) >= np.float32(0.002)


def test_runge_kutta_stages_are_routed_one_by_one() -> None:
    """Stages of one step on both sides of a cut go to different experts, each told its own level."""
    ensemble, sigmas = Ensemble(cuts=(1 / 8, 511 / 512)), samplers.power(6)
    ran: list[tuple[int, float]] = []

    def denoise_of(params: jax.Array):
        def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
            jax.debug.callback(lambda i, level: ran.append((int(i), float(level))), params, sigma, ordered=True)
            return gaussian(x, sigma)

        return denoise

    denoise = switch(denoise_of, jnp.arange(3), ensemble)
    jax.jit(functools.partial(samplers.DeisRK(), denoise))(unit_normal(1, 2, 2, 1), sigmas).block_until_ready()
    jax.effects_barrier()
    expected = [level for a, b in zip(sigmas, sigmas[1:], strict=False) for level in (a, (a + b) / 2, b)]
    np.testing.assert_allclose([level for _, level in ran], [*expected, sigmas[-1]], rtol=1e-5)
    assert [expert for expert, _ in ran] == [int(ensemble.route(level)) for _, level in ran]
    steps = [{expert for expert, _ in ran[3 * i : 3 * i + 3]} for i in range(6)]
    assert {0, 1} in steps and {1, 2} in steps


@pytest.mark.parametrize("name", ALL)
def test_the_network_is_traced_once(name: str) -> None:
    """Compile time: one copy of the network, however many stages, steps and final evaluations."""
    traces = []
    sigmas = samplers.power(5)

    def counting(x: jax.Array, sigma: jax.Array) -> jax.Array:
        traces.append(sigma)
        return gaussian(x, sigma)

    program = jax.jit(functools.partial(samplers.get(name), counting))
    program.lower(unit_normal(2, 4, 4, 3), sigmas)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_the_same_alone_and_in_a_batch(name: str) -> None:
    sampler = samplers.get(name, **({"churn": 20.0} if name == "heun" else {}))
    keys = image_keys(8)

    @jax.jit
    def run(keys: jax.Array) -> jax.Array:
        return sampler(two_peaks, samplers.initial_noise(keys, (4, 4, 3)), samplers.power(6), keys)

    together = run(keys)
    np.testing.assert_allclose(run(keys[5:6])[0], together[5], atol=1e-6)
    np.testing.assert_allclose(run(keys[::-1])[2], together[5], atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_callback_sees_every_step_in_order(name: str) -> None:
    seen: list[tuple] = []
    sigmas = samplers.karras(5)
    plain = samplers.get(name)(gaussian, unit_normal(2, 2, 2, 1), sigmas)
    watched = samplers.get(name)(
        gaussian, unit_normal(2, 2, 2, 1), sigmas, callback=lambda step, sigma, x0: seen.append((step, sigma, x0))
    )
    jax.effects_barrier()
    np.testing.assert_allclose(watched, plain, atol=1e-6)
    assert [int(step) for step, _, _ in seen] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([sigma for _, sigma, _ in seen], sigmas[:-1], rtol=1e-6)
    np.testing.assert_allclose(seen[-1][2], watched, atol=1e-5)  # the last step, to 0, is x0 itself


@pytest.mark.parametrize("name", ALL)
def test_the_grid_may_be_traced_and_may_end_at_zero(name: str) -> None:
    sampler, noise = samplers.get(name), unit_normal(2, 2, 2, 1)
    for sigmas in (samplers.karras(7), samplers.power(7)):
        traced = jax.jit(functools.partial(sampler, gaussian))(noise, sigmas)
        assert np.all(np.isfinite(traced))
        np.testing.assert_allclose(traced, sampler(gaussian, noise, sigmas), atol=1e-5)


def test_denoising_at_the_end_is_one_evaluation_at_sigma_min() -> None:
    noise, sigmas = unit_normal(2, 3, 3, 1), samplers.power(10, sigma_min=0.1)
    for make in (samplers.DeisRK, samplers.DeisAB):
        stopped = make(denoise_final=False)(gaussian, noise, sigmas)
        np.testing.assert_allclose(make()(gaussian, noise, sigmas), gaussian(stopped, sigmas[-1]), atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_bashforth_weights_are_integrals_of_lagrange_polynomials(order: int) -> None:
    sigmas = np.append(samplers.power(9, sigma_min=0.01, exponent=5.0), 0.0)
    with enable_x64(True):
        weights = np.asarray(adams_bashforth_weights(jnp.asarray(sigmas), order))
    for i in range(len(sigmas) - 1):
        used = 1 if sigmas[i + 1] == 0 else min(order, i + 1)
        for j in range(order):
            expected = 0.0
            if j < used:
                others = [sigmas[i - k] for k in range(used) if k != j]
                basis = np.poly1d(others, r=True) / np.prod([sigmas[i - j] - other for other in others])
                integral = np.polyint(basis)
                expected = integral(sigmas[i + 1]) - integral(sigmas[i])
            np.testing.assert_allclose(weights[i, j], expected, rtol=1e-7, atol=1e-12)


def test_on_equal_steps_they_are_the_classical_ones() -> None:
    weights = np.asarray(adams_bashforth_weights(jnp.arange(10.0, 4.0, -1.0), 3))
    np.testing.assert_allclose(-weights[1, :2], [3 / 2, -1 / 2], atol=1e-5)
    np.testing.assert_allclose(-weights[3], np.array([23, -16, 5]) / 12, atol=1e-5)


def test_grids_are_the_power_law_with_exact_ends() -> None:
    karras, power = samplers.karras(18), samplers.power(25, exponent=6.0)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(karras[:-1], expected, rtol=1e-10)
    assert karras.shape == (19,) and karras[0] == 80.0 and karras[-2] == 0.002 and karras[-1] == 0.0
    assert power.shape == (26,) and power[0] == 80.0 and power[-1] == 0.002 and np.all(np.diff(power) < 0)
    np.testing.assert_array_equal(samplers.karras(1), [80.0, 0.0])
    experts = np.asarray(Ensemble(cuts=(1 / 8, 511 / 512)).route(power[:-1]))
    assert np.bincount(experts).tolist() == [4, 12, 9]  # how the paper's experts share 25 steps


@pytest.mark.parametrize("bad", [{"steps": 0}, {"sigma_min": 0.0}, {"sigma_min": 90.0}, {"rho": 0.0}])
def test_impossible_grids_are_refused(bad: dict) -> None:
    with pytest.raises(SamplerError, match="expected"):
        samplers.karras(**{"steps": 5, **bad})


def test_names_and_options_have_their_nearest() -> None:
    with pytest.raises(SamplerError, match=r"unknown sampler 'deis_kuta3'; did you mean 'deis_kutta3'\?"):
        samplers.get("deis_kuta3")
    with pytest.raises(SamplerError, match=r"'heun' has no option 'chrun'; did you mean 'churn'\?"):
        samplers.get("heun", chrun=1.0)
    with pytest.raises(SamplerError, match="'euler' has no option 'churn'; it has none"):
        samplers.get("euler", churn=1.0)
    with pytest.raises(SamplerError, match="'deis_ab2' has no option 'order'"):
        samplers.get("deis_ab2", order=3)
    with pytest.raises(SamplerError, match=r"method 'kutta'; did you mean 'kutta3'\?"):
        samplers.DeisRK(method="kutta")
    with pytest.raises(SamplerError, match="order is 4; expected 1, 2 or 3"):
        samplers.DeisAB(order=4)
    assert samplers.get("heun", churn=40.0) == samplers.Heun(churn=40.0)
    assert hash(samplers.get("deis_kutta3")) == hash(samplers.DeisRK())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": np.array([1.0, 2.0])}, "decreasing"),
        ({"sigmas": np.array([1.0, 1.0, 0.0])}, "decreasing"),
        ({"sigmas": np.array([1.0])}, r"expected \[N\+1\]"),
        ({"sigmas": np.array([np.inf, 1.0])}, "finite"),
        ({"noise": jnp.ones((2, 2, 1))}, r"expected float32 \[B, H, W, C\]"),
        ({"noise": jnp.ones((1, 2, 2, 1), jnp.bfloat16)}, "bfloat16"),
        ({"keys": None}, "churn needs a PRNG key for each of 1 images"),
        ({"keys": image_keys(2)}, "churn needs a PRNG key for each of 1 images"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    fine = {"noise": jnp.ones((1, 2, 2, 1)), "sigmas": samplers.karras(3), "keys": image_keys(1)}
    with pytest.raises(SamplerError, match=message):
        samplers.Heun(churn=1.0)(gaussian, **{**fine, **change})
