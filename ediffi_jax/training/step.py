"""One optimizer step of every expert: a pure function of (state, batch, seed).

    key(step, i) = fold_in(fold_in(key(seed), step), i)          i: the expert's index in the partition
    u ~ U(low_i, high_i), sigma = quantile(u);  g = grad mean_B L;  clip by |g| of this expert alone
    params, moments <- AdamW(g);  ema <- d * ema + (1 - d) * params

Experts never meet: with E experts a step equals E separate steps. How they are laid out is a matter of
speed. Under `vmap` over parameters convolutions become grouped convolutions, slow on every backend, so the
experts of one group of devices take turns: in a loop (`lax.map`), compiled once; on CPUs unrolled, because
XLA:CPU runs the backward pass of a convolution inside a loop without its fast kernels (one expert's turn
took 44 times as long; `vmap` 4.4 times). So do the parts of an accumulated gradient, and several steps of one
call. Groups run side by side under `shard_map` over the mesh's `expert` axis, and no collective crosses that axis.
"""

from __future__ import annotations

import functools
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
from ediffi_jax.conditioning import Kept
from ediffi_jax.encoders.sharding import gathered
from ediffi_jax.noise import Interval, LogNormal, draw_sigma
from ediffi_jax.training.mesh import batch_sharding, batches_sharding, replicated, state_shardings, whole
from ediffi_jax.training.objective import Noises, Objective
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState, ema_decay

Metrics = dict[str, Float[Array, "e"]]
TrainStep = Callable[[TrainState, Mapping[str, Array], PyTree], tuple[TrainState, Metrics]]


def expert_step_fn(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema: Mapping[str, Any],
    seed: int,
    mesh: Mesh,
    accumulate: int = 1,
) -> Callable[..., tuple[tuple, dict[str, Array]]]:
    """The step of a single expert on leaves without an expert axis."""

    def expert_step(weights: tuple, batch: Mapping[str, Array], own: ExpertRange, step: Array, frozen: PyTree):
        params, average, opt_state = weights
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), own.index)
        sigma_key, drop_key, loss_key = jax.random.split(key, 3)
        edges = (own.low_sigma, own.high_sigma)
        sigma = draw_sigma(sigma_key, objective.noise, own.interval, batch["image"].shape[:1], *edges)
        noises, dropout_key = objective.draw_noises(batch, loss_key)

        def part_gradient(batch: Mapping[str, Array], sigma: Array, kept: Kept, noises: Noises, dropout_key: Array):
            cond = objective.conditioning(gathered(mesh, frozen), batch, kept)

            def mean_loss(params: PyTree) -> Array:
                # Gathered weights, not the pictures: else the compiler sums activations over all devices.
                everywhere = whole(mesh, params)
                return objective.losses(everywhere, batch, cond, sigma, *edges, noises, dropout_key).mean()

            return jax.value_and_grad(mean_loss)(params)

        rows = (batch, sigma, objective.draw_kept(batch, drop_key), noises)
        loss, grads = mean_of_parts(part_gradient, rows, dropout_key, accumulate, mesh)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = ema_decay(step, ema["decay"], ema["warmup"])
        average = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)
        return (params, average, opt_state), {"loss": loss, "grad_norm": norm}

    return expert_step


def mean_of_parts(function: Callable[..., PyTree], rows: tuple, key: Array, parts: int, mesh: Mesh) -> PyTree:
    """The mean of `function(*rows, key)` over equal parts of a batch, worked off one after the other.

    Every device's rows are dealt out in turn, so that none has to be sent; each part has its own key.
    """
    if parts == 1:
        return function(*rows, key)
    dealt = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    keyed = (dealt, jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts)))

    def one(part: tuple) -> PyTree:
        return function(*part[0], part[1])

    def add(total: PyTree, more: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, total, more)

    if on_cpu(mesh):
        total = functools.reduce(add, (one(experts.take(keyed, i)) for i in range(parts)))
    else:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, experts.take(keyed, 0)))
        total, _ = jax.lax.scan(lambda total, part: (add(total, one(part)), None), zeros, keyed)
    return jax.tree.map(lambda x: x / parts, total)


def on_cpu(mesh: Mesh) -> bool:
    """Whether loops are to be unrolled; see above."""
    return mesh.devices.flat[0].platform == "cpu"


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

    def in_turn(*args: Any) -> Any:
        each, shared = args[:stacked], args[stacked:]
        count = jax.tree.leaves(each)[0].shape[0]
        if count > 1 and not on_cpu(mesh):
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
    accumulate: int = 1,
) -> TrainStep:
    """Compiles the step of one phase.

    Args:
        objective: the loss of one expert.
        optimizer: transformation for one expert's gradient.
        ema: `decay` and `warmup` of the moving average.
        phase: which experts, hence which intervals of p(sigma).
        mesh: devices; `expert` divides the number of experts.
        seed: of all randomness of training.
        accumulate: equal parts that each expert's batch is worked off in, with one update for all. Only one
            part's activations are in memory; the noise is the same whatever the number.

    Returns:
        (state, batch [E, B, ...], encoder parameters) -> (state, {"loss": [E], "grad_norm": [E]}). The
        state passed in is donated: its buffers are gone afterwards. The encoder parameters stay where they
        lie (`Run.encoder_params`: a part on each device), and are gathered layer by layer.
    """
    expert_step = expert_step_fn(objective, optimizer, ema, seed, mesh, accumulate)
    group_step = over_experts(expert_step, mesh, stacked=3)

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


def make_train_steps(train_step: TrainStep, mesh: Mesh) -> TrainStep:
    """Several steps in one program, for when a step is so short that starting it counts.

    Args:
        train_step: of `make_train_step`.
        mesh: its devices.

    Returns:
        (state, batches [n, E, B, ...], encoder parameters) -> (state, metrics [n, E]); compiled anew for another n.
    """

    def train_steps(state: TrainState, batches: Mapping[str, Array], frozen: PyTree) -> tuple[TrainState, Metrics]:
        count = batches["image"].shape[0]
        if not on_cpu(mesh):
            return jax.lax.scan(lambda state, batch: train_step(state, batch, frozen), state, batches)
        metrics = []
        for i in range(count):
            state, measured = train_step(state, experts.take(batches, i), frozen)
            metrics.append(measured)
        return state, experts.stack(metrics)

    return jax.jit(train_steps, in_shardings=(None, batches_sharding(mesh), None), donate_argnums=0)
