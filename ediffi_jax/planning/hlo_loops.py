"""How often a loop of a compiled program turns.

CPU and GPU programs often say it (`known_trip_count`). TPU programs do not, so the counter is run: of the loop's
state only what its condition needs is followed, from its first value through the body, scalar by scalar. What
depends on data (a parameter of the program, anything but whole-number arithmetic) is unknown, and so is the loop.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from ediffi_jax.planning.hlo import Computation, Instruction, Module

MAX_TURNS = 1_000_000
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_SAME = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier"}
# The values of a computation's parameters: (position, tuple index or None) -> whole number.
Given = Callable[[int, int | None], int]


class UnknownValue(Exception):
    """A scalar that the program's text does not fix."""


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Turns of a `while`; None if the text does not fix them.

    Args:
        module: the whole program.
        computation: where the loop stands; its own parameters count as unknown.
        loop: the instruction.
    """
    known = re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    body = module.computations[loop.called("body")[0]]
    condition = module.computations[loop.called("condition")[0]]
    try:
        return run(module, condition, body, lambda index: first_value(module, computation, loop, index))
    except UnknownValue:
        return None


def run(module: Module, condition: Computation, body: Computation, first: Callable[[int], int]) -> int:
    """Turns the loop, following only the parts of its state that decide when it ends."""
    state = {index: first(index) for index in deciding(module, condition, body)}

    def current(position: int, index: int | None) -> int:
        if index is None or index not in state:
            raise UnknownValue
        return state[index]

    for turns in range(MAX_TURNS):
        if not value(module, condition, condition.root, current):
            return turns
        state = {index: element(module, body, body.root, index, current) for index in state}
    raise UnknownValue


def deciding(module: Module, condition: Computation, body: Computation) -> set[int]:
    """Which parts of the state the condition reads, and those that these are computed from."""
    waiting = read_by(module, condition, lambda read: value(module, condition, condition.root, read))
    done: set[int] = set()
    while waiting:
        index = waiting.pop()
        done.add(index)
        waiting |= read_by(module, body, lambda read, i=index: element(module, body, body.root, i, read)) - done
    return done


def read_by(module: Module, computation: Computation, evaluate: Callable[[Given], int]) -> set[int]:
    """The parts of the state that an evaluation asks for."""
    asked: set[int] = set()

    def note(position: int, index: int | None) -> int:
        if index is None:
            raise UnknownValue
        asked.add(index)
        return 1

    evaluate(note)
    return asked


def first_value(module: Module, computation: Computation, loop: Instruction, index: int) -> int:
    """A part of the state as the loop begins."""

    def unknown(position: int, index: int | None) -> int:
        raise UnknownValue

    start = computation.instructions[loop.operands[0]]
    return element(module, computation, start, index, unknown)


def element(module: Module, computation: Computation, whole: Instruction, index: int, given: Given) -> int:
    """One part of a tuple. Raises UnknownValue if the text does not fix it."""
    if whole.opcode == "tuple":
        return value(module, computation, computation.instructions[whole.operands[index]], given)
    if whole.opcode == "parameter":
        return given(computation.parameters[whole.name], index)
    if whole.opcode in _SAME:
        return element(module, computation, computation.instructions[whole.operands[0]], index, given)
    if whole.opcode in ("fusion", "call"):
        inner = module.computations[whole.called("calls", "to_apply")[0]]
        return element(module, inner, inner.root, index, passed(module, computation, whole, given))
    if whole.opcode == "while":  # unchanged by an earlier loop: as it went in
        body = module.computations[whole.called("body")[0]]
        if carried(body, index):
            return element(module, computation, computation.instructions[whole.operands[0]], index, given)
    raise UnknownValue


def carried(body: Computation, index: int) -> bool:
    """Whether a loop's body hands a part of the state on as it is."""
    if body.root.opcode != "tuple":
        return False
    out = body.instructions[body.root.operands[index]]
    while out.opcode in ("copy", "bitcast"):
        out = body.instructions[out.operands[0]]
    from_state = out.opcode == "get-tuple-element" and body.instructions[out.operands[0]].opcode == "parameter"
    return from_state and out.attribute("index") == str(index)


def passed(module: Module, computation: Computation, call: Instruction, given: Given) -> Given:
    """The arguments of a call as the values of the called computation's parameters."""

    def argument(position: int, index: int | None) -> int:
        operand = computation.instructions[call.operands[position]]
        if index is None:
            return value(module, computation, operand, given)
        return element(module, computation, operand, index, given)

    return argument


def value(module: Module, computation: Computation, one: Instruction, given: Given) -> int:
    """A scalar. Raises UnknownValue if the text does not fix it."""

    def operand(position: int) -> int:
        return value(module, computation, computation.instructions[one.operands[position]], given)

    if one.opcode == "constant":
        return literal(one.arguments)
    if one.opcode == "parameter":
        return given(computation.parameters[one.name], None)
    if one.opcode == "get-tuple-element":
        whole = computation.instructions[one.operands[0]]
        return element(module, computation, whole, int(one.attribute("index")), given)
    if one.opcode in _SAME:
        return operand(0)
    if one.opcode in _ARITHMETIC:
        return _ARITHMETIC[one.opcode](operand(0), operand(1))
    if one.opcode == "compare":
        return _COMPARE[one.attribute("direction")](operand(0), operand(1))
    if one.opcode == "not":
        return not operand(0)
    if one.opcode == "select":
        return operand(1) if operand(0) else operand(2)
    if one.opcode in ("fusion", "call"):
        inner = module.computations[one.called("calls", "to_apply")[0]]
        return value(module, inner, inner.root, passed(module, computation, one, given))
    raise UnknownValue


def literal(text: str) -> int:
    """A constant that is one whole number. Raises UnknownValue if it is not."""
    if text in ("true", "false"):
        return int(text == "true")
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    raise UnknownValue
