"""Small stand-ins for the training tests: a network of a few hundred weights, its objective, and batches."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from ediffi_jax.conditioning import Conditioning, DropRates
from ediffi_jax.noise import LogNormal
from ediffi_jax.training import config as training_config
from ediffi_jax.training.objective import Objective
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState, create, make_optimizer
from ediffi_jax.training.unconditional import Unconditional

EMA = {"decay": 0.9, "warmup": True}


class Net(nn.Module):
    """Two convolutions and a modulation by the noise level; `zero` makes F = 0, the network at birth."""

    zero: bool = False
    channels: int = 16

    @nn.compact
    def __call__(
        self,
        x: Array,
        c_noise: Array,
        cond: Conditioning,
        low_res: Array | None = None,
        aug_level: Array | None = None,
        train: bool = False,
    ) -> Array:
        if low_res is not None:
            enlarged = jax.image.resize(low_res, x.shape, "nearest")
            x = jnp.concatenate([x, enlarged * (1 + aug_level[:, None, None, None])], -1)
        h = nn.Conv(self.channels, (3, 3), name="first")(x)
        h = nn.silu(h * (1 + nn.Dense(self.channels, name="level")(c_noise[:, None])[:, None, None, :]))
        h = nn.silu(nn.Conv(self.channels, (3, 3), name="second")(h))
        kernel = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        return nn.Conv(3, (1, 1), kernel_init=kernel, name="last")(h)


def make_objective(network: nn.Module | None = None, **changes: Any) -> Objective:
    """An objective without encoders."""
    fields = {
        "network": network or Net(),
        "encoders": Unconditional(),
        "noise": LogNormal(),
        "sigma_data": 0.5,
        "drop": DropRates(),
        "max_level": 0.0,
    }
    return Objective(**{**fields, **changes})


def make_adamw(**changes: Any) -> optax.GradientTransformation:
    """The configured optimizer with a learning rate that shows after one step."""
    config = training_config.default().optimizer.to_dict()
    return make_optimizer({**config, "lr": 1e-2, "warmup": 0, **changes}, total_steps=100)


def make_batch(experts: int, size: int = 8, seed: int = 0, resolution: int = 8) -> dict[str, np.ndarray]:
    """Random pictures [E, B, R, R, 3]."""
    shape = (experts, size, resolution, resolution, 3)
    return {"image": np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)}


def make_state(
    objective: Objective, optimizer: optax.GradientTransformation, phase: Phase, seed: int = 0
) -> TrainState:
    """A state whose experts differ from one another."""
    batch = {name: rows[0] for name, rows in make_batch(1).items()}
    each = [objective.init(jax.random.key(seed + i), batch) for i in range(phase.num_experts)]
    return create(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), optimizer)


def small_config() -> ConfigDict:
    """A whole run of a real U-Net in a few seconds: synthetic pictures of 8x8, no encoders, no files."""
    config = training_config.default()
    config.encoders = ""
    config.model = ConfigDict(
        {
            "name": "unet",
            "resolution": 8,
            "channels": 8,
            "channel_mults": (1,),
            "blocks": 1,
            "attention_resolutions": (),
            "cross_attention_resolutions": (),
            "head_channels": 8,
            "context_width": 8,
        }
    )
    config.data.update({"name": "synthetic", "resolution": 8, "clip_resolution": 0})
    config.batch_size = 8
    config.phases = ({"steps": 4, "cuts": (), "parents": ()}, {"steps": 4, "cuts": (0.5,), "parents": (0, 0)})
    config.optimizer.update({"warmup": 0, "lr": 1e-3})
    config.update({"log_every": 1, "eval_every": 0, "sample_every": 0, "save_every": 3, "eval_batches": 1})
    return config


def same(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are equal bit for bit."""
    equal = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True), a, b)
    return all(jax.tree.leaves(equal))
