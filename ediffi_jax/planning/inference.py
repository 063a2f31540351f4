"""Plans of sampling and of encoding: what one host does by itself, times hosts.

Neither sends anything between hosts: a cascade samples, and `launch.encode` encodes, on the chips of its own process.
So the programs are compiled for one host, and so many hosts make so many times the pictures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from ediffi_jax.data.config import DataConfig
from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.planning.collectives import summary
from ediffi_jax.planning.encoding import EncodeProgram, encode_programs
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.flops import global_flops
from ediffi_jax.planning.measuring import Measured, measure
from ediffi_jax.planning.meshes import make_mesh
from ediffi_jax.planning.plan import GB, phase_of, roofline
from ediffi_jax.planning.program import encoders_of
from ediffi_jax.planning.roofline import Roofline
from ediffi_jax.planning.sampling import SampleProgram, evaluations, flops_of_all, flops_of_one, sample_program
from ediffi_jax.planning.topology import Topology
from ediffi_jax.training.embedder import program_length
from ediffi_jax.training.mesh import AXES

IMAGES = 1_000_000  # that chip-hours are stated for
SAMPLED, ENCODED = 8, 16  # images a chip at a time: the cascade's default, and `launch.encode`'s on four chips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One program of a host.

    Attributes:
        program: what was compiled.
        measured: what the compiler said.
        roofline: least time of a run; None if it does not fit.
    """

    program: SampleProgram | EncodeProgram
    measured: Measured
    roofline: Roofline | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """What pictures cost, or embeddings.

    Attributes:
        what: "sample" or "encode".
        topology: all chips.
        host: those of one process.
        parts: programs by name; each picture goes through all of them.
        facts: what else a reader wants to know, for `to_json` and for words.
    """

    what: str
    topology: Topology
    host: Topology
    parts: Mapping[str, Part]
    facts: Mapping[str, Any]

    @property
    def first(self) -> Part:
        """The part that says how large a batch is and how devices are laid out."""
        return next(iter(self.parts.values()))

    @property
    def fits(self) -> bool:
        """Whether all programs do."""
        return all(part.measured.fits for part in self.parts.values())

    @property
    def used(self) -> int:
        """Bytes of HBM of a chip, of the larger program; weights that both use lie there once."""
        return max(part.measured.used for part in self.parts.values())

    @property
    def images(self) -> int:
        """Of one run of all parts, on a host."""
        return self.first.program.images

    @property
    def seconds(self) -> float:
        """At the least, of one run of all parts; infinite if they do not fit, or a chip's speed is not stated."""
        return sum(part.roofline.seconds if part.roofline else math.inf for part in self.parts.values())

    @property
    def model_flops(self) -> float:
        """Of one picture."""
        return sum(part.measured.model_flops for part in self.parts.values()) / self.images

    @property
    def images_per_second(self) -> float:
        """At the most, of all chips; 0 if it does not fit, or a chip's speed is not stated."""
        return self.images / self.seconds * self.topology.chips / self.host.chips

    @property
    def mfu(self) -> float:
        """At the most: share of the chips' peak that the model's own FLOPs could take; 0 as above."""
        if not self.images_per_second:
            return 0.0
        return self.images_per_second * self.model_flops / (self.topology.chips * self.topology.chip.peak_flops)

    def chip_hours(self, images: float = IMAGES, mfu: float | None = None) -> float:
        """Of so many images: at the bound, or at a share of the peak that one expects; infinite as above."""
        if not self.images_per_second:
            return math.inf
        if mfu is None:
            return images / self.images_per_second * self.topology.chips / 3600
        return images * self.model_flops / (mfu * self.topology.chip.peak_flops) / 3600

    def to_json(self) -> dict[str, Any]:
        """Flat, for machines. Bytes of HBM and of collectives of one chip; FLOPs of one picture."""
        chip, mesh, timed = self.topology.chip, self.first.program.mesh, self.images_per_second > 0
        compiled = [part.measured.compiled_flops for part in self.parts.values()]
        hbm = {
            name: {k: v / GB for k, v in dataclasses.asdict(part.measured.memory).items()}
            for name, part in self.parts.items()
            if part.measured.memory
        }
        return {
            "what": self.what,
            "fits": self.fits,
            "topology": self.topology.jax_name,
            "cloud_name": self.topology.cloud_name,
            "slices": self.topology.slices,
            "chips": self.topology.chips,
            "chips_per_host": self.host.chips,
            "mesh": {axis: mesh.shape[axis] for axis in AXES},
            "batch_per_chip": self.images / self.host.chips,
            "hbm_used_gb": self.used / GB,
            "hbm_available_gb": chip.hbm_bytes / GB,
            "hbm_gb": hbm,
            "model_flops_per_image": self.model_flops,
            "compiled_flops_per_image": sum(compiled) / self.images if self.fits else None,
            "compile_seconds": sum(part.measured.compile_seconds for part in self.parts.values()),
            "run_seconds_bound": self.seconds if timed else None,
            "limited_by": {name: part.roofline.limited_by for name, part in self.parts.items() if part.roofline},
            "images_per_second_bound": self.images_per_second,
            "seconds_per_image_bound": self.seconds / self.images * self.host.chips if timed else None,
            "mfu_bound": self.mfu,
            "chip_hours_per_million_bound": self.chip_hours() if timed else None,
            "collective_bytes": {
                name: {
                    axes: {network: size * chip.devices_per_chip for network, size in by.items()}
                    for axes, by in summary(part.measured.collectives).items()
                }
                for name, part in self.parts.items()
            },
            **self.facts,
        }


def plan_sampling(
    config: ConfigDict, topology: Topology, *, phase: int = -1, batch_per_chip: int = SAMPLED, effort: str = "quick"
) -> InferencePlan:
    """Compiles the sampling program of a recipe's stage.

    Args:
        config: a recipe.
        topology: chips to sample on.
        phase: after which of its phases.
        batch_per_chip: pictures a chip makes at a time.
        effort: of the compiler, as in `measuring.measure`.

    Raises:
        UserError: what does not fit together, in one line.
    """
    host = topology.host
    mesh = make_mesh(host, expert=1, data=-1, fsdp=1)
    program = sample_program(config, phase_of(config, phase), mesh, batch_per_chip * host.chips)
    spec = program.stage.spec
    settings, times, one = spec.sampler, evaluations(spec.sampler), flops_of_one(program)
    measured = measure(program, topology.chip, times * one, effort, executed=times * one / flops_of_all(program))
    reads = times / spec.ensemble.num_experts  # each evaluation reads one expert
    facts = {
        "stage": spec.name,
        "resolution": spec.resolution,
        "experts": spec.ensemble.num_experts,
        "params": sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(program.stage.params)),
        "sampler": settings.name,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "evaluations": times,
    }
    part = Part(program=program, measured=measured, roofline=roofline(measured, host, reads=reads, writes=0))
    return InferencePlan(what="sample", topology=topology, host=host, parts={spec.name: part}, facts=facts)


def plan_encoding(
    config: ConfigDict,
    topology: Topology,
    mesh: Mapping[str, int] | None = None,
    *,
    int8: bool = False,
    caption_tokens: int,
    batch_per_chip: int = ENCODED,
    effort: str = "quick",
) -> InferencePlan:
    """Compiles the programs of `launch.encode`.

    Args:
        config: a recipe; its encoders are those of the paper where they are not on this machine.
        topology: chips to encode on.
        mesh: sizes of `data` and `fsdp` over the chips of a host; default all `fsdp`.
        int8: tokens stored as int8.
        caption_tokens: T5 tokens of the longest caption of a batch.
        batch_per_chip: captions, and pictures, of a chip at a time.
        effort: of the compiler.

    Raises:
        UserError: what does not fit together, in one line.
    """
    if not config.encoders:
        raise PlanError("the recipe has no encoders, so nothing is encoded; expected one without ':synthetic'")
    host, sizes = topology.host, {"data": 1, "fsdp": -1} | dict(mesh or {})
    laid = make_mesh(host, expert=1, data=sizes["data"], fsdp=sizes["fsdp"])
    encoders = encoders_of(config, laid)
    pixels = DataConfig.parse({**config.data, "name": "synthetic", "embeddings": ""}).clip_resolution
    rows = RowFormat(spec=encoders.spec, int8=int8, pictures=pixels > 0)
    caption_tokens = min(caption_tokens, encoders.spec.t5_tokens)
    length = program_length(caption_tokens, encoders.spec.t5_tokens)
    programs = encode_programs(encoders, rows, laid, batch_per_chip * host.chips, length, pixels)
    parts = {}
    for name, program in programs.items():
        flops = global_flops(program.run, program.params, program.inputs)
        measured = measure(program, topology.chip, flops, effort)
        parts[name] = Part(program=program, measured=measured, roofline=roofline(measured, host, writes=0))
    size = rows.row_bytes(caption_tokens, min(caption_tokens, encoders.spec.clip_tokens))
    facts = {"stored": "int8" if int8 else "bfloat16", "t5_tokens": length, "bytes_per_caption": size}
    return InferencePlan(what="encode", topology=topology, host=host, parts=parts, facts=facts)
