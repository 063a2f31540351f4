"""One optimizer step of every expert: a pure function of (state, batch, seed).

    key(step, i) = fold_in(fold_in(key(seed), step), i)          i: the expert's index in the partition
    u ~ U(low_i, high_i), sigma = quantile(u);  g = grad mean_B L;  clip by |g| of this expert alone
    params, moments <- AdamW(g);  ema <- d * ema + (1 - d) * params

Experts never meet: with E experts a step equals E separate steps. How they are laid out is a matter of
speed. Under `vmap` over parameters convolutions become grouped convolutions, slow on every backend, so the
experts of one group of devices take turns: in a loop (`lax.map`), compiled once; on CPUs unrolled, because
XLA:CPU runs the backward pass of a convolution inside a loop without its fast kernels (one expert's turn
took 44 times as long; `vmap` 4.4 times). Groups run side by side under `shard_map` over the mesh's `expert`
axis, and no collective crosses that axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32, PyTree

from ediffi_jax import experts
from ediffi_jax.encoders.sharding import gathered
from ediffi_jax.noise import Interval, LogNormal, draw_sigma
from ediffi_jax.training.mesh import batch_sharding, replicated, state_shardings
from ediffi_jax.training.objective import Objective
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState, ema_decay

Metrics = dict[str, Float[Array, "e"]]
TrainStep = Callable[[TrainState, Mapping[str, Array], PyTree], tuple[TrainState, Metrics]]


def expert_step_fn(
    objective: Objective, optimizer: optax.GradientTransformation, ema: Mapping[str, Any], seed: int, mesh: Mesh
) -> Callable[..., tuple[tuple, dict[str, Array]]]:
    """The step of a single expert on leaves without an expert axis."""

    def expert_step(weights: tuple, batch: Mapping[str, Array], own: ExpertRange, step: Array, frozen: PyTree):
        params, average, opt_state = weights
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), own.index)
        sigma_key, drop_key, loss_key = jax.random.split(key, 3)
        edges = (own.low_sigma, own.high_sigma)
        sigma = draw_sigma(sigma_key, objective.noise, own.interval, batch["image"].shape[:1], *edges)
        cond = objective.conditioning(gathered(mesh, frozen), batch, drop_key)

        def mean_loss(params: PyTree) -> Array:
            # Gathered weights, not the pictures: else the compiler sums activations over all devices.
            losses = objective.losses(gathered(mesh, params), batch, cond, sigma, *edges, loss_key, train=True)
            return losses.mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = ema_decay(step, ema["decay"], ema["warmup"])
        average = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)
        return (params, average, opt_state), {"loss": loss, "grad_norm": norm}

    return expert_step


@flax.struct.dataclass
class ExpertRange:
    """What tells experts apart: index in the partition, and its range of p(sigma); arrays [E], or one expert's.

    `low_sigma` and `high_sigma` are the ensemble's own edges, so that training and routing agree to the bit.
    """

    index: Int32[Array, "*e"]
    interval: Interval
    low_sigma: Float[Array, "*e"]
    high_sigma: Float[Array, "*e"]


def expert_ranges(noise: LogNormal, phase: Phase) -> ExpertRange:
    """The ranges of the experts that a phase trains, stacked."""
    ensemble = phase.ensemble(noise)
    ids = np.array(phase.expert_ids, np.int32)
    return ExpertRange(
        index=jnp.asarray(ids),
        interval=Interval(
            low=jnp.array([interval.low for interval in phase.intervals], jnp.float32),
            high=jnp.array([interval.high for interval in phase.intervals], jnp.float32),
        ),
        low_sigma=jnp.asarray(ensemble.edges()[ids]),
        high_sigma=jnp.asarray(ensemble.edges()[ids + 1]),
    )


def over_experts(function: Callable[..., Any], mesh: Mesh, stacked: int) -> Callable[..., Any]:
    """Runs a function of one expert for all of them.

    Args:
        function: takes `stacked` arguments of one expert, then arguments that all experts share.
        mesh: groups of devices along `expert` work side by side; within one the experts take turns.
        stacked: how many leading arguments, and all results, have an expert axis on every leaf.
    """

    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def in_turn(*args: Any) -> Any:
        each, shared = args[:stacked], args[stacked:]
        count = jax.tree.leaves(each)[0].shape[0]
        if count > 1 and not on_cpu:
            return jax.lax.map(lambda leaves: function(*leaves, *shared), each)
        results = [function(*experts.take(each, i), *shared) for i in range(count)]
        return experts.stack(results)

    if mesh.shape["expert"] == 1:
        return in_turn

    def side_by_side(*args: Any) -> Any:
        specs = (P("expert"),) * stacked + (P(),) * (len(args) - stacked)
        return jax.shard_map(
            in_turn, mesh=mesh, in_specs=specs, out_specs=P("expert"), axis_names={"expert"}, check_vma=False
        )(*args)

    return side_by_side


def make_train_step(
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema: Mapping[str, Any],
    phase: Phase,
    mesh: Mesh,
    seed: int,
) -> TrainStep:
    """Compiles the step of one phase.

    Args:
        objective: the loss of one expert.
        optimizer: transformation for one expert's gradient.
        ema: `decay` and `warmup` of the moving average.
        phase: which experts, hence which intervals of p(sigma).
        mesh: devices; `expert` divides the number of experts.
        seed: of all randomness of training.

    Returns:
        (state, batch [E, B, ...], encoder parameters) -> (state, {"loss": [E], "grad_norm": [E]}). The
        state passed in is donated: its buffers are gone afterwards. The encoder parameters stay where they
        lie (`Run.encoder_params`: a part on each device), and are gathered layer by layer.
    """
    group_step = over_experts(expert_step_fn(objective, optimizer, ema, seed, mesh), mesh, stacked=3)

    def train_step(state: TrainState, batch: Mapping[str, Array], frozen: PyTree) -> tuple[TrainState, Metrics]:
        weights = (state.params, state.ema, state.opt_state)
        weights, metrics = group_step(weights, batch, expert_ranges(objective.noise, phase), state.step, frozen)
        params, average, opt_state = weights
        state = TrainState(step=state.step + 1, params=params, ema=average, opt_state=opt_state)
        state = jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))
        return state, jax.lax.with_sharding_constraint(metrics, replicated(mesh))  # every process reads them

    return jax.jit(
        train_step,
        in_shardings=(None, batch_sharding(mesh), None),
        donate_argnums=0,
    )
