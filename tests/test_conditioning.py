"""Drops: rates, independence, per sample; null, select, concat."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ediffi_jax import conditioning
from ediffi_jax.conditioning import ENCODERS, Conditioning, ConditioningError, ConditioningSpec, DropRates

SPEC = ConditioningSpec(clip_tokens=3, clip_width=4, pooled_width=5, t5_tokens=2, t5_width=6)
FIELDS = {
    "clip_text": ("clip_text", "clip_text_mask", "clip_pooled"),
    "t5": ("t5", "t5_mask"),
    "clip_image": ("clip_image", "clip_image_mask"),
}


def ones(batch):
    return jax.tree.map(jnp.ones_like, conditioning.zeros(batch, SPEC))


def kept(cond):
    """{encoder: bool [b]}, and a check that a sample keeps or loses all fields of an encoder together."""
    out = {}
    for name, fields in FIELDS.items():
        columns = [np.asarray(getattr(cond, field)).reshape(len(cond.clip_image_mask), -1) for field in fields]
        rows = np.concatenate(columns, axis=1).astype(bool)
        assert np.all(rows.all(1) == rows.any(1)), name
        out[name] = rows.all(1)
    return out


@pytest.fixture(scope="module")
def sampled():
    return kept(jax.jit(conditioning.drop)(jax.random.key(0), ones(100_000)))


@pytest.mark.parametrize("name, rate", [("clip_text", 0.2), ("t5", 0.25), ("clip_image", 0.9)])
def test_default_rates_are_the_papers(sampled, name, rate):
    error = 5 * np.sqrt(rate * (1 - rate) / 100_000)
    assert abs(np.mean(~sampled[name]) - rate) < error


def test_all_three_are_dropped_in_four_and_a_half_percent(sampled):
    rate = np.mean(~sampled["clip_text"] & ~sampled["t5"] & ~sampled["clip_image"])
    assert abs(rate - 0.045) < 5 * np.sqrt(0.045 * 0.955 / 100_000)


def test_the_drops_are_independent(sampled):
    """Pearson's chi-square of the eight outcomes against the product of the rates, 7 degrees of freedom."""
    rates = DropRates()
    statistic = 0.0
    for outcome in itertools.product((False, True), repeat=3):
        hit = np.all([sampled[name] == keep for name, keep in zip(ENCODERS, outcome)], axis=0).sum()
        chances = [1 - getattr(rates, name) if keep else getattr(rates, name) for name, keep in zip(ENCODERS, outcome)]
        expected = 100_000 * np.prod(chances)
        statistic += (hit - expected) ** 2 / expected
    assert statistic < 24.3  # exceeded once in a thousand


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_rate_zero_keeps_all_and_rate_one_drops_all(seed, text, t5):
    left = kept(conditioning.drop(jax.random.key(seed), ones(16), DropRates(clip_text=text, t5=t5, clip_image=1.0)))
    assert not left["clip_image"].any()
    for name, rate in (("clip_text", text), ("t5", t5)):
        assert rate == 0.5 or left[name].all() == (rate == 0.0) and left[name].any() == (rate == 0.0)


def test_a_sample_that_needs_its_image_never_loses_it_and_the_rest_is_as_before():
    needs = jnp.arange(400) % 3 == 0
    rates = DropRates(clip_text=0.5, t5=0.5, clip_image=0.9)
    plain = kept(conditioning.drop(jax.random.key(0), ones(400), rates))
    needed = kept(conditioning.drop(jax.random.key(0), ones(400), rates, needs))
    assert needed["clip_image"][needs].all() and not plain["clip_image"][needs].all()
    np.testing.assert_array_equal(needed["clip_image"][~needs], plain["clip_image"][~needs])
    for name in ("clip_text", "t5"):
        np.testing.assert_array_equal(needed[name], plain[name])


def test_rates_may_be_traced_and_keys_decide():
    @jax.jit
    def dropped(key, rate):
        return conditioning.drop(key, ones(64), DropRates(clip_text=rate, t5=rate, clip_image=rate))

    first, again, other = (dropped(jax.random.key(seed), 0.5) for seed in (0, 0, 1))
    same = jax.tree.map(np.array_equal, first, again)
    assert all(jax.tree.leaves(same)) and not np.array_equal(first.t5_mask, other.t5_mask)


def test_a_dropped_sample_equals_null_even_where_it_was_not_a_number():
    cond = jax.tree.map(lambda x: x if x.dtype == bool else x * jnp.nan, ones(4))
    dropped = conditioning.drop(jax.random.key(0), cond, DropRates(clip_text=1.0, t5=1.0, clip_image=1.0))
    jax.tree.map(np.testing.assert_array_equal, dropped, conditioning.zeros(4, SPEC))


def test_null_does_not_depend_on_the_prompts_length():
    short = ones(2).replace(t5_mask=jnp.array([[True, False], [True, True]]))
    jax.tree.map(np.testing.assert_array_equal, conditioning.null_like(short), conditioning.null_like(ones(2)))
    jax.tree.map(np.testing.assert_array_equal, conditioning.null_like(short), conditioning.zeros(2, SPEC))


@pytest.mark.parametrize("names", [subset for n in range(4) for subset in itertools.combinations(ENCODERS, n)])
def test_select_keeps_the_named_and_nulls_the_rest(names):
    left = kept(conditioning.select(ones(3), names))
    assert all(left[name].all() == (name in names) and left[name].any() == (name in names) for name in ENCODERS)


def test_select_takes_one_name_and_refuses_an_unknown_one():
    assert kept(conditioning.select(ones(1), "t5"))["t5"].all()
    with pytest.raises(ConditioningError, match="did you mean 'clip_text'"):
        conditioning.select(ones(1), ["clip_txt"])
