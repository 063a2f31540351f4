"""One question about a recipe, and its answer in words, for machines, and whether it fits: `launch.plan`."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ediffi_jax.planning import embedding_costs, inference, inference_text, plan, search, text
from ediffi_jax.planning.embedding_costs import Assumptions
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.topology import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked beside recipe and chips.

    Attributes:
        what: of `WHAT`.
        phase: of the recipe; None is the first for training, the last for sampling.
        mesh: sizes of its axes instead of the recipe's; None are the recipe's.
        embeddings: "live", "precomputed" or "int8".
        effort: of the compiler, as in `measuring.measure`.
        batch_per_chip: of sampling and encoding; 0 for their defaults.
        search: candidates to compile for training; 0 plans what is asked for.
        assumed: of the data set.
    """

    what: str = "train"
    phase: int | None = None
    mesh: Mapping[str, int] | None = None
    embeddings: str = "live"
    effort: str = "quick"
    batch_per_chip: int = 0
    search: int = 0
    assumed: Assumptions = Assumptions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found.

    Attributes:
        words: for a terminal.
        machine: for `json.dumps`.
        fits: False if the compiler found no room.
        plan: to be drawn; None if there is nothing to draw.
    """

    words: str
    machine: dict[str, Any]
    fits: bool = True
    plan: plan.Plan | inference.InferencePlan | None = None


def answer(config: ConfigDict, topology: Topology, question: Question) -> Answer:
    """Compiles what the question needs. Raises UserError: what does not fit together, in one line."""
    if question.search and question.what != "train":
        raise PlanError(f"--search is of --what=train; {question.what} has nothing to search")
    return WHAT[question.what](config, topology, question)


def train(config: ConfigDict, topology: Topology, question: Question) -> Answer:
    """The train step of a phase, or the best of a search."""
    if question.search:
        found = search.search(
            config, topology, most=question.search, phase=question.phase or 0, embeddings=question.embeddings,
            effort=question.effort, fixed=question.mesh, say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        best = found[0].plan
        words = "\n".join([search.describe(found), "", text.describe(best, question.assumed.mfu)])
        return Answer(words=words, machine=search.to_json(found), fits=best.measured.fits, plan=best)
    made = plan.make_plan(
        config, topology, question.mesh, phase=question.phase or 0, embeddings=question.embeddings,
        effort=question.effort,
    )  # fmt: skip
    words = text.describe(made, question.assumed.mfu)
    return Answer(words=words, machine=made.to_json(), fits=made.measured.fits, plan=made)


def sample(config: ConfigDict, topology: Topology, question: Question) -> Answer:
    """The sampling program of the stage."""
    if question.mesh:
        raise PlanError("--mesh is of training and encoding; sampling keeps all experts on every chip")
    phase = -1 if question.phase is None else question.phase
    batch = question.batch_per_chip or inference.SAMPLED
    made = inference.plan_sampling(config, topology, phase=phase, batch_per_chip=batch, effort=question.effort)
    return Answer(words=inference_text.describe(made), machine=made.to_json(), fits=made.fits, plan=made)


def encode(config: ConfigDict, topology: Topology, question: Question) -> Answer:
    """The programs of `launch.encode`."""
    made = inference.plan_encoding(
        config, topology, question.mesh, int8=question.embeddings == "int8",
        caption_tokens=question.assumed.caption_tokens, batch_per_chip=question.batch_per_chip or inference.ENCODED,
        effort=question.effort,
    )  # fmt: skip
    pairs, hours = question.assumed.pairs, made.chip_hours(question.assumed.pairs)
    stored = pairs * made.facts["bytes_per_caption"] / 1e12
    words = [inference_text.describe(made), f"{pairs:,} pairs: {stored:,.1f} TB"]
    if math.isfinite(hours):
        expected = made.chip_hours(pairs, question.assumed.mfu)
        words[-1] += (
            f", >= {hours / topology.chips / 24:,.2f} days and {hours:,.0f} chip-hours;"
            f" at an MFU of {100 * question.assumed.mfu:g} % {expected:,.0f} chip-hours"
        )
    machine = {**made.to_json(), "pairs": pairs, "chip_hours_bound": hours if math.isfinite(hours) else None}
    return Answer(words="\n".join(words), machine=machine, fits=made.fits, plan=made)


def embeddings(config: ConfigDict, topology: Topology, question: Question) -> Answer:
    """The table of live and prepared embeddings."""
    rows = embedding_costs.compare_sources(
        config, topology, question.mesh, question.phase or 0, question.assumed
    )  # fmt: skip
    machine = embedding_costs.to_json(rows, question.assumed)
    return Answer(words=embedding_costs.describe(rows, question.assumed), machine=machine)


WHAT = {"train": train, "sample": sample, "encode": encode, "embeddings": embeddings}
