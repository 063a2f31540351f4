"""Both U-Nets as functions: sizes, precision, masks, batches, gradients, and the paper's tables."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_small import CONFIGS, condition, inputs, randomised, shapes, small

from ediffi_jax import models
from ediffi_jax.models import ModelError

NAMES = sorted(CONFIGS)


def count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@functools.cache
def prepared(name: str) -> tuple[Any, Any, Any]:
    """Network, random parameters, and its jitted forward pass."""
    network = small(name)
    params = randomised(network, *inputs(network, 1))
    return network, params, jax.jit(lambda p, *args: network.apply({"params": p}, *args))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_network_is_zero(name: str) -> None:
    network = small(name)
    args = inputs(network, 2)
    out, variables = jax.jit(network.init_with_output)(jax.random.key(0, impl="rbg"), *args)
    assert out.shape == args[0].shape and out.dtype == jnp.float32
    assert not np.any(out)
    assert count(variables["params"]) == count(shapes(network, *args))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_alone_and_in_a_batch(name: str) -> None:
    network, params, apply = prepared(name)
    args = inputs(network, 8)
    alone = apply(params, *jax.tree.map(lambda a: a[3:4], args))
    np.testing.assert_allclose(apply(params, *args)[3:4], alone, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_never_seen_and_words_are(name: str) -> None:
    network, params, apply = prepared(name)
    x, c_noise, cond, *rest = inputs(network, 8)
    cond = cond.replace(
        clip_text_mask=cond.clip_text_mask.at[:, 3:].set(False), t5_mask=cond.t5_mask.at[:, 2:].set(False)
    )
    padded = cond.replace(clip_text=cond.clip_text.at[:, 3:].set(1e3), t5=cond.t5.at[:, 2:].set(-1e3))
    other = cond.replace(t5=cond.t5.at[:, 1].add(1.0))
    reference = apply(params, x, c_noise, cond, *rest)
    np.testing.assert_array_equal(reference, apply(params, x, c_noise, padded, *rest))
    assert np.abs(reference - apply(params, x, c_noise, other, *rest)).max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_tokens_does_not_matter(name: str) -> None:
    network, params, apply = prepared(name)
    x, c_noise, cond, *rest = inputs(network, 8)
    turned = cond.replace(clip_text=cond.clip_text[:, ::-1], t5=jnp.roll(cond.t5, 1, axis=1))
    np.testing.assert_allclose(
        apply(params, x, c_noise, cond, *rest), apply(params, x, c_noise, turned, *rest), atol=2e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_with_every_encoder_dropped_only_the_null_token_is_left(name: str) -> None:
    network, params, apply = prepared(name)
    x, c_noise, cond, *rest = inputs(network, 8)
    null = jax.tree.map(jnp.zeros_like, cond)
    outside = null.replace(t5=cond.t5, clip_text=cond.clip_text)
    out = apply(params, x, c_noise, null, *rest)
    np.testing.assert_array_equal(out, apply(params, x, c_noise, outside, *rest))
    assert np.isfinite(out).all()
    assert np.abs(out - apply(params, x, c_noise, cond, *rest)).max() > 1e-4


@pytest.mark.parametrize("field", ["clip_pooled", "clip_image"])
def test_pooled_vectors_reach_the_output_through_the_embedding(field: str) -> None:
    network, params, apply = prepared("unet")
    x, c_noise, cond, *rest = inputs(network, 8)
    null = jax.tree.map(jnp.zeros_like, cond)
    pooled = null.replace(**{field: getattr(cond, field)})
    assert np.abs(apply(params, x, c_noise, null, *rest) - apply(params, x, c_noise, pooled, *rest)).max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient_and_remat_changes_nothing(name: str) -> None:
    network, params, _ = prepared(name)
    args = inputs(network, 2)

    def grads(network: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(network.apply({"params": p}, *args)))))(params)

    value, plain = grads(network)
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        assert np.abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)
    value_remat, remat = grads(network.clone(remat=True))
    np.testing.assert_allclose(value, value_remat, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * (1 + np.abs(a).max())), plain, remat)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_float32_parameters_and_output(name: str) -> None:
    network, params, apply = prepared(name)
    args = inputs(network, 8)
    half = network.clone(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, *args))} == {jnp.dtype("float32")}
    out, reference = jax.jit(half.apply)({"params": params}, *args), apply(params, *args)
    assert out.dtype == jnp.float32 and np.isfinite(out).all()
    assert np.corrcoef(out.ravel(), reference.ravel())[0, 1] > 0.99


def test_experts_stacked_and_vmapped_equal_each_alone() -> None:
    network = small("unet", channel_mults=(1,), attention_resolutions=(8,), cross_attention_resolutions=(8,))
    args = inputs(network, 2)
    params = randomised(network, *args)
    apply = jax.jit(lambda p, *args: network.apply({"params": p}, *args))
    stacked = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    both = jax.jit(jax.vmap(lambda p: network.apply({"params": p}, *args)))(stacked)
    np.testing.assert_allclose(both[0], apply(params, *args), atol=2e-5)
    np.testing.assert_allclose(both[1], apply(jax.tree.map(lambda p: 0.5 * p, params), *args), atol=2e-5)


def test_efficient_unet_runs_on_pictures_four_times_its_nominal_size() -> None:
    network, params, apply = prepared("efficient_unet")
    args = inputs(network, 2, size=32)
    assert count(shapes(network, *args)) == count(params)
    out = apply(params, *args)
    assert out.shape == (2, 32, 32, 3) and np.isfinite(out).all()


def test_low_resolution_picture_and_its_noise_level_are_inputs() -> None:
    network, params, apply = prepared("efficient_unet")
    x, c_noise, cond, low_res, aug = inputs(network, 8)
    reference = apply(params, x, c_noise, cond, low_res, aug)
    enlarged = jax.image.resize(low_res, x.shape, "cubic")
    np.testing.assert_allclose(reference, apply(params, x, c_noise, cond, enlarged, aug), atol=2e-5)
    assert np.abs(reference - apply(params, x, c_noise, cond, -low_res, aug)).max() > 1e-3
    assert np.abs(reference - apply(params, x, c_noise, cond, low_res, aug + 0.2)).max() > 1e-4
    none = apply(params, x, c_noise, cond, low_res, None)
    np.testing.assert_allclose(none, apply(params, x, c_noise, cond, low_res, 0 * aug), atol=2e-5)


def test_painted_words_change_the_picture_and_zero_weight_does_not() -> None:
    network, params, forward = prepared("unet")
    args = jax.tree.map(lambda a: a[:2], inputs(network, 8))
    masks = np.zeros((2, 16, 16, 5 + 4 + 1 + 1), np.float32)
    masks[:, :8, :, 1] = 1
    apply = jax.jit(
        lambda w: network.apply({"params": params}, *args, paint=models.Paint(masks=jnp.asarray(masks), weight=w))
    )
    plain = forward(params, *inputs(network, 8))[:2]
    np.testing.assert_allclose(apply(jnp.zeros(2)), plain, atol=2e-5)
    first_only = apply(jnp.array([3.0, 0.0]))
    np.testing.assert_allclose(first_only[1], plain[1], atol=2e-5)
    assert np.abs(first_only[0] - plain[0]).max() > 1e-3


def test_dropout_is_on_in_training_only() -> None:
    flat = dict(channel_mults=(1,), attention_resolutions=(), cross_attention_resolutions=())
    network = small("unet", dropout=0.5, **flat)
    args = inputs(network, 2)
    variables = {"params": randomised(network, *args)}
    train = jax.jit(lambda key: network.apply(variables, *args, train=True, rngs={"dropout": key}))
    first, second = (train(jax.random.key(k, impl="rbg")) for k in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    plain = small("unet", **flat)
    ours, reference = jax.jit(lambda v: (network.apply(v, *args), plain.apply(v, *args)))(variables)
    np.testing.assert_array_equal(ours, reference)


SR1024 = dict(name="efficient_unet", channel_mults=(1, 2, 4, 4), attention_resolutions=())
PAPER = {
    # eDiff-I tables 2, 3, 4: config, picture, low-resolution picture, parameters. The context width is not published.
    "base64": (dict(name="unet"), 64, None, 715_496_707),
    "base64 narrow": (dict(name="unet", context_width=768), 64, None, 704_353_027),
    "base64 wide": (dict(name="unet", context_width=4096), 64, None, 849_220_867),
    "sr256": (dict(name="efficient_unet"), 256, 64, 445_653_763),
    "sr1024 patch": (SR1024, 256, 64, 194_959_619),
    "sr1024": (SR1024, 1024, 256, 194_959_619),
}


@pytest.mark.parametrize("stage", sorted(PAPER))
def test_the_tables_of_the_paper_are_configurations(stage: str) -> None:
    config, size, low, parameters = PAPER[stage]
    network = models.build(config)
    cond = jax.eval_shape(lambda: condition(2, sizes=(77, 768, 768, 113, 4096)))
    x, c_noise = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    low_res = low and jax.ShapeDtypeStruct((2, low, low, 3), jnp.float32)
    out, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), x, c_noise, cond, low_res)
    params = variables["params"]
    assert out.shape == x.shape
    assert count(params) == parameters
    if stage.startswith("base64"):
        assert sorted(k for k in params if "self_attention" in params[k]) == sorted(
            [f"down{i}_{j}" for i in (1, 2, 3) for j in range(3)]
            + [f"up{i}_{j}" for i in (1, 2, 3) for j in range(4)]
            + ["middle1"]
        )
    else:
        blocks = [sum(k.startswith(f"down{i}_") and "res" in params[k] for k in params) for i in range(4)]
        assert blocks == [2, 4, 8, 8]
        assert [k for k in params if "cross_attention" in params[k]] == ["down3_7", "up3_7"]
        assert ("self_attention" in params["down3_7"]) == (stage == "sr256")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(name="u_net"), "did you mean 'unet'"),
        (dict(channels=8), "unknown model None"),
        (dict(name="unet", chanels=8), "did you mean 'channels'"),
        (dict(name="unet", skip_scale=1.0), "no attribute 'skip_scale'"),
        (dict(name="unet", dtype="float16"), "unknown dtype 'float16'"),
    ],
)
def test_a_wrong_config_names_what_is_nearest(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        models.build(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet", dict(attention_resolutions=(5,)), "no level works at"),
        ("unet", dict(blocks=(1, 2, 3)), "expected 2"),
        ("unet", dict(head_channels=12), "does not divide"),
        ("efficient_unet", dict(block_mults=(1,)), "expected 2"),
        ("efficient_unet", dict(low_res=False), "given one"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    network = small(name, **changes)
    args = list(inputs(small(name), 1))
    with pytest.raises(ModelError, match=message):
        shapes(network, *args)


def test_pictures_that_do_not_fit_are_refused() -> None:
    network = small("unet")
    x, c_noise, cond, *_ = inputs(network, 1)
    with pytest.raises(ModelError, match="do not divide by 2"):
        shapes(network, x[:, :7], c_noise, cond)
    with pytest.raises(ModelError, match="takes no low-resolution"):
        shapes(network, x, c_noise, cond, x)
    with pytest.raises(ModelError, match="given none"):
        shapes(small("efficient_unet"), x, c_noise, cond)


def test_lists_of_a_config_become_tuples() -> None:
    network = models.build({**CONFIGS["unet"], "channel_mults": [1, 2]})
    assert network.channel_mults == (1, 2)
    assert hash(network) == hash(small("unet"))
