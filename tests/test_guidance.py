"""Guidance and thresholds against their formulas in numpy, and against what they must not compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ediffi_jax.guidance import (
    GuidanceError,
    classifier_free,
    dynamic_threshold,
    static_threshold,
    switch_prompt,
    text_and_style,
)

COND = {"text": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "mask": jnp.array([[True, True], [True, False]])}
NULL = {"text": jnp.zeros((2, 2)), "mask": jnp.zeros((2, 2), bool)}
TEXT = {"text": jnp.array([[1.0, 0.0], [3.0, 0.0]]), "mask": jnp.array([[True, False], [True, False]])}
X = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))


def denoise_of(cond: dict):
    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        told = jnp.sum(cond["text"] * cond["mask"], axis=1)
        level = jnp.broadcast_to(jnp.asarray(sigma), (x.shape[0],))
        return jnp.sin(x + (told * level)[:, None, None, None])

    return denoise


def expected(sigma, weight) -> np.ndarray:
    d_c, d_0 = denoise_of(COND)(X, sigma), denoise_of(NULL)(X, sigma)
    return np.asarray(d_c + np.reshape(weight, (-1, 1, 1, 1)) * (d_c - d_0))


@pytest.mark.parametrize("weight", [0.5, 3.0, jnp.float32(2.0), jnp.array([0.0, 4.0])])
def test_guidance_is_its_formula(weight) -> None:
    guided = jax.jit(classifier_free(denoise_of, COND, NULL, weight))
    np.testing.assert_allclose(guided(X, 1.5), expected(1.5, weight), atol=1e-6)
    levels = jnp.array([0.3, 2.0])
    np.testing.assert_allclose(guided(X, levels), expected(levels, weight), atol=1e-6)


def test_weight_may_be_traced() -> None:
    run = jax.jit(lambda weight: classifier_free(denoise_of, COND, NULL, weight)(X, 1.5))
    for weight in (0.0, 2.5):
        np.testing.assert_allclose(run(weight), expected(1.5, weight), atol=1e-6)


def rows_run(denoise, sigma: float) -> tuple[np.ndarray, list[int]]:
    """The denoiser's answer, compiled, and how many rows the network was run on, pass by pass."""
    ran: list[int] = []

    def spying(cond: dict):
        def network(x: jax.Array, level: jax.Array) -> jax.Array:
            jax.debug.callback(lambda rows=x.shape[0]: ran.append(rows))
            return denoise_of(cond)(x, level)

        return network

    result = np.asarray(jax.jit(denoise(spying))(X, sigma))
    jax.effects_barrier()
    return result, ran


def test_no_guidance_is_one_pass() -> None:
    result, ran = rows_run(lambda spying: classifier_free(spying, COND, NULL, 0.0), 1.0)
    assert ran == [2]
    np.testing.assert_allclose(result, denoise_of(COND)(X, 1.0), atol=1e-6)


def test_guidance_is_one_doubled_pass() -> None:
    assert rows_run(lambda spying: classifier_free(spying, COND, NULL, 2.0), 1.0)[1] == [4]


@pytest.mark.parametrize(("sigma", "rows"), [(0.29, 2), (0.3, 4), (1.0, 4), (5.0, 2), (80.0, 2)])
def test_outside_its_interval_guidance_costs_nothing(sigma: float, rows: int) -> None:
    result, ran = rows_run(lambda spying: classifier_free(spying, COND, NULL, 2.0, interval=(0.3, 5.0)), sigma)
    assert ran == [rows]
    np.testing.assert_allclose(result, expected(sigma, 2.0 if rows == 4 else 0.0), atol=1e-6)


def test_the_interval_holds_for_levels_per_image() -> None:
    guided = classifier_free(denoise_of, COND, NULL, 2.0, interval=(0.3, 5.0))
    levels = jnp.array([0.1, 1.0])
    np.testing.assert_allclose(guided(X, levels), expected(levels, np.array([0.0, 2.0])), atol=1e-6)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (1.0, 1.0), (-1.0, 2.0), (float("nan"), 1.0)])
def test_an_impossible_interval_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(GuidanceError, match="expected 0 <= low < high"):
        classifier_free(denoise_of, COND, NULL, 1.0, interval)


def test_conditionings_must_match() -> None:
    with pytest.raises(GuidanceError, match="expected the same structure"):
        classifier_free(denoise_of, COND, {"text": NULL["text"]}, 1.0)
    with pytest.raises(GuidanceError, match=r"cond\['text'\] is \(2, 2\) but null\['text'\] is \(1, 2\)"):
        classifier_free(denoise_of, COND, {**NULL, "text": jnp.zeros((1, 2))}, 1.0)


def both(weight, style_weight, sigma: float = 1.5) -> np.ndarray:
    d_ts, d_t, d_0 = (np.asarray(denoise_of(cond)(X, sigma), np.float64) for cond in (COND, TEXT, NULL))
    w, s = (np.reshape(value, (-1, 1, 1, 1)) for value in (weight, style_weight))
    return d_ts + w * (d_t - d_0) + s * (d_ts - d_t)


@pytest.mark.parametrize(("weight", "style_weight"), [
    (2.0, 3.0), (jnp.float32(0.5), 0.0), (0.0, 4.0), (jnp.array([1.0, 2.0]), jnp.array([3.0, 0.5])),
])  # fmt: skip
def test_text_and_style_are_guided_apart(weight, style_weight) -> None:
    result, ran = rows_run(lambda spying: text_and_style(spying, COND, TEXT, NULL, weight, style_weight), 1.5)
    assert ran == [4 if isinstance(weight, float) and weight == 0 else 6]
    np.testing.assert_allclose(result, both(weight, style_weight), atol=1e-5)


def test_equal_weights_are_plain_guidance_and_the_interval_holds() -> None:
    guided = text_and_style(denoise_of, COND, TEXT, NULL, 2.0, 2.0, interval=(0.3, 5.0))
    np.testing.assert_allclose(guided(X, 1.5), expected(1.5, 2.0), atol=1e-5)
    np.testing.assert_allclose(guided(X, 9.0), denoise_of(COND)(X, 9.0), atol=1e-6)
    levels = jnp.array([0.1, 1.0])
    np.testing.assert_allclose(guided(X, levels), expected(levels, np.array([0.0, 2.0])), atol=1e-5)
    with pytest.raises(GuidanceError, match="expected the same structure"):
        text_and_style(denoise_of, COND, {"text": TEXT["text"]}, NULL, 1.0, 1.0)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold_is_imagens_per_image(percentile: float) -> None:
    scales = np.array([0.2, 1.0, 5.0], np.float32)[:, None, None, None]
    x0 = scales * np.asarray(jax.random.normal(jax.random.key(1), (3, 16, 16, 3)))
    result = jax.jit(dynamic_threshold(lambda x, sigma: x, percentile))(x0, 1.0)
    for image, found in zip(x0, result, strict=True):
        s = max(1.0, np.quantile(np.abs(image), percentile))
        np.testing.assert_allclose(found, np.clip(image, -s, s) / s, atol=1e-6)
    assert np.abs(result).max() <= 1.0
    np.testing.assert_array_equal(result[0], np.clip(x0[0], -1, 1))  # an image within [-1, 1] is left alone


@pytest.mark.parametrize("percentile", [0.0, 99.5, -1.0])
def test_a_percentile_is_a_fraction(percentile: float) -> None:
    with pytest.raises(GuidanceError, match=r"expected a fraction in \(0, 1\]"):
        dynamic_threshold(lambda x, sigma: x, percentile)


def test_static_threshold_clips() -> None:
    np.testing.assert_array_equal(static_threshold(lambda x, sigma: 3 * x)(X, 1.0), np.clip(3 * np.asarray(X), -1, 1))


def test_transforms_nest() -> None:
    denoise = dynamic_threshold(classifier_free(denoise_of, COND, NULL, 7.0))
    s = np.maximum(1.0, np.quantile(np.abs(expected(1.0, 7.0)).reshape(2, -1), 0.995, axis=1))[:, None, None, None]
    np.testing.assert_allclose(denoise(X, 1.0), np.clip(expected(1.0, 7.0), -s, s) / s, atol=1e-5)


def test_a_prompt_is_switched_at_its_level_and_only_one_is_computed() -> None:
    ran: list[str] = []

    def spy(name: str, value: float):
        def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
            jax.debug.callback(lambda: ran.append(name))
            return x + value

        return denoise

    run = jax.jit(switch_prompt(spy("first", 1.0), spy("second", 2.0), 0.5))
    below = np.nextafter(np.float32(0.5), np.float32(0))
    for sigma, value, name in ((3.0, 1.0, "first"), (0.5, 1.0, "first"), (below, 2.0, "second"), (0.0, 2.0, "second")):
        ran.clear()
        np.testing.assert_array_equal(run(X, sigma), X + value)
        jax.effects_barrier()
        assert ran == [name]
    both = run(X, jnp.array([0.5, 0.1]))
    np.testing.assert_array_equal(both, X + jnp.array([1.0, 2.0])[:, None, None, None])


@pytest.mark.parametrize("sigma", [-1.0, float("nan")])
def test_an_impossible_level_to_switch_at_is_refused(sigma: float) -> None:
    with pytest.raises(GuidanceError, match="expected a noise level >= 0"):
        switch_prompt(denoise_of(COND), denoise_of(NULL), sigma)
