"""What a compiled program executes, and how often: loops multiplied, fusions and calls entered.

A loop's body counts as often as the loop turns, nested loops multiply. Of a conditional only the heaviest
branch counts, since the text cannot say which is taken: an upper bound where branches differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.hlo import Computation, Instruction, Module
from ediffi_jax.planning.hlo_loops import trip_count

# Weighs an instruction; 0 means it is of no interest.
Weigh = Callable[[Computation, Instruction], float]
_CALLS = {"fusion", "call", "async-start", "call-start", "custom-call", "map"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Executed:
    """An instruction of interest.

    Attributes:
        computation: where it stands.
        instruction: it.
        count: how often a run executes it.
        weight: what `weigh` said, of one execution.
    """

    computation: Computation
    instruction: Instruction
    count: int
    weight: float


def executed(module: Module, weigh: Weigh) -> list[Executed]:
    """Everything a run executes that weighs something.

    Raises:
        PlanError: something of weight stands in a loop whose turns the text does not fix.
    """
    return list(walk(module, module.entry, weigh, 1))


def walk(module: Module, computation: Computation, weigh: Weigh, count: int) -> Iterator[Executed]:
    """The same for one computation that runs `count` times."""
    for instruction in computation.instructions.values():
        weight = weigh(computation, instruction)
        if weight:
            yield Executed(computation=computation, instruction=instruction, count=count, weight=weight)
        if instruction.opcode == "while":
            yield from turns(module, computation, instruction, weigh, count)
        elif instruction.opcode == "conditional":
            yield from heaviest(module, instruction, weigh, count)
        elif instruction.opcode in _CALLS:
            for name in instruction.called("calls", "to_apply", "called_computations"):
                yield from walk(module, module.computations[name], weigh, count)


def turns(
    module: Module, computation: Computation, loop: Instruction, weigh: Weigh, count: int
) -> Iterator[Executed]:
    """A loop's body, as often as it turns."""
    inside = list(walk(module, module.computations[loop.called("body")[0]], weigh, count))
    if not inside:
        return
    trips = trip_count(module, computation, loop)
    if trips is None:
        raise PlanError(
            f"the compiled program holds a loop ({loop.name}) whose number of turns depends on data, so its"
            f" {inside[0].instruction.opcode} cannot be counted; expected loops over a fixed number of steps"
        )
    yield from (dataclasses.replace(one, count=one.count * trips) for one in inside)


def heaviest(module: Module, instruction: Instruction, weigh: Weigh, count: int) -> Iterator[Executed]:
    """The branch of a conditional that weighs most."""
    names = instruction.called("branch_computations", "true_computation", "false_computation")
    branches = [list(walk(module, module.computations[name], weigh, count)) for name in names]
    yield from max(branches, key=lambda branch: sum(one.weight * one.count for one in branch))
