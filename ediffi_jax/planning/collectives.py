"""What a compiled program sends between devices: kind, bytes, how often, along which mesh axes, over which network.

Payload (`bytes`) of one execution, on one device, is the larger side: what an all-gather returns, what
a reduce-scatter or all-to-all takes, the array of an all-reduce or permutation. What the network carries
at least (`wire_bytes`, sent by one device) follows from it, for a group of n nodes with k members each:

    all-gather, reduce-scatter   (n - 1)/n * bytes / k        all-to-all    bytes * (n - 1)/n
    all-reduce                 2 (n - 1)/n * bytes / k        permutation   bytes

A node is what the network joins: slices over DCN, chips over ICI, the cores of one chip ("chip"). Members
of a node share its part, so what they exchange among themselves is not counted over the slower network.

TPU programs hide collectives in fusions, which are entered: a collective that runs along with computation is
written at its start, in every fusion it spans, and at its end, and counts where it starts; an all-reduce
fused with taking one's own slice is a reduce-scatter. Over slices they are sends to the "megascale" runtime.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable

from jax.sharding import Mesh

from ediffi_jax.planning.device_groups import Groups, Layout, groups_of
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.hlo import Computation, Instruction, Module, parse
from ediffi_jax.planning.hlo_walk import executed

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
OTHER_NAMES = {"ragged-all-to-all": "all-to-all", "collective-broadcast": "collective-permute"}
MEGASCALE = {"ONE_TO_ONE": "collective-permute"}  # the others are called as here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: one of `KINDS`.
        bytes: payload of one execution, on one device.
        wire_bytes: what one device sends at least, of one execution.
        count: executions in one run.
        axes: of the mesh, along which it goes.
        network: "dcn" if it leaves a slice, else "ici" if it leaves a chip, else "chip".
        group_size: devices that it joins.
        name: of the instruction.
    """

    kind: str
    bytes: int
    wire_bytes: int
    count: int
    axes: tuple[str, ...]
    network: str
    group_size: int
    name: str


def collective_bytes(text: str, mesh: Mesh | Layout) -> list[Collective]:
    """All collectives of a compiled program.

    Args:
        text: `compiled.as_text()`.
        mesh: what it was compiled for.

    Raises:
        PlanError: another mesh, groups in an unknown form, or a collective in a loop that ends by data.
    """
    layout = mesh if isinstance(mesh, Layout) else Layout.of(mesh)
    module = parse(text)
    fused = {name for one in instructions(module) if one.opcode == "fusion" for name in one.called("calls")}
    check_starts(module)
    found = executed(module, lambda computation, one: payload(computation, one) if kind_of(one) else 0)
    collectives = [measure(one.computation, one.instruction, one.count, layout, module, fused) for one in found]
    return [one for one in collectives if one.axes]


def summary(collectives: Iterable[Collective], *, wire: bool = False) -> dict[str, dict[str, int]]:
    """Bytes of a run, on one device, by axis and network.

    Args:
        collectives: of a program.
        wire: bytes sent instead of payload.

    Returns:
        {"fsdp": {"ici": bytes}, "data+fsdp": ...}; what goes along several axes at once has its own entry.
    """
    total: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in collectives:
        total["+".join(one.axes)][one.network] += one.count * (one.wire_bytes if wire else one.bytes)
    return {axes: dict(networks) for axes, networks in total.items()}


def crossing(collectives: Iterable[Collective], axis: str) -> list[Collective]:
    """Those that go along an axis, alone or with others."""
    return [one for one in collectives if axis in one.axes]


def instructions(module: Module) -> Iterable[Instruction]:
    """All of a program."""
    return (one for computation in module.computations.values() for one in computation.instructions.values())


def kind_of(instruction: Instruction) -> str | None:
    """The kind of collective an instruction is; None for all others, and for the ends of asynchronous ones."""
    name = instruction.opcode.removesuffix("-start")
    if name in KINDS or name in OTHER_NAMES:
        return OTHER_NAMES.get(name, name)
    if instruction.opcode != "send":
        return None
    transfer = re.search(r'_xla_megascale_transfer_type="?(\w+)', instruction.attributes)
    if transfer:
        return MEGASCALE.get(transfer[1], transfer[1].lower().replace("_", "-"))
    return "collective-permute" if "source_target_pairs" in instruction.attributes else None


def payload(computation: Computation, instruction: Instruction) -> float:
    """Bytes of the operands; 0 for the repetitions of a collective that spans fusions."""
    if spans_fusions(instruction) and not starts(computation, instruction):
        return 0
    operands = computation.operand_shapes(instruction)
    return sum(shape.bytes for shapes in operands for shape in shapes)


def spans_fusions(instruction: Instruction) -> bool:
    """Whether it is written in several fusions."""
    return "async_collective_fusion_config" in instruction.attributes


def starts(computation: Computation, instruction: Instruction) -> bool:
    """Whether it is in the fusion that starts it."""
    return any(
        '"AsyncCollectiveStart"' in other.attributes and instruction.name in other.operands
        for other in computation.instructions.values()
    )


def check_starts(module: Module) -> None:
    """Raises PlanError if a collective that spans fusions starts nowhere: it would go uncounted."""
    begun, seen = set(), {}
    for computation in module.computations.values():
        for one in computation.instructions.values():
            if kind_of(one) and spans_fusions(one):
                channel = one.attribute("channel_id")
                seen[channel] = one.name
                begun |= {channel} if starts(computation, one) else set()
    for channel, name in seen.items():
        if channel not in begun:
            raise PlanError(f"the compiled program runs {name} along with computation in a form that is not known here")


def measure(
    computation: Computation, one: Instruction, count: int, layout: Layout, module: Module, fused: set[str]
) -> Collective:
    """Bytes, axes and network of one collective; without axes if it joins nobody."""
    kind, groups = kind_of(one), groups_of(one, layout, module.partitions)
    size = max(map(len, groups))
    moved = payload(computation, one)
    if kind == "all-gather":
        moved *= size
    if kind == "all-reduce" and computation.name in fused and sliced(computation, one):
        kind = "reduce-scatter"
    network = "dcn" if leaves(groups, layout.slices) else "ici" if leaves(groups, layout.chips) else "chip"
    nodes = {"dcn": layout.slices, "ici": layout.chips, "chip": tuple(range(len(layout.ids)))}[network]
    return Collective(
        kind=kind,
        bytes=round(moved),
        wire_bytes=round(moved * max(share(kind, [nodes[position] for position in group]) for group in groups)),
        count=count,
        axes=layout.crossed(groups),
        network=network,
        group_size=size,
        name=one.name,
    )


def sliced(computation: Computation, reduced: Instruction) -> bool:
    """Whether a fusion returns only a slice of what it reduces."""
    one = computation.root
    while one.opcode in ("bitcast", "copy", "reshape") and one.operands:
        one = computation.instructions[one.operands[0]]
    if one.opcode != "dynamic-slice":
        return False
    source = computation.instructions[one.operands[0]]
    while source.opcode in ("bitcast", "copy", "reshape") and source.operands:
        source = computation.instructions[source.operands[0]]
    return source is reduced


def leaves(groups: Groups, nodes: tuple[int, ...]) -> bool:
    """Whether a group has members on several nodes."""
    return any(nodes[position] != nodes[group[0]] for group in groups for position in group)


def share(kind: str, nodes: list[int]) -> float:
    """What one member of a group sends over the network, as a part of the payload."""
    count = len(set(nodes))
    if count == 1:
        return 0.0
    if kind == "collective-permute":
        return 1.0
    if kind == "all-to-all":
        return (count - 1) / count
    members = len(nodes) / count
    return (2 if kind == "all-reduce" else 1) * (count - 1) / count / members
