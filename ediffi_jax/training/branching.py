"""One branching by hand: a run's newest checkpoint becomes the first of a new workdir with more experts.

The new config is the old one with a phase appended; the phase before keeps the steps that were taken.
Nothing of the model is built: branching is a gather over the leading axis of whatever arrays are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from ediffi_jax import experts, stores
from ediffi_jax.training import checkpoint, config_files
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.config import validate
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.saving import Checkpoints
from ediffi_jax.training.schedule import Phase, check_phase, warn_of_strangers


def branch_workdir(
    old: str,
    new: str,
    *,
    cuts: tuple[float, ...],
    parents: tuple[int, ...],
    expert: int = -1,
    steps: int | None = None,
    overrides: Iterable[str] = (),
) -> epath.Path:
    """Writes a branched checkpoint and its config into a new workdir.

    Args:
        old: workdir of the run to branch.
        new: workdir to make.
        cuts: quantiles between the new experts.
        parents: for each of them the row of the old state it copies; empty for row 0.
        expert: -1 for all, else the one to take out.
        steps: of the new phase; None for as many as the phase before.
        overrides: `a.b=value` changes to the new config.

    Returns:
        The path of the new checkpoint.

    Raises:
        ConfigError: parents that do not fit, a new workdir that is in use.
        ExpertError: cuts out of order or outside (0, 1).
        CheckpointError: no checkpoint in `old`, or none that can be read.
    """
    state, position = checkpoint.load_newest(old)
    config = config_files.read_workdir(old)
    if config is None:
        raise ConfigError(f"{old} holds no run; expected a workdir that launch.train has written")
    if (stores.at(new) / "config.json").exists():
        raise ConfigError(f"--to={new} already holds a run; expected a new folder")
    last = config.phases[position.phase]
    phase = Phase(steps=last["steps"] if steps is None else steps, cuts=cuts, parents=parents, expert=expert)
    check_phase(phase, rows=len(position.expert_ids), name=f"branching {old}")
    append_phase(config, position, phase)
    config_files.override(config, overrides)
    phases = validate(config)
    warn_of_strangers(phases[position.phase : position.phase + 2])
    position = dataclasses.replace(
        position,
        phase=position.phase + 1,
        phase_step=0,
        cuts=phase.cuts,
        expert_ids=phase.expert_ids,
        config=config_files.to_json(config),
    )
    target = write_branched(state, stores.at(new), position, phase)
    config_files.write_workdir(new, config)  # last: a workdir with a config but no checkpoint would start afresh
    return target


def append_phase(config: ConfigDict, position: Position, phase: Phase) -> None:
    """Ends the schedule where the run stands, and lets `phase` follow."""
    before = config_files.to_json(config)["phases"][: position.phase + 1]
    before[-1]["steps"] = position.phase_step
    config.phases = config_files.from_json({"phases": [*before, dataclasses.asdict(phase)]}).phases


def write_branched(state: dict[str, Any], workdir: epath.Path, position: Position, phase: Phase) -> epath.Path:
    """Saves a state with every expert in its parent's place; returns the checkpoint's path."""
    branched = {name: experts.branch(state[name], phase.rows) for name in ("params", "ema", "opt_state")}
    target = Checkpoints(workdir).folder / str(position.step)
    ocp.save_checkpointables(target, {"state": {**state, **branched}}, overwrite=True, custom_metadata=dataclasses.asdict(position))
    return target
