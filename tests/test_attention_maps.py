"""Cross-attention's weights against what its own queries and keys give in numpy, and against what is masked."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import models_small
import numpy as np
import pytest

from ediffi_jax import conditioning, experts
from ediffi_jax.attention_maps import maps_fn, shares
from ediffi_jax.conditioning import Conditioning
from ediffi_jax.release import StageSpec
from ediffi_jax.stage import CascadeError, Stage

SIGMA = 0.3  # the middle expert's
X = SIGMA * jax.random.normal(jax.random.key(0), (2, 8, 8, 3))


@pytest.fixture(scope="module")
def stage() -> Stage:
    """A base network with three experts, all weights random."""
    network = models_small.small("unet")
    examples = models_small.inputs(network, 2)
    each = [models_small.randomised(network, *examples, seed=seed) for seed in range(3)]
    spec = StageSpec(name="base", resolution=8, model=models_small.UNET, cuts=(0.25, 0.75))
    return Stage(spec, experts.stack(each))


@pytest.fixture(scope="module")
def cond() -> Conditioning:
    """Text alone, with padding."""
    text = conditioning.select(models_small.condition(2), ("t5", "clip_text"))
    return text.replace(t5_mask=text.t5_mask.at[1, 2:].set(False))


def test_weights_are_the_softmax_of_the_layers_own_queries_and_keys(stage: Stage, cond: Conditioning) -> None:
    maps = maps_fn(stage, cond)(X, SIGMA)
    assert set(maps) == {"down1_0", "middle1", "up1_0", "up1_1"}
    params = experts.take(stage.params, 1)
    scale = 1 / np.sqrt(SIGMA**2 + stage.spec.sigma_data**2)
    level = jnp.full(2, np.log(SIGMA) / 4)
    run = jax.jit(lambda p, x: stage.network.apply({"params": p}, x, level, cond, capture_intermediates=True))
    _, seen = run(params, scale * X)
    absent = cond.clip_image_mask[:, None]
    mask = np.concatenate([cond.clip_text_mask, cond.t5_mask, absent, np.ones((2, 1), bool)], axis=1)
    for block, weights in maps.items():
        layer = seen["intermediates"][block]["cross_attention"]
        query, (key, _) = layer["query"]["__call__"][0], np.split(layer["key_value"]["__call__"][0], 2, axis=2)
        b, n, c = query.shape
        heads = weights.shape[1]
        q, k = np.reshape(query, (b, n, heads, c // heads)), np.reshape(key, (b, -1, heads, c // heads))
        logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(c // heads)
        raised = np.where(mask[:, None, None], np.exp(logits - logits.max()), 0)
        np.testing.assert_allclose(weights, raised / raised.sum(axis=-1, keepdims=True), atol=1e-5)


def test_shares_sum_to_one_and_leave_nothing_to_what_is_dropped(stage: Stage, cond: Conditioning) -> None:
    found = shares(maps_fn(stage, cond)(X, SIGMA), cond)
    np.testing.assert_allclose(sum(found.values()), 1, atol=1e-6)
    assert np.all(found["clip_image"] == 0)
    assert all(np.all(found[name] > 0) for name in ("clip_text", "t5", "null"))
    nothing = conditioning.null_like(cond)
    assert np.all(shares(maps_fn(stage, nothing)(X, SIGMA), nothing)["null"] == 1)


def test_the_expert_that_owns_the_level_is_asked(stage: Stage, cond: Conditioning) -> None:
    others = jax.tree.map(lambda leaf: leaf[np.array([1, 1, 2])], stage.params)
    changed = dataclasses.replace(stage, params=others)
    for sigma, same in ((0.05, False), (SIGMA, True), (5.0, True)):
        before, after = (shares(maps_fn(s, cond)(X, sigma), cond)["t5"] for s in (stage, changed))
        assert np.allclose(before, after, atol=1e-6) == same


def test_super_resolution_is_refused(stage: Stage, cond: Conditioning) -> None:
    upper = dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, name="sr8", low_resolution=2))
    with pytest.raises(CascadeError, match="'sr8' is no base stage"):
        maps_fn(upper, cond)
