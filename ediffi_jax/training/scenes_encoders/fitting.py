"""A short loop that fits a loss to batches made in worker processes, for a number of steps or of minutes.

    AdamW;  lr(p) = peak · min(1, step / warmup) · min(1, 2 - 2 p),   p = the share of the budget that is spent
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array

from ediffi_jax.training.errors import TrainingError
from ediffi_jax.training.scenes_encoders.corpus import Batch
from ediffi_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: whichever of the two ends first; 0 is no limit.

    Attributes:
        steps: number of steps.
        minutes: of wall-clock time, compilation included.
    """

    steps: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.minutes <= 0:
            raise TrainingError("no budget: expected steps or minutes above 0")

    def spent(self, step: int, seconds: float) -> float:
        """The share that is used up, at least 1 when it is time to stop."""
        by_step = step / self.steps if self.steps > 0 else 0.0
        return max(by_step, seconds / (60 * self.minutes) if self.minutes > 0 else 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """The optimizer's settings."""

    peak: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0

    def at(self, step: int, spent: float) -> float:
        return self.peak * min(1.0, (step + 1) / self.warmup) * min(1.0, 2 - 2 * min(spent, 1.0))


def batches(make: Callable[[int], Batch], workers: int, ahead: int = 6) -> Iterator[Batch]:
    """make(0), make(1), … in order; made in `workers` processes, or here if 0."""
    if workers == 0:
        index = 0
        while True:
            yield make(index)
            index += 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = collections.deque(pool.submit(make, index) for index in range(ahead))
        index = ahead
        try:
            while True:
                yield waiting.popleft().result()
                waiting.append(pool.submit(make, index))
                index += 1
        finally:
            pool.shutdown(cancel_futures=True)


@functools.partial(jax.jit, static_argnames=("loss", "optimizer"), donate_argnums=(2, 3))
def _step(
    loss: nn.Module, optimizer: optax.GradientTransformation, params: Params, moments: Params, batch: Batch, rate: Array
) -> tuple[Params, Params, dict[str, Array]]:
    def total(params: Params) -> tuple[Array, dict[str, Array]]:
        return loss.apply({"params": params}, batch)

    grads, metrics = jax.grad(total, has_aux=True)(params)
    updates, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates)), moments, metrics


def fit(
    loss: nn.Module,
    make: Callable[[int], Batch],
    *,
    budget: Budget,
    rates: Rates = Rates(),
    seed: int = 0,
    workers: int = 1,
    name: str = "",
    prepare: Callable[[Params], Params] = lambda params: params,
) -> Params:
    """Trains the parameters of `loss`.

    Args:
        loss: a module whose call gives (loss, metrics) of a batch.
        make: batch k; picklable if there are workers.
        budget: when to stop.
        rates: of the optimizer.
        seed: of the initial parameters.
        workers: processes that make batches; 0 makes them here.
        name: opens each line of progress.
        prepare: what is done to the initial parameters.

    Returns:
        The trained parameters.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(rates.clip),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(rates.weight_decay),
    )
    source = batches(make, workers)
    first = next(source)
    params = prepare(jax.jit(lambda key: loss.init(key, first)["params"])(jax.random.key(seed)))
    moments = jax.jit(optimizer.init)(params)
    start, step, spent, told = time.monotonic(), 0, 0.0, 0.0
    batch = first
    while spent < 1:
        params, moments, metrics = _step(loss, optimizer, params, moments, batch, jnp.float32(rates.at(step, spent)))
        step += 1
        metrics = jax.device_get(metrics)
        spent = budget.spent(step, time.monotonic() - start)
        if time.monotonic() - start - told > 10 or spent >= 1:
            told = time.monotonic() - start
            _tell(name, step, told, spent, metrics)
        batch = next(source) if spent < 1 else batch
    source.close()
    return params


def _tell(name: str, step: int, seconds: float, spent: float, metrics: dict[str, np.ndarray]) -> None:
    """One line of progress; raises if the loss is not finite."""
    if not np.isfinite(metrics["loss"]):
        raise TrainingError(f"{name}: the loss is {metrics['loss']} at step {step}")
    values = " ".join(f"{key}={float(value):.3f}" for key, value in metrics.items())
    left = seconds / max(spent, 1e-9) * (1 - spent) if spent < 1 else 0.0
    logging.info("%s step %d, %.1f steps/s, ETA %.0f s: %s", name, step, step / seconds, left, values)
