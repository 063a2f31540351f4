"""The training step: independent experts, sharding that changes nothing, and its maths against numpy."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from training_fakes import EMA, Net, make_adamw, make_batch, make_objective, make_state, same

from ediffi_jax import experts
from ediffi_jax.denoiser import precondition
from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import LogNormal
from ediffi_jax.training import state as train_state
from ediffi_jax.training.mesh import make_mesh, put_batch, put_batches, state_shardings, whole
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState
from ediffi_jax.training.step import expert_ranges, make_train_step, make_train_steps

CUTS = (0.25, 0.75)
THREE = Phase(steps=10, cuts=CUTS)


def one_device():
    return make_mesh({"expert": 1, "data": 1, "fsdp": 1}, 1, jax.devices()[:1])


@functools.cache  # a program is compiled once for all tests
def compiled_step(phase: Phase, mesh: Mesh, channels: int, accumulate: int = 1):
    fields = {"objective": make_objective(Net(channels=channels)), "optimizer": make_adamw(), "ema": EMA}
    return make_train_step(**fields, phase=phase, mesh=mesh, seed=7, accumulate=accumulate)


def run(phase: Phase, state: TrainState, batch: dict, mesh: Mesh | None = None, channels=16, accumulate=1):
    mesh = mesh or one_device()
    step = compiled_step(phase, mesh, channels, accumulate)
    state = jax.device_put(jax.tree.map(np.array, state), state_shardings(mesh, state))
    on_mesh = put_batch(batch, mesh)
    with jax.transfer_guard("disallow"):  # nothing but the batch moves between host and device
        for _ in range(2):
            state, metrics = step(state, on_mesh, {})
    return jax.device_get(state), jax.device_get(metrics)


def row(tree, i: int):
    return jax.tree.map(lambda leaf: leaf[i : i + 1] if np.ndim(leaf) else leaf, tree)


@pytest.fixture(scope="module")
def three():
    """The state of three experts before and after two steps, with batch and metrics."""
    state = make_state(make_objective(), make_adamw(), THREE)
    batch = make_batch(3)
    return state, batch, *run(THREE, state, batch)


def test_three_experts_together_equal_three_alone(three) -> None:
    state, batch, after, metrics = three
    for i in range(3):
        alone, alone_metrics = run(dataclasses.replace(THREE, expert=i), row(state, i), row(batch, i))
        for name in ("params", "ema", "opt_state"):
            own = row(getattr(after, name), i)
            for x, y in zip(jax.tree.leaves(getattr(alone, name)), jax.tree.leaves(own), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(alone_metrics["loss"][0], metrics["loss"][i], rtol=1e-5)


def test_a_step_is_a_function_of_state_batch_and_seed(three) -> None:
    state, batch, after, _ = three
    again, _ = run(THREE, state, batch)
    assert same(after, again)
    assert int(after.step) == 2


def test_a_sick_expert_leaves_the_others_alone(three) -> None:
    """Clipping, gradients and moments are per expert: NaN in one does not reach the next."""
    state, batch, after, _ = three
    sick = state.replace(params=jax.tree.map(lambda p: p.at[0].set(jnp.nan), state.params))
    result, metrics = run(THREE, sick, batch)
    assert np.isnan(metrics["loss"][0])
    assert np.isfinite(metrics["loss"][1:]).all()
    assert same(experts.branch(result.params, (1, 2)), experts.branch(after.params, (1, 2)))


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_same_step(three, parts: int) -> None:
    state, batch, after, metrics = three
    in_parts, their_metrics = run(THREE, state, batch, accumulate=parts)
    for name in ("params", "ema", "opt_state"):
        pairs = zip(*(jax.tree.leaves(getattr(x, name)) for x in (in_parts, after)), strict=True)
        for x, y in pairs:
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(their_metrics["loss"], metrics["loss"], rtol=1e-5)


def test_several_steps_a_call_are_the_same_steps(three) -> None:
    state, _, _, _ = three
    batches = [make_batch(3, seed=seed) for seed in range(4)]
    mesh = one_device()
    step = compiled_step(THREE, mesh, 16)
    one_by_one, losses = jax.device_put(jax.tree.map(np.array, state), state_shardings(mesh, state)), []
    for batch in batches:
        one_by_one, metrics = step(one_by_one, put_batch(batch, mesh), {})
        losses.append(metrics["loss"])
    at_once = jax.device_put(jax.tree.map(np.array, state), state_shardings(mesh, state))
    at_once, metrics = make_train_steps(step, mesh)(at_once, put_batches(batches, mesh), {})
    assert metrics["loss"].shape == (4, 3)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert int(at_once.step) == 4
    for x, y in zip(jax.tree.leaves(at_once.params), jax.tree.leaves(one_by_one.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6)


def test_each_expert_is_clipped_by_its_own_norm() -> None:
    """Two experts of one optimizer, gradients of very different norm: each is scaled by itself alone."""
    optimizer = make_adamw(clip=1.0, b1=0.0, weight_decay=0.0)
    params = {"w": jnp.zeros((2, 4))}
    grads = {"w": jnp.array([[30.0, 40.0, 0.0, 0.0], [0.03, 0.04, 0.0, 0.0]])}
    _, moments = jax.vmap(optimizer.update)(grads, jax.vmap(optimizer.init)(params), params)
    leaves = jax.tree_util.tree_leaves_with_path(moments)
    second = next(leaf for path, leaf in leaves if ".nu" in jax.tree_util.keystr(path))
    clipped = np.array([[0.6, 0.8, 0, 0], [0.03, 0.04, 0, 0]])
    np.testing.assert_allclose(second, (1 - 0.999) * clipped**2, rtol=1e-5)


@pytest.mark.parametrize("sizes", [{"expert": 2, "data": 2, "fsdp": 2}, {"expert": 1, "data": 4, "fsdp": 2}])
def test_eight_devices_equal_one(sizes: dict) -> None:
    two = Phase(steps=10, cuts=(0.5,))
    objective = make_objective(Net(channels=32))  # large enough that its kernels are cut along fsdp
    state = make_state(objective, make_adamw(), two)
    batch = make_batch(2)
    mesh = make_mesh(sizes, 2)
    specs = [sharding.spec for sharding in jax.tree.leaves(state_shardings(mesh, state))]
    assert any("fsdp" in spec for spec in specs)
    sharded, sharded_metrics = run(two, state, batch, mesh, channels=32)
    single, metrics = run(two, state, batch, channels=32)
    np.testing.assert_allclose(sharded_metrics["loss"], metrics["loss"], rtol=1e-5)
    # AdamW divides by the gradient's own size, so rounding in a tiny gradient is not tiny after it.
    for x, y in zip(jax.tree.leaves(sharded.params), jax.tree.leaves(single.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_no_gradient_crosses_the_expert_axis() -> None:
    """In the compiled program every group of devices that exchanges numbers belongs to one expert."""
    two = Phase(steps=10, cuts=(0.5,))
    mesh = make_mesh({"expert": 2, "data": 2, "fsdp": 2}, 2)
    optimizer, objective = make_adamw(), make_objective(Net(channels=32))
    state = make_state(objective, optimizer, two)
    step = make_train_step(objective=objective, optimizer=optimizer, ema=EMA, phase=two, mesh=mesh, seed=0)
    state = jax.device_put(state, state_shardings(mesh, state))
    text = step.lower(state, put_batch(make_batch(2), mesh), {}).compile().as_text()
    assert any(len(groups[0]) == 4 for _, groups in collectives(text))
    assert set(crossing(text)) <= {"f32[2]"}, "experts exchange more than the metrics"


def crossing(hlo: str) -> list[str]:
    """What collectives between devices 0..3 and 4..7 give; the step's metrics are f32[2], one number an expert."""
    return [
        result
        for result, groups in collectives(hlo)
        if any(len({device // 4 for device in group}) > 1 for group in groups)
    ]


def collectives(hlo: str) -> list[tuple[str, list[list[int]]]]:
    """Result's type and device groups of every collective among eight devices."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    lines = re.findall(rf"= \(?(\w+\[[\d,]*\]).*? (?:{kinds})(?:-start)?\((.*)", hlo)
    return [(result, device_groups(rest)) for result, rest in lines]


def device_groups(line: str) -> list[list[int]]:
    """Groups in any of HLO's notations: lists, tiles of a transposed grid, or axes of a named mesh."""
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", line):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, tile, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
        devices = np.arange(8).reshape(tile)
        return (devices.transpose(order) if order else devices).reshape(shape).tolist()
    found = re.search(r"replica_groups=mesh\[([^\]]+)\] \{([^}]+)\}", line)
    assert found, f"an unknown notation of groups in {line}"
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    chosen = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", found[2])]
    kept = [axis for axis in range(len(sizes)) if axis not in chosen]
    grid = np.arange(8).reshape(list(sizes.values())).transpose(kept + chosen)
    return grid.reshape(-1, np.prod([list(sizes.values())[axis] for axis in chosen])).tolist()


def test_loss_of_a_network_at_birth_is_the_closed_form() -> None:
    """F = 0 gives D = c_skip x: the loss is lambda mean((c_skip (x0 + sigma eps) - x0)^2), in numpy."""
    objective = make_objective(Net(zero=True))
    batch = {name: rows[0] for name, rows in make_batch(1).items()}
    params = objective.init(jax.random.key(0), batch)
    sigma = np.exp(np.linspace(-4, 3, 8)).astype(np.float32)
    key = jax.random.key(3)
    cond = objective.conditioning({}, batch, objective.draw_kept(batch, key))
    losses = objective.losses(params, batch, cond, jnp.asarray(sigma), 0.1, 5.0, *objective.draw_noises(batch, key))
    x0 = batch["image"].astype(np.float64) / 127.5 - 1
    eps = np.asarray(jax.random.normal(jax.random.split(key, 4)[0], x0.shape), np.float64)
    s = sigma.astype(np.float64)[:, None, None, None]
    d = 0.25 / (s**2 + 0.25) * (x0 + s * eps)
    expected = ((s**2 + 0.25) / (s * 0.5) ** 2 * (d - x0) ** 2).mean((1, 2, 3)) * ((sigma >= 0.1) & (sigma < 5.0))
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    assert losses[0] == 0.0


def test_super_resolution_sees_a_noised_low_resolution_picture() -> None:
    objective = make_objective(max_level=0.5)
    batch = {name: rows[0] for name, rows in make_batch(1).items()}
    batch["low_res"] = batch["image"][:, ::2, ::2]
    params = objective.init(jax.random.key(0), batch)
    assert params["first"]["kernel"].shape[2] == 6
    cond = objective.conditioning({}, batch, objective.draw_kept(batch, jax.random.key(0)))
    clean = dataclasses.replace(objective, max_level=0.0)
    noised, unnoised = (
        made.losses(params, batch, cond, jnp.ones((8,)), 0.0, jnp.inf, *made.draw_noises(batch, jax.random.key(1)))
        for made in (objective, clean)
    )
    assert not np.allclose(noised, unnoised)


def test_ranges_are_the_ensembles_own_edges() -> None:
    noise = LogNormal()
    ranges = expert_ranges(noise, dataclasses.replace(THREE, expert=1))
    edges = Ensemble(CUTS, noise).edges()
    assert (ranges.low_sigma[0], ranges.high_sigma[0]) == (edges[1], edges[2])
    assert (float(ranges.interval.low[0]), float(ranges.interval.high[0])) == (0.25, 0.75)
    assert ranges.index.tolist() == [1]


def test_branching_keeps_every_output_bit_for_bit(three) -> None:
    """After a branch, whichever expert a noise level is routed to, the picture is its parent's."""
    _, _, after, _ = three
    parents, cuts = (0, 2, 1), (0.3, 0.6)
    branched = train_state.branch(after, parents)
    assert int(branched.step) == int(after.step)
    for name in ("params", "ema", "opt_state"):
        for i, parent in enumerate(parents):
            assert same(row(getattr(branched, name), i), row(getattr(after, name), parent))
    objective = make_objective()
    cond = objective.encoders.null(2)

    def denoise_of(params):
        return precondition(lambda x, c: objective.network.apply({"params": params}, x, c, cond), 0.5)

    ensemble = Ensemble(cuts)
    routed = jax.jit(experts.switch(denoise_of, branched.ema, ensemble))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    for expert, sigma in enumerate((0.05, 0.3, 5.0)):
        assert int(ensemble.route(sigma)) == expert
        parent = experts.take(after.ema, parents[expert])
        alone = jax.jit(lambda p, x, s: denoise_of(p)(x, s))(parent, x, jnp.float32(sigma))
        assert np.array_equal(routed(x, jnp.float32(sigma)), alone)


def test_adamw_and_average_against_numpy() -> None:
    """Two steps of clip and AdamW on a matrix, and the average's decay, written out."""
    optimizer = make_adamw(clip=0.5, lr=0.1, weight_decay=0.01)
    w = np.array([[1.0, -2.0], [3.0, 0.5]])
    state = train_state.create({"w": jnp.asarray(w[None], jnp.float32)}, optimizer)
    params, moments = experts.take(state.params, 0), experts.take(state.opt_state, 0)
    m = v = np.zeros_like(w)
    for t in range(1, 3):
        g = np.array([[0.3, -0.1], [2.0, 1.0]]) * t
        updates, moments = optimizer.update({"w": jnp.asarray(g, jnp.float32)}, moments, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = g * min(1.0, 0.5 / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.01 * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)
        decay = float(train_state.ema_decay(jnp.int32(t - 1), 0.9, True))
        assert decay == pytest.approx(min(0.9, t / (9 + t)))


def test_learning_rate_rises_then_falls_to_zero() -> None:
    config = {"lr": 2.0, "warmup": 4, "decay": "cosine"}
    schedule = train_state.learning_rate(config, total_steps=24)
    np.testing.assert_allclose([schedule(t) for t in range(4)], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose([schedule(t) for t in (4, 14, 24)], [2.0, 1.0, 0.0], atol=1e-6)
    constant = train_state.learning_rate({**config, "warmup": 0, "decay": "constant"}, 24)
    assert float(constant(1000)) == 2.0
    cooled = train_state.learning_rate({**config, "decay": "constant", "cooldown": 10}, 24)
    np.testing.assert_allclose([cooled(t) for t in (0, 13, 14, 19, 23, 24, 30)], [0.5, 2, 2, 1, 0.2, 0, 0], atol=1e-6)


def test_gradients_come_back_in_the_parts_that_weights_lie_in() -> None:
    """Each device holds a quarter of a kernel's gradient, and a bias's whole; the numbers are those of one device."""
    mesh = make_mesh({"expert": 1, "data": 2, "fsdp": 4}, 1)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(64, 96)).astype(np.float32), "bias": np.zeros(96, np.float32)}
    x = rng.normal(size=(16, 64)).astype(np.float32)

    def loss(params, x):
        return jnp.mean(jnp.tanh(x @ params["kernel"] + params["bias"]) ** 2)

    expected = jax.grad(loss)(params, x)
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    placed = jax.device_put(stacked, state_shardings(mesh, stacked))

    @jax.jit
    def gradient(placed, x):
        own = experts.take(placed, 0)
        return jax.grad(lambda params: loss(whole(mesh, params), x))(own)

    found = gradient(placed, jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp")))))
    parts = {name: leaf.addressable_shards[0].data.shape for name, leaf in found.items()}
    assert parts == {"kernel": (64, 24), "bias": (96,)}
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-7)
