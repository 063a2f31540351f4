"""FLOPs of a function as the model's author counts them: products and convolutions of the global program.

The function is traced, not compiled: no sharding, no fusion, and a loop counts as often as it turns (XLA's cost
analysis counts its body once). Elementwise work is not counted; in a convolution, neither are products with
padding. Rematerialisation is part of what was traced: for a model's own FLOPs, trace it switched off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from ediffi_jax.planning.contractions import conv_flops, dot_flops
from ediffi_jax.planning.errors import PlanError


def global_flops(function: Callable[..., Any], *shapes: Any) -> int:
    """FLOPs of one call, over all devices.

    Args:
        function: anything JAX can trace, jitted or not. Under `shard_map` every shard's work counts.
        shapes: its arguments: arrays, or pytrees of `jax.ShapeDtypeStruct`.

    Returns:
        Two per multiply-add. Of a `cond`, the heaviest branch.

    Raises:
        PlanError: a product stands in a `while_loop` whose number of turns is not fixed.
    """
    return flops_of_jaxpr(jax.make_jaxpr(function)(*shapes).jaxpr)


def flops_of_jaxpr(jaxpr: core.Jaxpr) -> int:
    """The same of what was traced."""
    return sum(flops_of_equation(equation) for equation in jaxpr.eqns)


def flops_of_equation(equation: core.JaxprEqn) -> int:
    """Those of one operation, with everything it calls."""
    kind, params = equation.primitive.name, equation.params
    if kind == "dot_general":
        return dot(equation)
    if kind == "conv_general_dilated":
        return convolution(equation)
    if kind == "while":
        return while_loop(equation)
    inner = [flops_of_jaxpr(called) for called in called_by(params)]
    if kind == "cond":
        return max(inner)
    return sum(inner) * repeats(kind, params)


def repeats(kind: str, params: dict[str, Any]) -> int:
    """How often an operation runs what it calls."""
    if kind == "scan":
        return params["length"]
    if kind == "shard_map":  # jax 0.7 says manual_axes
        manual = params.get("newly_manual_axes", params.get("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in manual)
    return 1


def called_by(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Every traced function among an operation's parameters."""
    for param in params.values():
        for one in param if isinstance(param, (tuple, list)) else (param,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def dot(equation: core.JaxprEqn) -> int:
    """FLOPs of `dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return dot_flops(equation.outvars[0].aval.shape, [left[axis] for axis in contracted])


def convolution(equation: core.JaxprEqn) -> int:
    """FLOPs of `conv_general_dilated`."""
    params = equation.params
    (left, right), (result,) = ([var.aval.shape for var in vars] for vars in (equation.invars, equation.outvars))
    of_left, of_right, of_result = params["dimension_numbers"]  # batch or features first, then spatial
    windows = [
        (left[of_left[i + 2]], right[of_right[i + 2]], result[of_result[i + 2]], stride, padding[0], left_by, right_by)
        for i, (stride, padding, left_by, right_by) in enumerate(
            zip(
                params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True
            )
        )
    ]
    return conv_flops(
        batch=left[of_left[0]],
        features_in=left[of_left[1]],
        features_out=result[of_result[1]],
        windows=windows,
        groups=params["feature_group_count"],
        batch_groups=params["batch_group_count"],
    )


def while_loop(equation: core.JaxprEqn) -> int:
    """FLOPs of a `while_loop` that counts from a number to a number."""
    each = flops_of_jaxpr(equation.params["body_jaxpr"].jaxpr)
    each_test = flops_of_jaxpr(equation.params["cond_jaxpr"].jaxpr)
    if not each and not each_test:
        return 0
    turns = counted_turns(equation)
    if turns is None:
        raise PlanError(
            f"a while_loop of {each} FLOPs a turn ends by its data, so its FLOPs cannot be counted;"
            " expected a counter from a number to a number, or lax.scan"
        )
    return each * turns + each_test * (turns + 1)


def counted_turns(equation: core.JaxprEqn) -> int | None:
    """Turns of `while i < n: i += step` with written-out numbers; None for anything else."""
    test, body = (equation.params[name].jaxpr for name in ("cond_jaxpr", "body_jaxpr"))
    tests, changes = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    last = test.eqns[-1] if test.eqns else None
    if last is None or last.primitive.name not in ("lt", "le") or last.outvars[0] is not test.outvars[0]:
        return None
    counter, end = last.invars
    if not isinstance(end, core.Literal) or counter not in test.invars[tests:]:
        return None
    index = test.invars.index(counter) - tests
    step = step_of(body, index, changes)
    start = equation.invars[tests + changes + index]
    if not step or not isinstance(start, core.Literal):
        return None
    beyond = int(end.val) + (last.primitive.name == "le")
    return max(0, -((int(start.val) - beyond) // step))


def step_of(body: core.Jaxpr, index: int, consts: int) -> int:
    """What a loop's body adds to a part of its state; 0 if it does anything else with it."""
    before, after = body.invars[consts + index], body.outvars[index]
    made = [equation for equation in body.eqns if after in equation.outvars]
    if len(made) != 1 or made[0].primitive.name != "add":
        return 0
    added = [var for var in made[0].invars if isinstance(var, core.Literal)]
    return int(added[0].val) if len(added) == 1 and before in made[0].invars else 0
