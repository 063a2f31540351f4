"""A plan of sampling or encoding in words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from ediffi_jax.planning.inference import IMAGES, InferencePlan
from ediffi_jax.planning.text import EXPECTED, collective_lines, hbm_line, memory_lines, parts_of_time, unstated, where
from ediffi_jax.training.mesh import AXES


def describe(plan: InferencePlan) -> str:
    """All that is known, about twenty lines."""
    return "\n".join([*_what(plan), *_memory(plan), *_work(plan), *_time(plan)])


def _what(plan: InferencePlan) -> Iterator[str]:
    hosts, mesh = plan.topology.chips // plan.host.chips, plan.first.program.mesh
    sizes = " ".join(f"{axis}={mesh.shape[axis]}" for axis in AXES)
    each = f"{hosts} hosts of {plan.host.chips} chips, each by itself" if hosts > 1 else "one host"
    yield f"{where(plan.topology)}: {each}; mesh of a host {sizes}"
    facts, each = plan.facts, f"{plan.images // plan.host.chips} a chip at a time"
    if plan.what == "encode":
        yield f"captions of up to {facts['t5_tokens']} T5 tokens and pictures, {each}; stored as {facts['stored']}"
        return
    count, size = facts["experts"], f"{facts['params'] / 1e6:,.1f} M parameters"
    experts = f"{count} expert{'s' if count > 1 else ''} of {size}"
    passes = f"guidance {facts['guidance']:g}" + (" in two passes each" if facts["guidance"] else "")
    yield f"stage {facts['stage']}, {facts['resolution']}x{facts['resolution']}; {experts}; {each}"
    yield f"{facts['sampler']}, {facts['steps']} steps, {facts['evaluations']} evaluations; {passes}"


def _memory(plan: InferencePlan) -> Iterator[str]:
    yield hbm_line(plan.fits, plan.used, plan.topology.chip)
    if not plan.fits:
        yield f"  to try: {'; '.join(remedies(plan))}"
    for name, part in plan.parts.items():
        if part.measured.memory:
            yield from ([f"  {name}:"] if len(plan.parts) > 1 else [])
            yield from memory_lines(part.measured.memory)


def remedies(plan: InferencePlan) -> list[str]:
    """What makes the programs smaller, the cheapest first."""
    each = plan.images // plan.host.chips
    found = [f"--batch_per_chip={each // 2}"] if each > 1 else []
    if plan.what == "encode" and plan.first.program.mesh.shape["data"] > 1:
        found.append("--mesh=data=1,fsdp=-1")
    return [*found, "chips with more memory"]


def _work(plan: InferencePlan) -> Iterator[str]:
    line = f"FLOPs of an image: model {plan.model_flops / 1e12:,.2f} T"
    if plan.fits:
        compiled = plan.to_json()["compiled_flops_per_image"]
        line += f", compiled {compiled / 1e12:,.2f} T ({compiled / plan.model_flops:.2f} x)"
    yield line
    yield f"compiled in {sum(part.measured.compile_seconds for part in plan.parts.values()):.0f} s"
    for name, part in plan.parts.items():
        if part.measured.fits:
            yield from collective_lines(part.measured, plan.topology.chip, f"of a run of {name}")


def _time(plan: InferencePlan) -> Iterator[str]:
    for name, part in plan.parts.items():
        if part.roofline:
            yield (
                f"{name}: {part.program.images} on a host >= {part.roofline.seconds:.3f} s,"
                f" limited by {part.roofline.limited_by} ({parts_of_time(part.roofline)})"
            )
    if not plan.images_per_second:
        yield from unstated(plan.topology.chip)
        return
    alone = plan.seconds / plan.images * plan.host.chips
    yield f"<= {plan.images_per_second:,.1f} images/s of all chips, MFU <= {100 * plan.mfu:.0f} %"
    yield f">= {alone:.4g} s an image on one chip"
    yield f"{IMAGES:,} images >= {plan.chip_hours():,.1f} chip-hours; at an MFU of"
    for mfu in EXPECTED:
        if mfu < plan.mfu:
            seconds = 3600 * plan.chip_hours(1, mfu)
            yield f"  {100 * mfu:.0f} %   {seconds:10.4g} s an image  {plan.chip_hours(mfu=mfu):12,.1f} chip-hours"
