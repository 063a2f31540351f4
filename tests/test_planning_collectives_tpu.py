"""Collectives as the TPU's compiler writes them: in fusions, in asynchronous calls, and between slices."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ediffi_jax.planning.collectives import collective_bytes, crossing, share
from ediffi_jax.planning.device_groups import Layout, by_id
from ediffi_jax.planning.errors import PlanError

# Two slices of [2 data, 2 fsdp] devices, numbered as the TPU's compiler numbers them.
SLICED = Layout(
    axes=("expert", "data", "fsdp"),
    coords=np.array(list(itertools.product(range(2), range(2), range(2)))),
    ids=(100000, 100001, 100002, 100003, 200000, 200001, 200002, 200003),
    slices=(0, 0, 0, 0, 1, 1, 1, 1),
    chips=tuple(range(8)),
)


def program(line: str, partitions: int = 4, extra: str = "") -> str:
    return (
        f"HloModule m, is_scheduled=true, num_partitions={partitions}\n\n{extra}"
        "ENTRY %main (p: x) -> x {\n"
        "  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)\n"
        "  %after-all = token[] after-all()\n"
        f"  {line}\n}}\n"
    )


def send(target: str, kind: str) -> str:
    return program(
        "%send = (bf16[64,128]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%p, %after-all), channel_id=2,"
        ' is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        f'_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}'
    )


SIZE = 64 * 128 * 2


@pytest.mark.parametrize(
    ("target", "kind", "expected"),
    [
        ('"{1,2}x{0:3}"', "ALL_REDUCE", ("all-reduce", SIZE, SIZE, ("expert",))),
        ('"{1,2}x{0:3}"', "ALL_GATHER", ("all-gather", 2 * SIZE, SIZE, ("expert",))),
        ('"{1,2}x{0:3}"', "REDUCE_SCATTER", ("reduce-scatter", SIZE, SIZE / 2, ("expert",))),
        ("{{100000,200001},{100001,200000}}", "ALL_REDUCE", ("all-reduce", SIZE, SIZE, ("expert", "fsdp"))),
        ("{{100000->200000},{200000->100000}}", "ONE_TO_ONE", ("collective-permute", SIZE, SIZE, ("expert",))),
        (
            "{{100000,100001,100002,100003,200000,200001,200002,200003}}",
            "ALL_TO_ALL",
            ("all-to-all", SIZE, SIZE / 2, ("expert", "data", "fsdp")),
        ),
    ],
)
def test_transfers_between_slices(target, kind, expected) -> None:
    (one,) = collective_bytes(send(target, kind), SLICED)
    assert (one.kind, one.bytes, one.wire_bytes, one.axes) == expected
    assert one.network == "dcn"


def test_within_a_slice_a_program_numbers_its_own_devices() -> None:
    line = (
        "ROOT %r = bf16[64,128]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}},"
        " use_global_device_ids=true, to_apply=%add"
    )
    (one,) = collective_bytes(program(line), SLICED)
    assert (one.axes, one.network, one.wire_bytes) == (("fsdp",), "ici", SIZE)
    # Without the flag the groups are of replicas: everybody with a channel, nobody without.
    (all_of_them,) = collective_bytes(program(line.replace("use_global_device_ids=true, ", "")), SLICED)
    assert all_of_them.axes == ("data", "fsdp")
    lonely = line.replace("use_global_device_ids=true, ", "").replace("channel_id=1, ", "")
    assert collective_bytes(program(lonely), SLICED) == []


def test_unknown_devices_and_forms_are_refused() -> None:
    with pytest.raises(PlanError, match="names \\[300000"):
        by_id("{1,3}x{0:1}", SLICED)
    with pytest.raises(PlanError, match="form that is not known here: replica_groups=@mesh"):
        line = "ROOT %r = f32[8]{0} all-gather(%p), channel_id=1, replica_groups=@mesh, use_global_device_ids=true"
        collective_bytes(program(line), SLICED)
    with pytest.raises(PlanError, match="beyond the 4"):
        line = "ROOT %r = f32[8]{0} all-gather(%p), channel_id=1, replica_groups={{0,9}}, use_global_device_ids=true"
        collective_bytes(program(line), SLICED)


REDUCE_SLICE = """%all-reduce-scatter.1 (input: bf16[64,128]) -> bf16[32,128] {
  %input = bf16[64,128]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,128]{1,0} all-reduce(%input), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=2] \
{'axis_1'}, use_global_device_ids=true, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = bf16[32,128]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={32,128}
}

"""


def test_a_reduction_fused_with_its_slice_is_a_reduce_scatter() -> None:
    line = "ROOT %f = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"
    (one,) = collective_bytes(program(line, extra=REDUCE_SLICE), SLICED)
    assert (one.kind, one.bytes, one.wire_bytes, one.axes) == ("reduce-scatter", SIZE, SIZE / 2, ("fsdp",))


def spanning(name: str, end: str) -> str:
    return (
        f"%{name} (a: bf16[64,128]) -> bf16[64,128] {{\n"
        "  %a = bf16[64,128]{1,0} parameter(0)\n"
        "  %all-gather.1 = bf16[128,128]{1,0} all-gather(%a), channel_id=9, replica_groups={{0,1},{2,3}},"
        " dimensions={0}, use_global_device_ids=true,"
        ' backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}\n'
        f'  ROOT %end = (bf16[64,128]{{1,0}}) custom-call(%all-gather.1), custom_call_target="{end}"\n}}\n\n'
    )


def test_a_collective_that_spans_fusions_counts_once() -> None:
    calls = "\n  ".join(
        f"{'ROOT ' * (name == 'done')}%{name}.1 = bf16[64,128]{{1,0}} fusion(%p), kind=kOutput, calls=%{name}"
        for name in ("start", "middle", "done")
    )
    middle, done = spanning("middle", "Other"), spanning("done", "AsyncCollectiveDone")
    (one,) = collective_bytes(program(calls, extra=spanning("start", "AsyncCollectiveStart") + middle + done), SLICED)
    assert (one.kind, one.bytes, one.count) == ("all-gather", 2 * SIZE, 1)
    with pytest.raises(PlanError, match="all-gather.1 along with computation"):
        collective_bytes(program(calls, extra=spanning("start", "Other") + middle + done), SLICED)


def test_an_asynchronous_call_is_entered_once() -> None:
    inner = (
        "%inner (a: bf16[64,128]) -> bf16[128,128] {\n  %a = bf16[64,128]{1,0} parameter(0)\n"
        "  ROOT %g = bf16[128,128]{1,0} all-gather(%a), channel_id=6, replica_groups=[2,2]<=[4], dimensions={0},"
        " use_global_device_ids=true\n}\n\n"
    )
    lines = (
        "%s = ((bf16[64,128]{1,0}, token[]), bf16[128,128]{1,0}) call-start(%p, %after-all),"
        ' async_execution_thread="sparsecore", to_apply=%inner\n'
        "  ROOT %d = bf16[128,128]{1,0} call-done(%s)"
    )
    (one,) = collective_bytes(program(lines, extra=inner), SLICED)
    assert (one.bytes, one.count, one.axes) == (2 * SIZE, 1, ("fsdp",))


def test_what_members_of_a_node_share_is_sent_once() -> None:
    assert share("all-reduce", [0, 0, 0, 0]) == 0
    assert share("all-gather", [0, 1, 2, 3]) == 3 / 4
    assert share("all-gather", [0, 0, 1, 1]) == 1 / 4  # each of two members fetches half of the other node's half
    assert share("all-reduce", [0, 0, 1, 1]) == 1 / 2
    assert share("all-to-all", [0, 0, 1, 1]) == 1 / 2
    two_cores = Layout(
        axes=("a", "b"), coords=np.array([(0, 0), (0, 1), (1, 0), (1, 1)]), ids=(0, 1, 2, 3), slices=(0,) * 4,
        chips=(0, 0, 1, 1),
    )  # fmt: skip
    for groups, network, wire in [("{{0,1},{2,3}}", "chip", SIZE), ("{{0,2},{1,3}}", "ici", SIZE)]:
        line = f"ROOT %r = bf16[64,128]{{1,0}} all-reduce(%p), channel_id=1, replica_groups={groups},"
        (one,) = collective_bytes(program(line + " use_global_device_ids=true"), two_cores)
        assert (one.network, one.wire_bytes) == (network, wire)


@pytest.mark.pod
def test_experts_on_slices_send_each_other_nothing() -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler, extra [tpu], is not installed")
    from ediffi_jax.planning.meshes import make_mesh
    from ediffi_jax.planning.topology import parse_topology

    def expert_step(w, x):
        def loss(w):
            return (lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w)[0].astype(jnp.float32) ** 2).mean()

        return w - jax.grad(loss)(w)

    def compiled(mesh, function, spec):
        weights, rows = P(spec, None, None, "fsdp"), P(spec, ("data", "fsdp"))
        shapes = [
            jax.ShapeDtypeStruct((3, 6, 256, 256), jnp.bfloat16, sharding=NamedSharding(mesh, weights)),
            jax.ShapeDtypeStruct((3, 64, 256), jnp.bfloat16, sharding=NamedSharding(mesh, rows)),
        ]
        text = jax.jit(function, out_shardings=shapes[0].sharding).lower(*shapes).compile().as_text()
        return collective_bytes(text, mesh)

    def side_by_side(w, x):
        body = jax.shard_map(
            jax.vmap(expert_step), mesh=mesh, in_specs=P("expert"), out_specs=P("expert"), axis_names={"expert"},
            check_vma=False,
        )  # fmt: skip
        return body(w, x)

    mesh = make_mesh(parse_topology("v5e:2x2", slices=3), expert=3, data=2)
    apart = compiled(mesh, side_by_side, "expert")
    assert apart and not crossing(apart, "expert")
    assert {one.network for one in apart} == {"ici"}
    # The same three experts over two slices that share the data: now gradients cross, 6 layers of each expert.
    mesh = make_mesh(parse_topology("v5e:2x2", slices=2), data=2)
    shared = compiled(mesh, lambda w, x: lax.map(lambda one: expert_step(*one), (w, x)), None)
    over = [one for one in shared if one.network == "dcn"]
    assert {one.axes for one in over} == {("data",)}
    assert sum(one.bytes * one.count for one in over) == 3 * 6 * 256 * 256 // 4 * 2
