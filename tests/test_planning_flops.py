"""FLOPs of traced and of compiled programs, against XLA's own count and against hand-written arithmetic."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ediffi_jax.planning.contractions import overlaps
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.flops import global_flops
from ediffi_jax.planning.hlo import parse
from ediffi_jax.planning.hlo_flops import flops_of, hlo_flops

NHWC = ("NHWC", "HWIO", "NHWC")


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, w, stride=1, groups=1, left=1, right=1, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, (left, left), (right, right), NHWC, feature_group_count=groups
    )


def attention(x):
    heads = x.reshape(2, 64, 1, 128)
    return jax.nn.dot_product_attention(heads, heads, heads)


def gradient_of_conv(x, w, *, stride):
    return jax.grad(lambda x, w: (conv(x, w, stride) ** 2).sum(), argnums=(0, 1))(x, w)


LOOP_FREE = {
    "product": (lambda x, y: x @ y, [f32(256, 384), f32(384, 512)]),
    "batched": (lambda x, y: jnp.einsum("bij,bkj->bik", x, y), [f32(6, 128, 256), f32(6, 96, 256)]),
    "attention": (attention, [f32(2, 64, 128)]),
    "same": (conv, [f32(2, 32, 32, 64), f32(3, 3, 64, 48)]),
    "valid": (lambda x, w: conv(x, w, padding="VALID"), [f32(2, 32, 32, 64), f32(5, 5, 64, 48)]),
    "strided": (lambda x, w: conv(x, w, stride=2), [f32(2, 33, 32, 64), f32(3, 3, 64, 48)]),
    "grouped": (lambda x, w: conv(x, w, groups=4), [f32(2, 32, 32, 64), f32(3, 3, 16, 48)]),
    "transposed": (lambda x, w: conv(x, w, left=2, padding=((1, 2), (1, 2))), [f32(2, 16, 16, 64), f32(3, 3, 64, 48)]),
    "atrous": (lambda x, w: conv(x, w, right=2), [f32(2, 32, 32, 64), f32(3, 3, 64, 48)]),
    "gradient": (lambda x, w: gradient_of_conv(x, w, stride=1), [f32(2, 16, 16, 64), f32(3, 3, 64, 48)]),
    "strided gradient": (lambda x, w: gradient_of_conv(x, w, stride=2), [f32(2, 16, 16, 64), f32(3, 3, 64, 48)]),
    "remat": (jax.grad(lambda x, y: jnp.sum(jax.remat(lambda a: (a @ y) @ y)(x) ** 2)), [f32(96, 128), f32(128, 128)]),
}


@pytest.mark.parametrize("name", LOOP_FREE)
def test_loop_free_programs_count_as_xla_counts_them(name) -> None:
    function, shapes = LOOP_FREE[name]
    theirs = jax.jit(function).lower(*shapes).cost_analysis()["flops"]
    assert global_flops(function, *shapes) == pytest.approx(theirs, rel=0.02)


def test_a_convolution_by_hand() -> None:
    # 8 x 8 results of 3 x 3 weights with zero padding: the border lacks a weight on each side, (3 * 8 - 2)^2 pairs.
    assert global_flops(conv, f32(2, 8, 8, 5), f32(3, 3, 5, 7)) == 2 * 2 * 5 * 7 * 22 * 22
    # stride 2 halves the results: 4 per side, and only one of them lacks a weight.
    assert global_flops(lambda x, w: conv(x, w, 2), f32(2, 8, 8, 5), f32(3, 3, 5, 7)) == 2 * 2 * 5 * 7 * 11 * 11


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 12),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(-2, 5),
    left=st.integers(1, 3),
    right=st.integers(1, 3),
    result=st.integers(1, 12),
)
def test_pairs_of_a_window_one_by_one(size, kernel, stride, padding, left, right, result) -> None:
    there = {i * left for i in range(size)}
    pairs = itertools.product(range(result), range(kernel))
    expected = sum(i * stride + k * right - padding in there for i, k in pairs)
    assert overlaps(size, kernel, result, stride, padding, left, right) == expected


def layers(w, x):
    return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w)[0]


def nested(w, x):
    return jax.lax.fori_loop(0, 3, lambda i, h: layers(w, h), x)


def two_ways(w, x):
    return jax.lax.cond(x.sum() > 0, lambda h: h @ w[0] @ w[1], lambda h: h @ w[0], x)


def counted(w, x):
    return jax.lax.while_loop(lambda c: c[0] < 11, lambda c: (c[0] + 2, c[1] @ w[0]), (1, x))[1]


ONE = 2 * 16 * 32 * 32  # [16, 32] @ [32, 32]
LOOPS = {
    "scan": (layers, 6 * ONE),
    "nested": (nested, 3 * 6 * ONE),
    "gradient": (jax.grad(lambda w, x: layers(w, x).sum(), argnums=(0, 1)), 3 * 6 * ONE),
    "cond": (two_ways, 2 * ONE),
    "while": (counted, 5 * ONE),
    "jit": (jax.jit(jax.jit(layers)), 6 * ONE),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_by_hand_traced_and_compiled(name) -> None:
    function, expected = LOOPS[name]
    shapes = (f32(6, 32, 32), f32(16, 32))
    assert global_flops(function, *shapes) == expected
    assert hlo_flops(jax.jit(function).lower(*shapes).compile().as_text()) == expected


def test_custom_gradients_are_entered() -> None:
    @jax.custom_vjp
    def product(x, y):
        return x @ y

    product.defvjp(lambda x, y: (x @ y, (x, y)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    shapes = (f32(16, 32), f32(32, 32))
    assert global_flops(product, *shapes) == ONE
    assert global_flops(jax.grad(lambda x, y: product(x, y).sum(), argnums=(0, 1)), *shapes) == 3 * ONE


def test_every_shard_counts() -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def run(x, y, axes):
        body = jax.shard_map(
            jnp.matmul, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), axis_names=set(axes), check_vma=False
        )
        return body(x, y)

    shapes = (f32(16, 32), f32(32, 32))
    assert global_flops(lambda x, y: run(x, y, "a"), *shapes) == ONE
    assert global_flops(lambda x, y: run(x, y, "ab"), *shapes) == 4 * ONE  # b holds four copies


def test_a_loop_that_ends_by_its_data_is_refused_only_if_it_holds_products() -> None:
    def until(x, y):
        return jax.lax.while_loop(lambda h: h.sum() < 100, lambda h: h @ y, x)

    shapes = (f32(16, 32), f32(32, 32))
    with pytest.raises(PlanError, match="ends by its data"):
        global_flops(until, *shapes)
    with pytest.raises(PlanError, match="depends on data, so its dot"):
        hlo_flops(jax.jit(until).lower(*shapes).compile().as_text())

    def harmless(x, y):
        return jax.lax.while_loop(lambda h: h.sum() < 100, lambda h: h * 2, x) @ y

    assert global_flops(harmless, *shapes) == ONE
    assert hlo_flops(jax.jit(harmless).lower(*shapes).compile().as_text()) == ONE


def test_compiled_convolutions_count_as_traced_ones() -> None:
    for name in ("same", "strided", "transposed", "atrous", "strided gradient", "attention", "batched"):
        function, shapes = LOOP_FREE[name]
        compiled = hlo_flops(jax.jit(function).lower(*shapes).compile().as_text())
        assert compiled == pytest.approx(global_flops(function, *shapes), rel=1e-3), name


def test_a_device_does_its_part() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    compiled = jax.jit(layers, in_shardings=(whole, rows)).lower(f32(6, 32, 32), f32(16, 32)).compile()
    assert hlo_flops(compiled.as_text()) * 8 == 6 * ONE


# Instructions as the TPU's compiler writes them (v5e, libtpu 0.0.42), with FLOPs by hand.
TPU_LINES = [
    ("bf16[512,1024]", "bf16[1024,256]", "bf16[512,256]", "dim_labels=bf_io->bf", 2 * 512 * 1024 * 256),
    ("bf16[512,1024]", "bf16[256,1024]", "bf16[512,256]", "dim_labels=bf_oi->bf", 2 * 512 * 1024 * 256),
    # a batch of 6 products [128, 256] x [256, 96] as a window of which only the diagonal exists
    (
        "bf16[6,128,256]",
        "bf16[6,96,256]",
        "bf16[6,128,96]",
        "window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0oi->0bf",
        2 * 6 * 128 * 96 * 256,
    ),
    (
        "bf16[2,8,8,5]",
        "bf16[3,3,5,7]",
        "bf16[2,8,8,7]",
        "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
        2 * 2 * 5 * 7 * 22 * 22,
    ),
]


@pytest.mark.parametrize(("left", "right", "result", "rest", "expected"), TPU_LINES)
def test_products_as_tpus_write_them(left, right, result, rest, expected) -> None:
    text = (
        "HloModule m, is_scheduled=true, num_partitions=4\n\n"
        "ENTRY %main (a: x, b: x) -> x {\n"
        f"  %a = {left}{{1,0:T(8,128)(2,1)}} parameter(0)\n"
        f"  %b = {right}{{1,0:T(8,128)(2,1)S(1)}} parameter(1)\n"
        f"  ROOT %c = {result}{{1,0:T(8,128)(2,1)S(1)}} convolution(%a, %b), {rest},"
        ' metadata={op_name="jit(f)/while/body={x}" stack_frame_id=9}, backend_config={"flag_configs":[]}\n}\n'
    )
    computation = parse(text).entry
    assert flops_of(computation, computation.root) == expected
    assert hlo_flops(text) == expected


CONV = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target"
X, K, Y = "f32[2,8,8,5]", "f32[3,3,5,7]", "f32[2,8,8,7]"
CONV_FLOPS = 2 * 2 * 5 * 7 * 22 * 22
GPU_LINES = [
    (X, K, Y, f'{CONV}="__cudnn$convForward"', CONV_FLOPS),
    (Y, K, X, f'{CONV}="__cudnn$convBackwardInput"', CONV_FLOPS),
    (X, Y, K, f'{CONV}="__cudnn$convBackwardFilter"', CONV_FLOPS),
    (
        "bf16[16,32]",
        "bf16[32,64]",
        "bf16[16,64]",
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
        2 * 16 * 32 * 64,
    ),
    (X, K, Y, 'custom_call_target="Sharding"', 0),
]


@pytest.mark.parametrize(("left", "right", "result", "rest", "expected"), GPU_LINES)
def test_products_as_gpus_call_them(left, right, result, rest, expected) -> None:
    text = (
        "HloModule m\n\nENTRY %main (a: x, b: x) -> x {\n"
        f"  %a = {left}{{1,0}} parameter(0)\n  %b = {right}{{1,0}} parameter(1)\n"
        f"  ROOT %c = ({result}{{1,0}}, u8[1024]{{0}}) custom-call(%a, %b), {rest}\n}}\n"
    )
    assert hlo_flops(text) == expected


@pytest.mark.pod
def test_programs_compiled_for_tpu() -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler, extra [tpu], is not installed")
    from ediffi_jax.planning.meshes import make_mesh
    from ediffi_jax.planning.topology import parse_topology

    mesh = make_mesh(parse_topology("v5e:2x2"), data=2)
    split = make_mesh(parse_topology("v5e:2x2"), data=4)

    def shape(mesh, spec, *sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    def picture(x, k):
        heads = conv(x, k, stride=2).reshape(32, 256, 2, 128)
        return (jax.nn.dot_product_attention(heads, heads, heads).astype(jnp.float32) ** 2).sum()

    def few(x, k):  # of 4 pictures a device XLA makes 32 blocks that overlap: more FLOPs than asked for
        return conv(x, k)

    stack = shape(mesh, P(None, None, "fsdp"), 6, 256, 256), shape(mesh, P(("data", "fsdp")), 1024, 256)
    kernel = shape(split, P(), 3, 3, 128, 256)
    for function, shapes, low, high, loops in [
        (jax.grad(picture, argnums=(0, 1)), (shape(split, P("data"), 32, 32, 32, 128), kernel), 0.98, 1.02, False),
        (few, (shape(split, P("data"), 16, 16, 16, 128), kernel), 1.4, 1.7, False),
        (jax.grad(lambda w, x: layers(w, x).astype(jnp.float32).sum()), stack, 1, 1, True),
    ]:
        compiled = jax.jit(function).lower(*shapes).compile()
        expected = global_flops(function, *shapes)
        found = hlo_flops(compiled.as_text())
        assert low * expected <= found * 4 <= high * expected
        if not loops:
            assert found == pytest.approx(compiled.cost_analysis()["flops"], rel=0.03)
    assert compiled.cost_analysis()["flops"] * 4 < 0.3 * expected  # a loop's body once
