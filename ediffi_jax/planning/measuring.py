"""Compiles a planned program and reads off what it needs of each chip.

    HBM = arguments + temporaries + results that reuse no argument + code      as the compiler lays them out
    FLOPs compiled = products and convolutions of the program, loops as often as they turn, times chips
    FLOPs of the model = the same of the program traced without rematerialisation, over all devices
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from ediffi_jax.errors import nearest
from ediffi_jax.planning.chips import Chip
from ediffi_jax.planning.collectives import Collective, collective_bytes
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.hlo_flops import hlo_flops

# "Used 21.32G of 15.75G hbm. Exceeded hbm capacity by 5.57G."
TOO_LARGE = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
# How hard the compiler tries; a run compiles with "full". With "quick" it takes a quarter of the time: FLOPs and
# collectives are the same, memory is up to a fifth less.
EFFORTS = {"quick": -1.0, "full": 0.0}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Program(Protocol):
    """Something that can be compiled, and what its arguments are."""

    @property
    def mesh(self) -> Mesh:
        """Devices to compile for."""
        ...

    @property
    def held(self) -> Mapping[str, PyTree]:
        """The arguments as shapes with placements, by the fields of `Memory` that they count for."""
        ...

    def lower(self) -> Any:
        """Traced and lowered for the mesh's devices."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one chip.

    Attributes:
        parameters, ema, optimizer, encoders, batch: arguments, by what they are.
        temporaries: activations, gradients, gathered weights: the most at any time.
        results: that reuse no argument's memory.
        code: of the program.
    """

    parameters: int = 0
    ema: int = 0
    optimizer: int = 0
    encoders: int = 0
    batch: int = 0
    temporaries: int
    results: int
    code: int

    @property
    def used(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))

    def traffic(self, reads: float = 1.0, writes: float = 1.0) -> float:
        """The least that passes between HBM and the cores: arguments are read, temporaries also written.

        Args:
            reads: how often the whole state (parameters, EMA, moments) is read.
            writes: how often it is written; 0 where nothing is trained.
        """
        state = self.parameters + self.ema + self.optimizer
        return (reads + writes) * state + self.encoders + self.batch + 2 * self.temporaries + self.results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What the compiler says of a program.

    Attributes:
        memory: of a chip; None if the program does not fit.
        used: bytes of HBM of a chip, also of a program that does not fit.
        compiled_flops: of a step, over all chips; None if it does not fit.
        model_flops: of a step, over all chips.
        collectives: of a step, on one device.
        compile_seconds: tracing, lowering and compiling.
    """

    memory: Memory | None
    used: int
    compiled_flops: int | None
    model_flops: int
    collectives: tuple[Collective, ...]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the compiler found room."""
        return self.memory is not None


def measure(
    program: Program, chip: Chip, model_flops: int, effort: str = "quick", executed: float = 1.0
) -> Measured:
    """Compiles `program` for its mesh.

    Args:
        program: a step and the shapes of its arguments.
        chip: what the mesh's devices are, or are parts of.
        model_flops: of a step without rematerialisation.
        effort: one of `EFFORTS`.
        executed: the share of the program's FLOPs that a run executes, less than 1 where of its conditionals not always
            the heaviest branch is taken.

    Raises:
        PlanError: an unknown effort; the compiler fails for another reason than memory.
    """
    if effort not in EFFORTS:
        raise PlanError(f"--effort={effort}{nearest(effort, EFFORTS)}")
    began = time.monotonic()
    lowered = program.lower()
    try:
        compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": EFFORTS[effort]})
    except jax.errors.JaxRuntimeError as error:
        return Measured(
            memory=None, used=too_large(error) * chip.devices_per_chip, compiled_flops=None, model_flops=model_flops,
            collectives=(), compile_seconds=time.monotonic() - began,
        )  # fmt: skip
    seconds = time.monotonic() - began
    text = compiled.as_text()
    memory = memory_of(program, compiled.memory_analysis(), chip.devices_per_chip)
    return Measured(
        memory=memory, used=memory.used, model_flops=model_flops,
        compiled_flops=round(executed * hlo_flops(text) * program.mesh.size),
        collectives=tuple(collective_bytes(text, program.mesh)), compile_seconds=seconds,
    )  # fmt: skip


def memory_of(program: Program, found: Any, devices: int) -> Memory:
    """The compiler's figures of a device, as those of a chip with so many devices."""
    temporaries = found.temp_size_in_bytes
    # What lives at once; the sum over all allocations may be more than there is, in a program that fits.
    peak = getattr(found, "peak_memory_in_bytes", 0)
    if peak > found.argument_size_in_bytes:
        temporaries = min(temporaries, peak - found.argument_size_in_bytes)
    return Memory(
        **{name: devices * shard_bytes(tree) for name, tree in program.held.items()},
        temporaries=devices * temporaries,
        results=devices * max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
        code=devices * found.generated_code_size_in_bytes,
    )


def shard_bytes(tree: PyTree) -> int:
    """Bytes of one device's part of every leaf."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def too_large(error: Exception) -> int:
    """Bytes that a program would have used, of a compiler that found no room. Raises PlanError for other failures."""
    found = TOO_LARGE.search(str(error))
    if not found:
        raise PlanError(f"the compiler failed: {str(error).splitlines()[0]}") from error
    return int(float(found[1]) * UNITS[found[2]])
