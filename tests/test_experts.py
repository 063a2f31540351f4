"""Routing to the last bit, branching as a gather, and that a switch runs one network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ediffi_jax.experts import Ensemble, ExpertError, branch, node, stack, switch, take, unstack
from ediffi_jax.noise import Interval, LogNormal, draw_sigma

try:
    enable_x64 = jax.enable_x64
except AttributeError:  # jax < 0.8
    from jax.experimental import enable_x64

PAPER = Ensemble(cuts=(1 / 8, 511 / 512))
CUTS = st.lists(st.integers(1, 4095).map(lambda n: n / 4096), min_size=1, max_size=6, unique=True)


def neighbours(sigma: float) -> np.ndarray:
    """The float32 numbers next to one, and itself."""
    at = np.float32(sigma)
    return np.array([np.nextafter(at, np.float32(0)), at, np.nextafter(at, np.float32(np.inf))], np.float32)


@settings(max_examples=60, deadline=None)
@given(cuts=CUTS, mean=st.floats(-3, 1), std=st.floats(0.5, 2))
def test_route_is_exact_at_the_neighbours_of_every_cut(cuts: list[float], mean: float, std: float) -> None:
    ensemble = Ensemble(cuts=tuple(sorted(cuts)), noise=LogNormal(mean=mean, std=std))
    sigmas = np.concatenate([neighbours(sigma) for sigma in ensemble.cut_sigmas])
    expected = [expert + (side > 0) for expert in range(len(cuts)) for side in range(3)]
    np.testing.assert_array_equal(ensemble.route(sigmas), expected)
    np.testing.assert_array_equal(ensemble.route(sigmas), np.searchsorted(ensemble.cut_sigmas, sigmas, side="right"))


def test_route_is_the_same_compiled_for_scalars_arrays_and_in_other_precisions() -> None:
    sigmas = np.concatenate([neighbours(sigma) for sigma in PAPER.cut_sigmas])
    expected = [0, 1, 1, 1, 2, 2]
    compiled = jax.jit(PAPER.route)
    assert [int(PAPER.route(float(sigma))) for sigma in sigmas] == expected
    assert [int(compiled(sigma)) for sigma in sigmas] == expected
    np.testing.assert_array_equal(compiled(sigmas.reshape(2, 3)), np.reshape(expected, (2, 3)))
    assert compiled(sigmas).dtype == jnp.int32 and PAPER.route(0.5).shape == ()
    with enable_x64(True):
        just_below = np.nextafter(np.float64(PAPER.cut_sigmas[0]), 0.0)  # rounds up to the cut in float32
        assert int(PAPER.route(jnp.asarray(just_below))) == 0


def test_every_level_has_an_expert() -> None:
    assert [int(PAPER.route(sigma)) for sigma in (0.0, 0.002, 1.0, 80.0, np.inf)] == [0, 0, 1, 2, 2]
    assert int(Ensemble().route(80.0)) == 0 and Ensemble().num_experts == 1


def test_intervals_and_edges_tile_everything() -> None:
    assert PAPER.intervals == (Interval(0.0, 1 / 8), Interval(1 / 8, 511 / 512), Interval(511 / 512, 1.0))
    np.testing.assert_allclose(PAPER.edges(), [0.0, 0.07574, 9.6096, np.inf], rtol=1e-4)
    assert PAPER.edges().dtype == np.float32 and Ensemble().edges().tolist() == [0.0, np.inf]


def draw(ensemble: Ensemble, key: jax.Array, expert: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise levels of one expert, as training draws them: the interval in mass, held inside the ensemble's edges."""
    low, high = jnp.array([(each.low, each.high) for each in ensemble.intervals], jnp.float32)[expert]
    edges = jnp.asarray(ensemble.edges())
    return draw_sigma(key, ensemble.noise, Interval(low, high), shape, edges[expert], edges[expert + 1])


@settings(max_examples=10, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 2**31 - 1))
def test_what_an_expert_draws_is_routed_back_to_it(cuts: list[float], seed: int) -> None:
    ensemble = Ensemble(cuts=tuple(sorted(cuts)))
    for expert in range(ensemble.num_experts):
        routed = ensemble.route(draw(ensemble, jax.random.key(seed), expert, (500,)))
        np.testing.assert_array_equal(routed, expert)


def test_experts_may_draw_together() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = jax.jit(jax.vmap(lambda key, expert: draw(PAPER, key, expert, (200,))))(keys, jnp.arange(3))
    np.testing.assert_array_equal(PAPER.route(drawn), np.repeat(np.arange(3)[:, None], 200, axis=1))


def test_the_papers_nodes() -> None:
    assert node(0, 0) == Interval(0.0, 1.0)
    assert node(9, 511) == Interval(511 / 512, 1.0) and node(3, 0) == Interval(0.0, 1 / 8)
    with pytest.raises(ExpertError, match=r"no node \(2, 4\)"):
        node(2, 4)


@pytest.mark.parametrize("cuts", [(0.0, 0.5), (0.5, 1.0), (-0.1,), (float("nan"),), (0.7, 0.3), (0.5, 0.5)])
def test_cuts_that_are_no_partition_are_refused(cuts: tuple[float, ...]) -> None:
    with pytest.raises(ExpertError, match=r"^cuts are .*; expected (numbers inside|increasing)") as error:
        Ensemble(cuts=cuts)
    assert "\n" not in str(error.value)


def test_cuts_that_float32_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(ExpertError, match="equal in float32"):
        Ensemble(cuts=(0.5, 0.5 + 1e-12))


def some_experts(count: int) -> dict:
    key = jax.random.key(1)
    return {"w": jax.random.normal(key, (count, 5, 2)), "b": {"c": jnp.arange(float(count))}}


def test_stack_and_take_undo_each_other() -> None:
    stacked = some_experts(3)
    jax.tree.map(np.testing.assert_array_equal, stacked, stack([take(stacked, i) for i in range(3)]))
    jax.tree.map(np.testing.assert_array_equal, stacked, stack(unstack(stacked)))
    with pytest.raises(ExpertError, match=r"leaves have \[2, 3\] experts"):
        unstack({"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))})


@settings(max_examples=20, deadline=None)
@given(parents=st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_branch_is_a_gather_of_parameters_and_optimizer_state(parents: list[int]) -> None:
    params = some_experts(3)
    state = jax.vmap(optax.adam(1e-3).init)(params)
    for tree in (params, state):
        grown = branch(tree, parents)
        for child, parent in enumerate(parents):
            jax.tree.map(np.testing.assert_array_equal, take(grown, child), take(tree, parent))


@pytest.mark.parametrize("parents", [(0, 3), (-1, 0)])
def test_parents_that_do_not_exist_are_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ExpertError, match="does not exist; expected 0 to 2"):
        branch(some_experts(3), parents)


def denoise_of(params: dict):
    return lambda x, sigma: jnp.tanh(x @ params["w"] @ params["w"].T) * params["b"]["c"] / (1 + sigma)


@pytest.mark.parametrize("layout", [lambda stacked: stacked, unstack], ids=["stacked", "apart"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "compiled"])
def test_switch_is_the_expert_that_owns_the_level(wrap: Callable, layout: Callable) -> None:
    stacked, x = some_experts(3), jax.random.normal(jax.random.key(2), (2, 3, 3, 5))
    denoise = wrap(switch(denoise_of, layout(stacked), PAPER))
    for sigma in np.concatenate([neighbours(cut) for cut in PAPER.cut_sigmas]):
        owner = take(stacked, int(PAPER.route(sigma)))
        # Not to the bit: a branch is compiled, and older XLA rounds otherwise than op by op.
        np.testing.assert_allclose(denoise(x, sigma), wrap(denoise_of(owner))(x, sigma), rtol=0, atol=5e-7)


def test_branch_then_route_is_the_parent_bit_for_bit() -> None:
    """A deeper ensemble answers, at every level, what the one it grew from would have."""
    parents, coarse, fine = (0, 0, 1, 1), Ensemble(cuts=(0.5,)), Ensemble(cuts=(0.2, 0.5, 0.9))
    stacked, x = some_experts(2), jax.random.normal(jax.random.key(3), (2, 3, 3, 5))
    old = jax.jit(switch(denoise_of, stacked, coarse))
    new = jax.jit(switch(denoise_of, branch(stacked, parents), fine))
    for sigma in np.concatenate([neighbours(cut) for cut in (*fine.cut_sigmas, 0.002, 80.0)]):
        np.testing.assert_array_equal(new(x, sigma), old(x, sigma))


def test_only_one_network_runs() -> None:
    ran: list[int] = []

    def spying(params: dict):
        def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
            jax.debug.callback(lambda c: ran.append(int(c)), params["b"]["c"])
            return x

        return denoise

    denoise = jax.jit(switch(spying, some_experts(3), PAPER))
    for sigma in (80.0, 1.0, 0.01):
        denoise(jnp.ones((1, 2, 2, 5)), sigma).block_until_ready()
        jax.effects_barrier()
    assert ran == [2, 1, 0]


def test_one_expert_needs_no_switch_and_takes_levels_per_image() -> None:
    x = jnp.ones((2, 2, 2, 5))
    denoise = switch(denoise_of, some_experts(1), Ensemble())
    assert "cond" not in str(jax.make_jaxpr(denoise)(x, 1.0))
    assert denoise(x, jnp.ones((2, 1, 1, 1))).shape == x.shape


def test_a_level_per_image_is_refused_where_experts_differ() -> None:
    with pytest.raises(ExpertError, match=r"sigma has shape \(2,\); expected a scalar"):
        switch(denoise_of, some_experts(3), PAPER)(jnp.ones((2, 2, 2, 5)), jnp.ones(2))


def test_parameters_of_another_ensemble_are_refused() -> None:
    for params in (some_experts(2), unstack(some_experts(2))):
        with pytest.raises(ExpertError, match="parameters of 2 experts; expected 3"):
            switch(denoise_of, params, PAPER)


def test_experts_apart_are_not_copied() -> None:
    """The compiled loop needs no temporary memory for parameters; slices of a stack would be copied at each call."""
    width = 512
    stacked = {"w": jnp.ones((3, width, width))}

    def wide(params: dict):
        return lambda x, sigma: jnp.tanh(x @ params["w"])

    def program(params: dict | tuple, x: jax.Array, sigmas: jax.Array) -> jax.Array:
        denoise = switch(wide, params, PAPER)
        return jax.lax.scan(lambda x, sigma: (denoise(x, sigma), None), x, sigmas)[0]

    arguments = jnp.ones((1, 1, 1, width)), jnp.array([80.0, 1.0, 0.01])
    compiled = jax.jit(program).lower(unstack(stacked), *arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * width * width
