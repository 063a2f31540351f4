"""Blocks against PyTorch, attention against NumPy."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ediffi_jax.models.attention import Context, CrossAttention, Paint, SelfAttention, attend, num_heads, paint_bias
from ediffi_jax.models.blocks import (
    GroupNorm,
    ResBlock,
    depth_to_space,
    downsample,
    num_groups,
    space_to_depth,
    upsample,
)
from ediffi_jax.models.conditioner import sinusoid
from ediffi_jax.models.errors import ModelError


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_like(tree: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), tree)


def init(module: nn.Module, *args: Any) -> Any:
    """Fresh parameters, in one compiled program (op by op would compile every one of them)."""
    return jax.jit(module.init)(jax.random.key(0), *args)["params"]


def run(module: nn.Module, params: Any, *args: Any) -> jax.Array:
    return jax.jit(module.apply)({"params": params}, *args)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """NHWC -> NCHW."""
    return torch.tensor(np.array(x)).permute(0, 3, 1, 2)


def from_torch(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def test_groups_are_at_most_32_and_hold_at_least_4_channels() -> None:
    assert [num_groups(c) for c in (3, 8, 16, 24, 48, 96, 128, 256, 1024)] == [1, 2, 4, 6, 12, 24, 32, 32, 32]


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_group_norm_is_pytorchs(offset: float) -> None:
    x = normal(0, 2, 6, 4, 24) + np.float32(offset)
    gain, bias = normal(1, 24), normal(2, 24)
    scale, shift = normal(3, 2, 24), normal(4, 2, 24)
    ours = run(GroupNorm(), {"scale": gain, "bias": bias}, x, scale, shift)
    theirs = F.group_norm(to_torch(x), 6, torch.tensor(gain), torch.tensor(bias), eps=1e-5)
    theirs = from_torch(theirs) * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(ours, theirs, atol=2e-5 if offset == 0 else 2e-3)


def test_group_norm_statistics_are_float32_for_bfloat16() -> None:
    x = jnp.asarray(normal(0, 1, 16, 16, 8) + 8.0, jnp.bfloat16)
    params = init(GroupNorm(), x)
    out = run(GroupNorm(), params, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), run(GroupNorm(), params, x.astype(jnp.float32)), atol=0.02)


def test_resampling_is_pytorchs() -> None:
    x = normal(0, 2, 6, 4, 3)
    np.testing.assert_array_equal(upsample(x), from_torch(F.interpolate(to_torch(x), scale_factor=2, mode="nearest")))
    np.testing.assert_allclose(downsample(x), from_torch(F.avg_pool2d(to_torch(x), 2)), atol=1e-6)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x)), x)


def test_patches_times_a_matrix_are_strided_convolutions() -> None:
    x, kernel = normal(0, 2, 6, 4, 3), normal(1, 2, 2, 3, 5)
    ours = space_to_depth(x) @ kernel.reshape(12, 5)
    theirs = F.conv2d(to_torch(x), torch.tensor(kernel).permute(3, 2, 0, 1), stride=2)
    np.testing.assert_allclose(ours, from_torch(theirs), atol=1e-5)
    ours = depth_to_space(x @ kernel.transpose(2, 0, 1, 3).reshape(3, 20))
    theirs = F.conv_transpose2d(to_torch(x), torch.tensor(kernel).permute(2, 3, 0, 1), stride=2)
    np.testing.assert_allclose(ours, from_torch(theirs), atol=1e-5)


def torch_res_block(params: Any, x: np.ndarray, emb: np.ndarray, how: str) -> np.ndarray:
    """The residual block of Dhariwal & Nichol, written from its definition."""
    p = jax.tree.map(lambda a: torch.tensor(np.array(a)), params)

    def norm(h: torch.Tensor, name: str) -> torch.Tensor:
        return F.group_norm(h, num_groups(h.shape[1]), p[name]["scale"], p[name]["bias"])

    def conv(h: torch.Tensor, name: str) -> torch.Tensor:
        return F.conv2d(h, p[name]["kernel"].permute(3, 2, 0, 1), p[name]["bias"], padding=1)

    def resized(h: torch.Tensor) -> torch.Tensor:
        if how == "up":
            return F.interpolate(h, scale_factor=2, mode="nearest")
        return F.avg_pool2d(h, 2) if how == "down" else h

    skip = to_torch(x)
    h = conv(resized(F.silu(norm(skip, "norm1"))), "conv1")
    scale, shift = (torch.tensor(emb) @ p["emb"]["kernel"] + p["emb"]["bias"]).chunk(2, dim=1)
    h = norm(h, "norm2") * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    h = conv(F.silu(h), "conv2")
    skip = resized(skip)
    if "shortcut" in p:
        skip = torch.einsum("bchw,cd->bdhw", skip, p["shortcut"]["kernel"]) + p["shortcut"]["bias"][:, None, None]
    return from_torch(skip + h)


@pytest.mark.parametrize(("how", "features"), [("none", 16), ("none", 8), ("down", 8), ("up", 16)])
def test_residual_block_is_pytorchs(how: str, features: int) -> None:
    block, x, emb = ResBlock(features, how), normal(0, 2, 8, 6, 8), normal(1, 2, 10)
    params = init(block, x, emb)
    assert not np.any(params["conv2"]["kernel"])
    params = random_like(params)
    ours = run(block, params, x, emb)
    np.testing.assert_allclose(ours, torch_res_block(params, x, emb, how), atol=1e-4)


def test_attention_is_pytorchs() -> None:
    q, k, v = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4), normal(2, 2, 7, 3, 4)
    mask = np.ones((2, 7), bool)
    mask[0, 4:] = False
    tensors = (torch.tensor(a).transpose(1, 2) for a in (q, k, v))
    theirs = F.scaled_dot_product_attention(*tensors, attn_mask=torch.tensor(mask)[:, None, None])
    np.testing.assert_allclose(jax.jit(attend)(q, k, v, mask), theirs.transpose(1, 2).numpy(), atol=1e-5)


def numpy_paint(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, a: np.ndarray, w: np.ndarray
) -> np.ndarray:
    """softmax((Q K^T + w max(Q K^T) A) / sqrt(d)) V, image by image, in float64."""
    out = np.zeros_like(q, np.float64)
    for b in range(len(q)):
        real = np.flatnonzero(mask[b])
        raw = np.stack([q[b, :, h].astype(float) @ k[b, real, h].astype(float).T for h in range(q.shape[2])])
        for h, logits in enumerate(raw):
            logits = (logits + w[b] * raw.max() * a[b][:, real]) / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(1, keepdims=True))
            out[b, :, h] = weights / weights.sum(1, keepdims=True) @ v[b, real, h]
    return out


def test_painted_attention_is_the_papers_formula() -> None:
    q, k, v = normal(0, 3, 6, 2, 4), normal(1, 3, 5, 2, 4), normal(2, 3, 5, 2, 4)
    mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 1]], bool)
    a = np.random.default_rng(3).integers(0, 2, (3, 6, 5)).astype(np.float32)
    w = np.array([0.0, 0.7, 2.0], np.float32)
    painted = jax.jit(attend)
    ours = painted(q, k, v, mask, a, w)
    np.testing.assert_allclose(ours, numpy_paint(q, k, v, mask, a, w), atol=1e-5)
    np.testing.assert_allclose(ours[0], painted(q, k, v, mask)[0], atol=1e-6)
    # The max is each image's own: a mate with huge logits changes nothing.
    louder = q * np.array([1, 1, 100], np.float32)[:, None, None, None]
    np.testing.assert_allclose(painted(louder, k, v, mask, a, w)[:2], ours[:2], atol=1e-6)


def test_masks_are_resized_to_the_layer_row_by_row() -> None:
    masks = np.zeros((1, 8, 8, 2), np.float32)
    masks[0, :4, :, 0] = 1
    bias = np.asarray(jax.jit(paint_bias, static_argnums=(1, 2))(masks, 4, 4)).reshape(4, 4, 2)
    assert bias[0, :, 0].min() > 0.99 and bias[3, :, 0].max() < 0.01 and not bias[..., 1].any()
    assert jax.eval_shape(lambda m: paint_bias(m, 16, 16), masks).shape == (1, 256, 2)


def test_self_attention_layer_is_pytorchs() -> None:
    layer, x = SelfAttention(head_channels=4), normal(0, 2, 3, 4, 8)
    fresh = init(layer, x)
    np.testing.assert_array_equal(run(layer, fresh, x), x)
    p = random_like(fresh)
    t = jax.tree.map(lambda a: torch.tensor(np.array(a)), p)
    tokens = F.group_norm(to_torch(x), 2, t["norm"]["scale"], t["norm"]["bias"]).flatten(2).permute(2, 0, 1)
    theirs, _ = F.multi_head_attention_forward(
        tokens, tokens, tokens, 8, 2, t["qkv"]["kernel"].T, t["qkv"]["bias"], None, None, False, 0.0,
        t["out"]["kernel"].T, t["out"]["bias"], need_weights=False,
    )  # fmt: skip
    np.testing.assert_allclose(
        run(layer, p, x), x + theirs.transpose(0, 1).numpy().reshape(x.shape), atol=1e-5
    )


def test_cross_attention_layer_reads_keys_and_values_from_the_context() -> None:
    layer, x = CrossAttention(head_channels=4), normal(0, 2, 2, 2, 8)
    context = Context(tokens=normal(1, 2, 5, 6), mask=np.array([[1, 1, 1, 0, 1], [0, 0, 0, 0, 1]], bool))
    fresh = init(layer, x, context)
    np.testing.assert_array_equal(run(layer, fresh, x, context), x)
    p = random_like(fresh)
    normed = np.asarray(run(GroupNorm(), p["norm"], x)).reshape(2, 4, 8)
    q = (normed @ p["query"]["kernel"] + p["query"]["bias"]).reshape(2, 4, 2, 4)
    k, v = np.split(np.asarray(context.tokens @ p["key_value"]["kernel"] + p["key_value"]["bias"]), 2, axis=-1)
    k, v = k.reshape(2, 5, 2, 4), v.reshape(2, 5, 2, 4)
    a, w = np.zeros((2, 2, 2, 5), np.float32), np.array([1.0, 0.5], np.float32)
    a[0, 0, :, 1] = 1
    for paint, strength in ((None, 0 * w), (Paint(masks=jnp.asarray(a), weight=jnp.asarray(w)), w)):
        mixed = numpy_paint(np.asarray(q), k, v, context.mask, a.reshape(2, 4, 5), strength).reshape(2, 2, 2, 8)
        expected = x + mixed @ p["out"]["kernel"] + p["out"]["bias"]
        np.testing.assert_allclose(run(layer, p, x, context, paint), expected, atol=1e-5)


def test_heads_have_64_channels_or_there_is_one() -> None:
    assert [num_heads(c, 64) for c in (16, 64, 128, 1024)] == [1, 1, 2, 16]
    with pytest.raises(ModelError, match="head_channels=64 does not divide the 96 channels"):
        num_heads(96, 64)


def test_sinusoid_tells_noise_levels_apart() -> None:
    levels = np.linspace(-1.6, 1.1, 200, dtype=np.float32)
    features = np.asarray(sinusoid(levels, 32))
    assert features.shape == (200, 32)
    np.testing.assert_allclose(features[:, :16] ** 2 + features[:, 16:] ** 2, 1.0, atol=1e-5)
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1) + np.eye(200)
    assert distance.min() > 0.1
