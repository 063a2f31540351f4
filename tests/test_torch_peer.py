"""The PyTorch peer of the benchmarks is our U-Net: same weights, same outputs, same gradients, same training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import torch_peer
from ediffi_jax import conditioning, models
from ediffi_jax.conditioning import ConditioningSpec
from ediffi_jax.denoiser import interval_loss, precondition
from ediffi_jax.training import config as training_config
from ediffi_jax.training.state import make_optimizer

torch = pytest.importorskip("torch")

SPEC = ConditioningSpec(clip_tokens=5, clip_width=24, pooled_width=24, t5_tokens=7, t5_width=16)
WIDTHS = {"clip_text": 24, "clip_pooled": 24, "clip_image": 24, "t5": 16}
MODEL = {"resolution": 16, "channels": 16, "channel_mults": (1, 2), "blocks": 2, "attention_resolutions": (8,),
         "cross_attention_resolutions": (16, 8), "head_channels": 8, "context_width": 12}  # fmt: skip
BATCH, SIGMA_DATA = 3, 0.5


@pytest.fixture(scope="module")
def same():
    """Both networks with the same random weights, and what both are fed."""
    network = models.build({"name": "unet", **MODEL})
    rng = np.random.default_rng(0)
    cond = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), conditioning.zeros(BATCH, SPEC))
    masks = ("t5_mask", "clip_text_mask", "clip_image_mask")
    cond = cond.replace(**{name: rng.random(getattr(cond, name).shape) < 0.6 for name in masks})
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((BATCH, 16, 16, 3)), jnp.zeros(BATCH), cond)
    params = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])
    peer = torch_peer.load(torch_peer.UNet(WIDTHS, **MODEL), params)
    images, noise = rng.normal(size=(2, BATCH, 16, 16, 3)).astype(np.float32)
    sigma = np.array([0.05, 0.7, 9.0], np.float32)
    return network, params, peer, cond, images, noise, sigma


def to_torch(x):
    """Channels first."""
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def fields(cond):
    names = (*WIDTHS, "clip_text_mask", "t5_mask", "clip_image_mask")
    return {name: torch.from_numpy(np.asarray(getattr(cond, name))) for name in names}


def test_one_training_step_is_the_same(same) -> None:
    network, params, peer, cond, images, noise, sigma = same
    settings = {**training_config.default().optimizer.to_dict(), "warmup": 0, "lr": 1e-2, "clip": 0.5}
    optimizer = make_optimizer(settings, 10)

    def loss(params):
        denoise = precondition(lambda x, c: network.apply({"params": params}, x, c, cond), SIGMA_DATA)
        return interval_loss(denoise, images, noise, sigma, 0.0, jnp.inf, SIGMA_DATA).mean()

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return value, jax.tree.map(jnp.add, params, updates)

    value, ours = step(params)
    trainer = torch_peer.Trainer(peer, settings, 0.9)
    fed = to_torch(images), to_torch(noise), torch.from_numpy(sigma), fields(cond)
    theirs = trainer.update(torch_peer.loss(peer, *fed, SIGMA_DATA))
    np.testing.assert_allclose(theirs.numpy(), value, rtol=2e-4)
    expected = torch_peer.load(torch_peer.UNet(WIDTHS, **MODEL), jax.device_get(ours)).state_dict()
    before = torch_peer.load(torch_peer.UNet(WIDTHS, **MODEL), params).state_dict()
    for name, leaf in peer.state_dict().items():
        moved, meant = leaf - before[name], expected[name] - before[name]
        assert torch.linalg.norm(moved - meant) <= 0.02 * torch.linalg.norm(meant) + 1e-6, name
    for average, (name, p) in zip(trainer.average, peer.named_parameters(), strict=True):
        old = before[name]
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * p.detach(), rtol=1e-5, atol=1e-6)


def test_outputs_are_the_same(same) -> None:
    network, params, _, cond, images, _, sigma = same
    peer = torch_peer.load(torch_peer.UNet(WIDTHS, **MODEL), params)
    ours = precondition(lambda x, c: network.apply({"params": params}, x, c, cond), SIGMA_DATA)(images, sigma)
    with torch.no_grad():
        theirs = torch_peer.denoise(peer, to_torch(images), torch.from_numpy(sigma), fields(cond), SIGMA_DATA)
    scale = np.abs(ours).max()
    np.testing.assert_allclose(np.moveaxis(theirs.numpy(), 1, -1), ours, atol=2e-5 * scale)
