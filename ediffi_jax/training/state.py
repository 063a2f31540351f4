"""The training state: one pytree whose every array has a leading expert axis.

Parameters, their exponential moving average (EMA) and the optimizer's moments and step counts all branch
by the same gather over that axis, so an expert goes on exactly where its parent stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32, PyTree

from ediffi_jax import experts
from ediffi_jax.errors import nearest
from ediffi_jax.training.errors import ConfigError

OPTIMIZERS = ("adamw",)
DECAYS = ("constant", "cosine")


@flax.struct.dataclass
class TrainState:
    """What training changes.

    Attributes:
        step: optimizer steps taken since the start of the run, over all phases.
        params: float32 parameters; leaves [E, ...].
        ema: their moving average, the weights one samples with; leaves [E, ...].
        opt_state: the optimizer's state, its step counts included; leaves [E, ...].
    """

    step: Int32[Array, ""]
    params: PyTree
    ema: PyTree
    opt_state: PyTree


def learning_rate(optimizer: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup` steps, then constant, or a half cosine that reaches 0 at `total_steps`.

    Over the last `cooldown` steps the rate is scaled linearly down to 0. A constant rate with a cool-down does
    not depend on the length of the run until its end is near, so such a run can be lengthened; a cosine cannot
    without a jump.

    Raises:
        ConfigError: an unknown `decay`.
    """
    peak, warmup = float(optimizer["lr"]), int(optimizer["warmup"])
    cooldown = int(optimizer.get("cooldown", 0))
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    if optimizer["decay"] == "constant":
        after = optax.constant_schedule(peak)
    elif optimizer["decay"] == "cosine":
        after = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1))
    else:
        hint = nearest(str(optimizer["decay"]), DECAYS)
        raise ConfigError(f"config.optimizer.decay={optimizer['decay']!r} is unknown{hint}")
    rate = optax.join_schedules([ramp, after], [warmup]) if warmup > 0 else after
    if cooldown == 0:
        return rate
    return lambda step: rate(step) * jnp.clip((total_steps - step) / cooldown, 0, 1)


def make_optimizer(optimizer: Mapping[str, Any], total_steps: int) -> optax.GradientTransformation:
    """AdamW for *one* expert, behind a global-norm clip over that expert's gradient alone.

    Weight decay spares vectors (biases, norm scales).

    Raises:
        ConfigError: an unknown optimizer or decay.
    """
    if optimizer["name"] != "adamw":
        hint = nearest(str(optimizer["name"]), OPTIMIZERS)
        raise ConfigError(f"config.optimizer.name={optimizer['name']!r} is unknown{hint}")
    adamw = optax.adamw(
        learning_rate(optimizer, total_steps),
        b1=optimizer["b1"],
        b2=optimizer["b2"],
        eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    clip = optimizer["clip"]
    return optax.chain(optax.clip_by_global_norm(clip) if clip > 0 else optax.identity(), adamw)


def create(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state around stacked parameters (leaves [E, ...]); the EMA starts equal to them."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=jax.vmap(optimizer.init)(params),
    )


def branch(state: TrainState, rows: Sequence[int]) -> TrainState:
    """Expert i of the result is a copy of expert rows[i]: parameters, EMA, moments and step counts alike."""
    return state.replace(
        params=experts.branch(state.params, rows),
        ema=experts.branch(state.ema, rows),
        opt_state=experts.branch(state.opt_state, rows),
    )


def ema_decay(step: Int32[Array, ""], decay: float, warmup: bool) -> Array:
    """The EMA's decay at `step`; with warm-up min(decay, (1 + t) / (10 + t)), so that early weights fade."""
    t = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + t) / (10.0 + t)) if warmup else jnp.float32(decay)
