"""A plan in words, for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ediffi_jax.planning.collectives import summary
from ediffi_jax.planning.plan import GB, Plan
from ediffi_jax.training.mesh import AXES

EXPECTED = (0.3, 0.4, 0.5)  # shares of the peak that well-tuned runs reach: for days beyond the bound


def describe(plan: Plan) -> str:
    """All that is known, about thirty lines."""
    return "\n".join([*_what(plan), *_memory(plan), *_work(plan), *_sent(plan), *_time(plan)])


def _what(plan: Plan) -> Iterator[str]:
    topology, program = plan.topology, plan.program
    sizes = " ".join(f"{axis}={program.mesh.shape[axis]}" for axis in AXES)
    experts = program.phase.num_experts
    per_chip = program.images / topology.chips
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    yield f"{slices}{topology.jax_name} ({topology.cloud_name}), {topology.chips} chips; mesh {sizes}"
    yield (
        f"{experts} expert{'s' if experts > 1 else ''} of {plan.params / 1e6:,.1f} M parameters;"
        f" batch {program.batch_size} each, {per_chip:g} images a chip; remat {'on' if plan.remat else 'off'};"
        f" embeddings {plan.embeddings}"
    )


def _memory(plan: Plan) -> Iterator[str]:
    used, there = plan.measured.used / GB, plan.topology.chip.hbm_bytes / GB
    if plan.measured.memory is None:
        yield f"HBM of a chip: does not fit: {used:.1f} of {there:.1f} GB"
        yield f"  to try: {'; '.join(remedies(plan))}"
        return
    yield f"HBM of a chip: fits, {used:.2f} of {there:.1f} GB"
    for name, size in dataclasses.asdict(plan.measured.memory).items():
        yield f"  {name:<12}{size / GB:8.3f} GB"


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


def _sent(plan: Plan) -> Iterator[str]:
    devices = plan.topology.chip.devices_per_chip
    found = summary(plan.measured.collectives)
    if plan.measured.fits:
        yield "collectives of a step, payload of a chip:" + ("" if found else " none")
    for axes, networks in sorted(found.items()):
        for network, size in sorted(networks.items()):
            yield f"  along {axes:<12}{size * devices / GB:8.3f} GB over {network.upper()}"


def _time(plan: Plan) -> Iterator[str]:
    line = plan.roofline
    if line is None:
        return
    parts = ", ".join(f"{part} {getattr(line, f'{part}_seconds'):.3f}" for part in ("compute", "memory", "ici", "dcn"))
    yield f"step >= {line.seconds:.3f} s, limited by {line.limited_by} ({parts})"
    yield f"<= {plan.images_per_second:,.0f} images/s, MFU <= {100 * plan.mfu:.0f} %"
    days, hours = plan.days(), 24 * plan.topology.chips
    yield f"{plan.steps:,} steps >= {days:.2f} days, {days * hours:,.0f} chip-hours; at an MFU of"
    for mfu in EXPECTED:
        if mfu < plan.mfu:
            yield f"  {100 * mfu:.0f} %   {plan.days(mfu):8.2f} days  {plan.days(mfu) * hours:12,.0f} chip-hours"
