"""Which mesh, batch and rematerialisation suit a topology: many estimated, a handful compiled, the best first.

The batch is the recipe's, as it is part of how a model is trained; where nothing holds it, it is halved until
something does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.estimate import Costs, Estimate, Shape, costs_of
from ediffi_jax.planning.plan import GB, Plan, make_plan, phase_of
from ediffi_jax.planning.topology import Topology
from ediffi_jax.training.errors import TrainingError
from ediffi_jax.training.slices import slices_along

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to lay the step out.

    Attributes:
        shape: which.
        estimate: what it is thought to take.
        plan: what the compiler said; None if it was not compiled.
    """

    shape: Shape
    estimate: Estimate
    plan: Plan | None = None

    @property
    def order(self) -> tuple[bool, float, float]:
        """Smaller is better: what fits first, then seconds an image, then memory."""
        if self.plan is None:
            return not self.estimate.fits, self.estimate.seconds / self.shape.batch_size, self.estimate.hbm
        seconds = self.plan.roofline.seconds if self.plan.roofline else 0.0
        return not self.plan.measured.fits, seconds / self.shape.batch_size, self.plan.measured.used


def search(
    config: ConfigDict,
    topology: Topology,
    *,
    most: int,
    phase: int = 0,
    embeddings: str = "live",
    effort: str = "quick",
    fixed: Mapping[str, int] | None = None,
    say: Say = lambda line: None,
) -> list[Candidate]:
    """Compiles the most promising ways.

    Args:
        config: a recipe.
        topology: chips to train on.
        most: how many to compile at most.
        phase: of the recipe.
        embeddings: as in `program.train_program`.
        effort: of the compiler, as in `measuring.measure`.
        fixed: sizes of axes that are not searched.
        say: gets a line before each compilation.

    Returns:
        Those compiled, the best first.

    Raises:
        UserError: no mesh fits the chips, in one line.
    """
    costs = costs_of(config, phase_of(config, phase), topology, embeddings)
    chosen = handful(candidates(config, topology, costs, fixed or {}), most)
    found = []
    for one in chosen:
        say(f"compiling {len(found) + 1} of {len(chosen)}: {one.shape.flags()}")
        changed = ConfigDict(config.to_dict())
        changed.batch_size, changed.model.remat = one.shape.batch_size, one.shape.remat
        plan = make_plan(changed, topology, one.shape.sizes, phase=phase, embeddings=embeddings, effort=effort)
        found.append(dataclasses.replace(one, plan=plan))
    return sorted(found, key=lambda one: one.order)


def handful(ranked: Sequence[Candidate], most: int) -> list[Candidate]:
    """The most promising; if all of them have the same rematerialisation, the last makes room for the other's best."""
    chosen = list(ranked[:most])
    other = [one for one in ranked if one.shape.remat != chosen[0].shape.remat]
    if most > 1 and other and all(one.shape.remat == chosen[0].shape.remat for one in chosen):
        chosen[-1 if len(chosen) == most else len(chosen) :] = other[:1]
    return chosen


def candidates(config: ConfigDict, topology: Topology, costs: Costs, fixed: Mapping[str, int]) -> list[Candidate]:
    """All ways, the most promising first. Raises PlanError if the chips cannot be laid out at all."""
    batch = config.batch_size
    while batch:
        shapes = [
            Shape(**sizes, batch_size=batch, remat=remat)
            for sizes in meshes(topology, costs.experts, fixed)
            for remat in (False, True)
            if batch % (sizes["data"] * sizes["fsdp"] * costs.accumulate) == 0
        ]
        found = [Candidate(shape=shape, estimate=costs.estimate(shape, topology)) for shape in shapes]
        if any(one.estimate.fits for one in found):
            return sorted(found, key=lambda one: one.order)
        batch //= 2
    raise PlanError(
        f"no mesh of {topology.devices} devices holds the recipe by any estimate, at any batch; expected more chips"
        " than that, chips with more memory, a smaller model, or other sizes in --mesh"
    )


def meshes(topology: Topology, experts: int, fixed: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """All sizes of the axes that use every device, with each slice where the least is sent between them."""
    devices = topology.devices
    for expert in (n for n in range(1, experts + 1) if experts % n == 0 and devices % n == 0):
        group = devices // expert
        for data in (n for n in range(1, group + 1) if group % n == 0):
            sizes = {"expert": expert, "data": data, "fsdp": group // data}
            if any(size not in (-1, sizes[axis]) for axis, size in fixed.items()):
                continue
            try:
                slices_along(tuple(sizes.values()), topology.slices)
            except TrainingError:
                continue
            yield sizes


def describe(found: Sequence[Candidate]) -> str:
    """The compiled ones as a table, and the flags of the best."""
    return "\n".join(_lines(found))


def _lines(found: Sequence[Candidate]) -> Iterator[str]:
    heads = ("batch", "remat", "HBM GB", "guessed", "step >= s", "images/s", "MFU <=", "limited by")
    yield f"{'expert x data x fsdp':<22}" + "".join(f"{head:>11}" for head in heads)
    for one in found:
        plan, shape = one.plan, one.shape
        line = plan.roofline
        cells = (
            f"{shape.batch_size:,}", "on" if shape.remat else "off", f"{plan.measured.used / GB:.2f}",
            f"{one.estimate.hbm / GB:.2f}", f"{line.seconds:.3f}" if line else "-",
            f"{plan.images_per_second:,.0f}" if line else "-", f"{100 * plan.mfu:.0f} %" if line else "-",
            line.limited_by if line else ("not stated" if plan.measured.fits else "no room"),
        )  # fmt: skip
        mesh = f"{shape.expert} x {shape.data} x {shape.fsdp}"
        yield f"{mesh:<22}" + "".join(f"{cell:>11}" for cell in cells)
    best = found[0]
    if best.plan.measured.fits:
        yield f"best: {best.shape.flags()}"
    else:
        yield "none of them fits; try --embeddings=precomputed, a smaller --config.batch_size, or more chips"


def to_json(found: Sequence[Candidate]) -> dict[str, Any]:
    """For machines: the plans, the best first, with what was guessed."""
    plans = [
        {**one.plan.to_json(), "hbm_guessed_gb": one.estimate.hbm / GB, "flags": one.shape.flags()} for one in found
    ]
    return {"fits": found[0].plan.measured.fits, "candidates": plans}
