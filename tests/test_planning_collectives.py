"""Collectives of compiled programs that send known bytes along known axes; groups in every way they are written."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ediffi_jax.planning.collectives import collective_bytes, crossing, summary
from ediffi_jax.planning.device_groups import along_axes, iota_order, listed
from ediffi_jax.planning.errors import PlanError

ROWS, WIDTH = 16, 32  # of the shard of each of 8 devices
SHARD = ROWS * WIDTH * 4


def mesh_of(order=range(8)) -> Mesh:
    devices = np.array(jax.devices())[list(order)].reshape(2, 4)
    return Mesh(devices, ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def found(body, mesh, text=False):
    """Collectives of a function of each device's shard [16, 32]."""
    spec = P(("a", "b"))
    function = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    argument = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, spec))
    compiled = jax.jit(function).lower(argument).compile().as_text()
    return compiled if text else collective_bytes(compiled, mesh)


def ring(size):
    return [(i, (i + 1) % size) for i in range(size)]


KNOWN = {
    "all-reduce": (lambda x: lax.psum(x, "b"), SHARD, 2 * SHARD * 3 / 4, ("b",)),
    "all-reduce of all": (lambda x: lax.psum(x, ("a", "b")), SHARD, 2 * SHARD * 7 / 8, ("a", "b")),
    "all-gather": (lambda x: lax.all_gather(x, "a", tiled=True).sum(0, keepdims=True), 2 * SHARD, SHARD, ("a",)),
    "reduce-scatter": (lambda x: lax.psum_scatter(x, "b", tiled=True), SHARD, SHARD * 3 / 4, ("b",)),
    "all-to-all": (lambda x: lax.all_to_all(x, "b", 0, 1, tiled=True), SHARD, SHARD * 3 / 4, ("b",)),
    "collective-permute": (lambda x: lax.ppermute(x, "b", ring(4)), SHARD, SHARD, ("b",)),
}


@pytest.mark.parametrize("order", [range(8), (5, 2, 7, 0, 3, 6, 1, 4)], ids=["in order", "shuffled"])
@pytest.mark.parametrize("name", KNOWN)
def test_one_collective(name, order) -> None:
    body, size, wire, axes = KNOWN[name]
    (one,) = found(body, mesh_of(order))
    assert one.kind == name.removesuffix(" of all")
    assert (one.bytes, one.wire_bytes, one.count, one.axes) == (size, wire, 1, axes)
    assert one.network == "ici"


def test_nested_loops_multiply_and_a_conditional_takes_its_heaviest_branch() -> None:
    def inner(x):
        return lax.fori_loop(0, 5, lambda i, h: lax.psum(h * 0.5, "b"), x)

    def body(x):
        x = lax.scan(lambda h, _: (lax.ppermute(inner(h), "a", ring(2)), None), x, None, length=3)[0]
        small, large = (lambda h: lax.psum(h, "a")), (lambda h: lax.psum(lax.psum(h, "a") * 0.5, "a"))
        return lax.cond(lax.psum(x.sum(), ("a", "b")) > 0, small, large, x)

    collectives = found(body, mesh_of())
    counts = {(one.kind, one.axes): 0 for one in collectives}
    for one in collectives:
        counts[one.kind, one.axes] += one.count
    assert counts == {
        ("all-reduce", ("b",)): 15,
        ("collective-permute", ("a",)): 3,
        ("all-reduce", ("a",)): 2,
        ("all-reduce", ("a", "b")): 1,
    }
    assert summary(collectives) == {"b": {"ici": 15 * SHARD}, "a": {"ici": 5 * SHARD}, "a+b": {"ici": 4}}
    assert sum(one.count for one in crossing(collectives, "a")) == 6


def test_turns_are_found_without_being_told() -> None:
    def body(x):
        return lax.scan(lambda h, _: (lax.psum(h * 0.5, "b"), None), x, None, length=7)[0]

    text = found(body, mesh_of(), text=True)
    assert "known_trip_count" in text
    (one,) = collective_bytes(text.replace("known_trip_count", "hidden"), mesh_of())
    assert one.count == 7


def test_a_loop_that_ends_by_its_data_is_refused() -> None:
    def body(x):
        return lax.while_loop(lambda h: h[0, 0] < 1, lambda h: lax.psum(h, "b"), x)

    with pytest.raises(PlanError, match="depends on data, so its all-reduce cannot be counted"):
        found(body, mesh_of())


def test_the_compiler_s_own_collectives() -> None:
    """Data parallel: the gradient of a weight [32, 32] is summed over `a` and `b`; with fsdp it is gathered too."""
    mesh = mesh_of()

    def step(w, x):
        return w - jax.grad(lambda w: ((x @ w) ** 2).sum())(w)

    def bytes_of(weights):
        shapes = [
            jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=NamedSharding(mesh, weights)),
            jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P(("a", "b")))),
        ]
        compiled = jax.jit(step, out_shardings=NamedSharding(mesh, weights)).lower(*shapes).compile()
        return collective_bytes(compiled.as_text(), mesh)

    (one,) = bytes_of(P())
    assert (one.kind, one.bytes, one.axes) == ("all-reduce", 32 * 32 * 4, ("a", "b"))
    gathers = [one for one in bytes_of(P(None, "b")) if one.kind == "all-gather"]
    assert [(one.bytes, one.axes) for one in gathers] == [(32 * 32 * 4, ("b",))]


def test_another_mesh_is_refused() -> None:
    text = found(KNOWN["all-reduce"][0], mesh_of(), text=True)
    small = Mesh(np.array(jax.devices()[:4]), ("a",))
    with pytest.raises(PlanError, match="runs on 8 devices, the mesh has 4"):
        collective_bytes(text, small)


# ---- groups in every form

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=SIZES)
def test_groups_along_axes_of_a_mesh(data, sizes) -> None:
    names = [f"axis_{i}" for i in range(len(sizes))]
    chosen = data.draw(st.sets(st.sampled_from(names), min_size=1))
    count = int(np.prod(sizes))
    axes = ",".join(f"'{name}'={size}" for name, size in zip(names, sizes, strict=True))
    along = ",".join(f"'{name}'" for name in names if name in chosen)
    order = data.draw(st.permutations(range(count)))
    coords = list(itertools.product(*map(range, sizes)))
    for ids, text in [(list(range(count)), None), (list(order), ",".join(map(str, order)))]:
        expected: dict[tuple, list[int]] = {}
        for device, place in zip(ids, coords, strict=True):
            key = tuple(c for c, name in zip(place, names, strict=True) if name not in chosen)
            expected.setdefault(key, []).append(device)
        assert along_axes(axes, text, along) == list(expected.values())


def test_groups_as_the_tpu_s_compiler_writes_them() -> None:
    assert along_axes("'axis_0'=1,'axis_1'=4,'axis_2'=2", "[2,4]T(1,0)", "'axis_1'") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert along_axes("'x'=8", None, "'x':(1)2") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert along_axes("'x'=8", None, "'x':(4)2") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert iota_order("[2,4]T(1,0)").reshape(4, 2).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert iota_order("[8]").tolist() == list(range(8))
    assert listed("{0,3},{1,2}") == [[0, 3], [1, 2]]
