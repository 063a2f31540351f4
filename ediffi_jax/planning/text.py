"""A plan in words, for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ediffi_jax.planning.chips import Chip
from ediffi_jax.planning.collectives import summary
from ediffi_jax.planning.measuring import Measured, Memory
from ediffi_jax.planning.plan import GB, Plan
from ediffi_jax.planning.roofline import PARTS, Roofline
from ediffi_jax.planning.topology import Topology
from ediffi_jax.planning.whole_run import lines
from ediffi_jax.training.mesh import AXES

EXPECTED = (0.3, 0.4, 0.5)  # shares of the peak that well-tuned runs reach: for days beyond the bound


def describe(plan: Plan, mfu: float = 0.4) -> str:
    """All that is known, about thirty lines; `mfu` is the share of the peak that all phases are counted with."""
    sent = collective_lines(plan.measured, plan.topology.chip, "of a step") if plan.measured.fits else ()
    return "\n".join([*_what(plan), *_memory(plan), *_work(plan), *sent, *_time(plan), *_run(plan, mfu)])


def where(topology: Topology) -> str:
    """A topology by its names."""
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    return f"{slices}{topology.jax_name} ({topology.cloud_name}), {topology.chips} chips"


def hbm_line(fits: bool, used: int, chip: Chip) -> str:
    """Whether it fits."""
    if not chip.hbm_bytes:
        return f"memory of a device: {used / GB:.2f} GB; what a {chip.name} has is not stated"
    there = f"{used / GB:.{2 if fits else 1}f} of {chip.hbm_bytes / GB:.1f} GB"
    return f"HBM of a chip: fits, {there}" if fits else f"HBM of a chip: does not fit: {there}"


def memory_lines(memory: Memory) -> Iterator[str]:
    """What is in HBM, line by line."""
    for name, size in dataclasses.asdict(memory).items():
        if size:
            yield f"  {name:<12}{size / GB:8.3f} GB"


def collective_lines(measured: Measured, chip: Chip, when: str) -> Iterator[str]:
    """What a chip sends, by axes and network."""
    found = summary(measured.collectives)
    yield f"collectives {when}, payload of a chip:" + ("" if found else " none")
    for axes, networks in sorted(found.items()):
        for network, size in sorted(networks.items()):
            yield f"  along {axes:<12}{size * chip.devices_per_chip / GB:8.3f} GB over {network.upper()}"


def parts_of_time(line: Roofline) -> str:
    """Seconds of each part of a bound."""
    return ", ".join(f"{part} {getattr(line, f'{part}_seconds'):.3f}" for part in PARTS)


def unstated(chip: Chip) -> Iterator[str]:
    """Why no time is given, where that is the chip's fault."""
    if not chip.peak_flops:
        yield f"time: not stated, the speed of a {chip.name} is not known here"


def _what(plan: Plan) -> Iterator[str]:
    topology, program = plan.topology, plan.program
    sizes = " ".join(f"{axis}={program.mesh.shape[axis]}" for axis in AXES)
    experts = program.phase.num_experts
    per_chip = program.images / topology.chips
    yield f"{where(topology)}; mesh {sizes}"
    yield (
        f"{experts} expert{'s' if experts > 1 else ''} of {plan.params / 1e6:,.1f} M parameters;"
        f" batch {program.batch_size} each, {per_chip:g} images a chip; remat {'on' if plan.remat else 'off'};"
        f" embeddings {plan.embeddings}"
    )


def _memory(plan: Plan) -> Iterator[str]:
    yield hbm_line(plan.measured.fits, plan.measured.used, plan.topology.chip)
    if plan.measured.memory is None:
        yield f"  to try: {'; '.join(remedies(plan))}"
        return
    yield from memory_lines(plan.measured.memory)


def remedies(plan: Plan) -> list[str]:
    """What makes a program smaller, the cheapest first."""
    found = [] if plan.remat else ["--config.model.remat=True"]
    if plan.embeddings == "live":
        found.append("--embeddings=precomputed")
    group = plan.program.mesh.shape["data"] * plan.program.mesh.shape["fsdp"]
    if plan.program.mesh.shape["data"] > 1:
        found.append(f"--mesh=data=1,fsdp={group}")
    half = plan.program.batch_size // 2
    if half and half % group == 0:
        found.append(f"--config.batch_size={half}")
    return [*found, f"more chips than {plan.topology.chips}, or chips with more memory"]


def _work(plan: Plan) -> Iterator[str]:
    measured = plan.measured
    model = f"FLOPs of a step: model {measured.model_flops / 1e12:,.1f} T"
    if measured.compiled_flops is None:
        yield model
    else:
        ratio = measured.compiled_flops / measured.model_flops
        yield f"{model}, compiled {measured.compiled_flops / 1e12:,.1f} T ({ratio:.2f} x)"
    yield f"compiled in {measured.compile_seconds:.0f} s; checkpoint {plan.checkpoint_bytes / GB:.1f} GB"


def _time(plan: Plan) -> Iterator[str]:
    line = plan.roofline
    if line is None:
        yield from unstated(plan.topology.chip)
        return
    yield f"step >= {line.seconds:.3f} s, limited by {line.limited_by} ({parts_of_time(line)})"
    yield f"<= {plan.images_per_second:,.0f} images/s, MFU <= {100 * plan.mfu:.0f} %"
    days, hours = plan.days(), 24 * plan.topology.chips
    yield f"{plan.steps:,} steps >= {days:.2f} days, {days * hours:,.0f} chip-hours; at an MFU of"
    for mfu in EXPECTED:
        if mfu < plan.mfu:
            yield f"  {100 * mfu:.0f} %   {plan.days(mfu):8.2f} days  {plan.days(mfu) * hours:12,.0f} chip-hours"


def _run(plan: Plan, mfu: float) -> Iterator[str]:
    if plan.roofline:
        yield from lines(plan.run, plan.roofline.seconds, plan.step_seconds(mfu), mfu, plan.topology.chips)
