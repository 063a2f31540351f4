"""Where embeddings should come from: T5 and CLIP in every step, or prepared once, in bfloat16 or int8; as a table.

    step    = FLOPs traced (rematerialisation included) / peak                  a bound by arithmetic alone
    read    = bytes of a caption * images/s at the MFU that one expects         what storage must deliver
    stored  = bytes of a caption * pairs                                        trimmed rows, data/embedding_rows.py
    encode  = FLOPs of `launch.encode`'s programs * pairs / (peak * MFU)        once
    phase   = model FLOPs of a step * steps / (peak * MFU)

Nothing is compiled: both formats are what `launch.encode` writes and training reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.planning.encoding import encode_programs
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.flops import global_flops
from ediffi_jax.planning.measuring import shard_bytes
from ediffi_jax.planning.meshes import make_mesh
from ediffi_jax.planning.plan import GB, mesh_of, model_flops, phase_of
from ediffi_jax.planning.program import EMBEDDINGS, encoders_of, train_program
from ediffi_jax.planning.topology import Topology
from ediffi_jax.training.embedder import program_length

PAIRS = 1_000_000_000  # of the paper's data set, about (eDiff-I, Sec. 5)
# Dollars for 2^30 bytes and a month: the list price of Standard storage in us-central1
# (https://cloud.google.com/storage/pricing, as of 2022-12-30; the page's worked example has the same).
STORAGE_PRICE = 0.020
TERA = 1e12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One row of the table.

    Attributes:
        name: "live", "precomputed" (bfloat16) or "int8".
        step_seconds: at the peak, arithmetic alone.
        weights: bytes of encoders on a chip.
        read: bytes a second from storage, over all chips.
        stored: bytes.
        dollars: a month, of the storage.
        encode_hours: chip-hours, once.
        phase_hours: chip-hours of the phase's steps.
    """

    name: str
    step_seconds: float
    weights: int
    read: float
    stored: float
    dollars: float
    encode_hours: float
    phase_hours: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What nobody can read off a program.

    Attributes:
        pairs: captions with pictures in the data set.
        caption_tokens: of a caption on average, T5's and CLIP's alike.
        mfu: share of the peak that a run is expected to reach.
        price: dollars for 2^30 bytes and a month.
    """

    pairs: int = PAIRS
    caption_tokens: int = 32
    mfu: float = 0.4
    price: float = STORAGE_PRICE

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise PlanError(f"--mfu={self.mfu}; expected a share of the peak above 0, at most 1")
        if min(self.pairs, self.caption_tokens) < 1 or self.price < 0:
            raise PlanError("--pairs and --caption_tokens are to be 1 or more, --storage_price 0 or more")


def compare_sources(
    config: ConfigDict, topology: Topology, sizes: Mapping[str, int] | None, phase: int, assumed: Assumptions
) -> tuple[Source, ...]:
    """The table's rows, one for each of `program.EMBEDDINGS`.

    Args:
        config: a recipe with encoders.
        topology: chips to train and encode on.
        sizes: of the training mesh's axes; None are the recipe's.
        phase: whose steps are counted.
        assumed: the data set and its price.

    Raises:
        UserError: what does not fit together, in one line.
    """
    if not config.encoders:
        raise PlanError("the recipe has no encoders; expected one without ':synthetic'")
    if not topology.chip.peak_flops:
        raise PlanError(f"the speed of a {topology.chip.name} is not known here; expected a TPU's topology")
    chosen, chip = phase_of(config, phase), topology.chip
    laid = mesh_of(config, chosen, topology, sizes)
    encoders, pixels = encoders_of(config, laid), config.data.clip_resolution
    length = min(assumed.caption_tokens, encoders.spec.t5_tokens)
    once, counted = encode_flops(config, topology, length), {}
    for name in ("live", "precomputed"):
        program = train_program(config, chosen, laid, name)
        executed = global_flops(program.step, *program.arguments)
        counted[name] = program, executed, model_flops(config, chosen, laid, name)

    def row(name: str) -> Source:
        prepared = name != "live"
        program, executed, flops = counted["precomputed" if prepared else "live"]  # scaling int8 is no product
        seconds = flops / (topology.chips * chip.peak_flops * assumed.mfu)
        rows = RowFormat(spec=encoders.spec, int8=name == "int8", pictures=pixels > 0)
        size = rows.row_bytes(length, min(assumed.caption_tokens, encoders.spec.clip_tokens)) if prepared else 0.0
        stored = size * assumed.pairs
        return Source(
            name=name,
            step_seconds=executed / (topology.chips * chip.peak_flops),
            weights=chip.devices_per_chip * shard_bytes(program.frozen),
            read=size * program.images / seconds,
            stored=stored,
            dollars=stored / 2**30 * assumed.price,
            encode_hours=prepared * once * assumed.pairs / (chip.peak_flops * assumed.mfu) / 3600,
            phase_hours=chosen.steps * seconds / 3600 * topology.chips,
        )

    return tuple(row(name) for name in EMBEDDINGS)


def encode_flops(config: ConfigDict, topology: Topology, length: int) -> float:
    """FLOPs of encoding one caption of so many T5 tokens, in the program that holds it, and its picture."""
    host = topology.host
    laid = make_mesh(host, expert=1, data=1, fsdp=-1)
    encoders = encoders_of(config, laid)
    rows = RowFormat(spec=encoders.spec, pictures=config.data.clip_resolution > 0)
    longest = program_length(length, encoders.spec.t5_tokens)
    programs = encode_programs(encoders, rows, laid, host.devices, longest, config.data.clip_resolution)
    found = (global_flops(one.run, one.params, one.inputs) for one in programs.values())
    return sum(found) / host.devices


def describe(rows: Sequence[Source], assumed: Assumptions) -> str:
    """The table, and what it assumes."""
    return "\n".join(_lines(rows, assumed))


def _lines(rows: Sequence[Source], assumed: Assumptions) -> Iterator[str]:
    heads = ("step >= s", "weights GB", "read GB/s", "stored TB", "$ a month", "encode once", "this phase")
    yield f"{'embeddings':<12}" + "".join(f"{head:>13}" for head in heads)
    for row in rows:
        cells = (
            f"{row.step_seconds:.3f}", f"{row.weights / GB:.3f}", f"{row.read / GB:.2f}", f"{row.stored / TERA:,.1f}",
            f"{row.dollars:,.0f}", f"{row.encode_hours:,.0f}", f"{row.phase_hours:,.0f}",
        )  # fmt: skip
        yield f"{row.name:<12}" + "".join(f"{cell:>13}" for cell in cells)
    yield (
        f"for {assumed.pairs:,} pairs of {assumed.caption_tokens} tokens, {assumed.price:g} dollars a GiB and month,"
        f" {100 * assumed.mfu:g} % MFU"
    )
    yield "weights: encoders on a chip; encode, phase: chip-hours; step: arithmetic alone, nothing was compiled"


def to_json(rows: Sequence[Source], assumed: Assumptions) -> dict[str, Any]:
    """For machines: {name: row} and the assumptions."""
    return {**dataclasses.asdict(assumed), "sources": {row.name: dataclasses.asdict(row) for row in rows}}
