"""Training workdirs as stages: the EMA weights of the newest checkpoint, and runs stacked into an ensemble.

    workdir/checkpoints/<step>   Orbax; one tree `state`, of which only `ema` is read, and as JSON in its
                                 metadata the config, the cuts, and which experts of the partition it holds

Experts may be trained together or one a run; `stack_runs` joins runs whose intervals tile [0, 1].
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from ediffi_jax import stores
from ediffi_jax.experts import Ensemble
from ediffi_jax.release.commits import FOLDER, committed, folder_of
from ediffi_jax.release.files import Release
from ediffi_jax.release.places import CASCADE_FILE, bundled_encoders, find, place
from ediffi_jax.release.spec import ReleaseError, StageSpec, sampler_from_json

CHECKPOINT_FORMAT = 1
# What a file that is missing, cut short or altered raises in Orbax and TensorStore.
DAMAGE = (OSError, ValueError, KeyError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a training run has to offer.

    Attributes:
        workdir: where it is.
        spec: the stage it trains; its cuts are those of the whole partition.
        ema: nested host arrays, leaves [E, ...].
        intervals: quantile interval (low, high) of each expert held.
        encoders: its config's: a folder or a bundled name, perhaps of another machine.
        fingerprint: of those encoders when the checkpoint was written.
        trained: steps, images and settings worth recording.
    """

    workdir: epath.Path
    spec: StageSpec
    ema: Mapping[str, Any]
    intervals: tuple[tuple[float, float], ...]
    encoders: str
    fingerprint: str
    trained: Mapping[str, Any]


def is_workdir(folder: str | os.PathLike) -> bool:
    """Whether a folder is a training workdir (and no release)."""
    folder = stores.at(folder)
    with stores.reaching(folder):
        return (folder / FOLDER).is_dir() and not (folder / CASCADE_FILE).exists()


def read_workdir(workdir: str | os.PathLike) -> Run:
    """Reads the newest readable checkpoint; a damaged one is named in the log and passed over.

    Raises:
        ReleaseError: no checkpoint, none readable, one of a later format, or a run without encoders.
    """
    workdir = stores.at(workdir).expanduser()
    folder = folder_of(workdir)
    with stores.reaching(folder):
        found = committed(folder)
    if not found:
        raise ReleaseError(f"{workdir} holds no checkpoint; expected the workdir of a launch.train that has saved")
    for path in reversed(found.values()):
        try:
            position, ema = _read_checkpoint(path)
            return _run(workdir, position, ema)
        except TimeoutError:
            raise  # it may be whole
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            logging.warning("checkpoint %s is damaged (%s); trying the one before it", path, reason)
    raise ReleaseError(f"every checkpoint in {folder} is damaged: {', '.join(map(str, found))}")


def _read_checkpoint(path: epath.Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The position and the EMA of one checkpoint; nothing else of it is read from disk."""
    from orbax.checkpoint import v1 as ocp  # a second of import that sampling from a release does not need

    metadata = ocp.checkpointables_metadata(path)
    position, saved = metadata.custom_metadata, metadata.metadata.get("state")
    if not isinstance(position, Mapping) or saved is None:  # Orbax gives None for what it cannot open
        raise OSError("its arrays cannot be opened" if saved is None else f"its position is {str(position)[:80]!r}")
    if position["format"] > CHECKPOINT_FORMAT:
        raise ReleaseError(f"{path} has format {position['format']}; this version reads up to {CHECKPOINT_FORMAT}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    tree = {name: jax.tree.map(lambda _: ocp.PLACEHOLDER, part) for name, part in saved.items()}
    tree["ema"] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved["ema"])
    return position, jax.tree.map(np.asarray, ocp.load_checkpointables(path, {"state": tree})["state"]["ema"])


def _sampling_defaults(workdir: epath.Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with how to sample taken from config.json, where it may be changed after training.

    Raises:
        ReleaseError: config.json is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        return config
    try:
        now = json.loads(path.read_text())
        return {**config, "sampler": now["sampler"], "aug": {**config["aug"], "level": now["aug"]["level"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path} cannot be read ({type(error).__name__}: {error}); expected a run's config") from error


def _run(workdir: epath.Path, position: Mapping[str, Any], ema: Mapping[str, Any]) -> Run:
    config = _sampling_defaults(workdir, position["config"])
    if not config["encoders"]:
        raise ReleaseError("the run was trained without encoders (config.encoders is empty); a cascade needs them")
    data = config["data"]
    model = {key: value for key, value in config["model"].items() if key != "dtype"}
    spec = StageSpec(
        name=config["stage"],
        resolution=data["resolution"],
        low_resolution=data["low_resolution"],
        model=model,
        cuts=tuple(position["cuts"]),
        noise=dict(config["noise"]),
        sigma_data=config["sigma_data"],
        sampler=sampler_from_json(config["sampler"], f"{workdir}: config.sampler"),
        aug_level=config["aug"]["level"],
    )
    intervals = Ensemble(cuts=spec.cuts).intervals
    return Run(
        workdir=workdir,
        spec=spec,
        ema=ema,
        intervals=tuple((intervals[i].low, intervals[i].high) for i in position["expert_ids"]),
        encoders=config["encoders"],
        fingerprint=position["encoders"],
        trained=_trained(position),
    )


def _trained(position: Mapping[str, Any]) -> dict[str, Any]:
    """What a release says of a run; where it started from another one's weights, also what it says of that."""
    config = position["config"]
    found = {key: position[key] for key in ("step", "images")}
    found |= {key: config[key] for key in ("seed", "batch_size", "phases")}
    if not config.get("init_from"):
        return found
    return {**found, "init_from": _trained_before(config["init_from"], config["stage"])}


def _trained_before(source: str, stage: str) -> Any:
    """Of the weights that a run started from, as long as they are still there; else ""."""
    try:
        folder = find(source)
        if not is_workdir(folder):
            return json.loads((folder / CASCADE_FILE).read_text())["trained"][stage]
        found = committed(folder_of(folder))
        return [_trained(_position(found[max(found)]))]
    except (ReleaseError, OSError, ValueError, KeyError):
        return ""


def _position(path: epath.Path) -> Mapping[str, Any]:
    """Where a run was when it wrote a checkpoint."""
    from orbax.checkpoint import v1 as ocp

    position = ocp.checkpointables_metadata(path).custom_metadata
    if not isinstance(position, Mapping):
        raise OSError(f"its position is {str(position)[:80]!r}")
    return position


def _encoders_folder(run: Run) -> Path | epath.Path:
    """The folder of a run's encoders. Raises ReleaseError if it is neither on this machine nor in a store."""
    if stores.is_remote(run.encoders):
        return stores.at(run.encoders)
    path = Path(run.encoders).expanduser()
    if path.is_dir():
        return path
    known = bundled_encoders()
    if run.encoders not in known:
        raise ReleaseError(
            f"{run.workdir} was trained with encoders {run.encoders!r}, which are not on this machine; a cascade needs"
            " them: expected that folder, or another place of theirs with launch.export --encoders=DIR"
        )
    return known[run.encoders]


def parse_workdirs(parts: Sequence[str]) -> dict[str, list[str]]:
    """["base=A", "B", "sr64=C"] -> {"base": ["A", "B"], "sr64": ["C"]}.

    Raises:
        ReleaseError: a folder before any stage, a stage named twice, or an empty name or folder.
    """
    stages: dict[str, list[str]] = {}
    for part in parts:
        name, equals, folder = part.partition("=") if "=" in part else ("", "", part)
        if equals and (not name or name in stages):
            raise ReleaseError(f"--workdirs: {part!r} {'names a stage twice' if name else 'names no stage'}")
        if not folder or not (equals or stages):
            raise ReleaseError(f"--workdirs: {part!r} is no stage=DIR; expected e.g. base=runs/base,sr64=runs/sr64")
        stages.setdefault(name or list(stages)[-1], []).append(folder)
    return stages


def release_of_runs(stages: Mapping[str, Sequence[Run]], encoders_folder: str | os.PathLike | None = None) -> Release:
    """A release from the runs of every stage.

    Args:
        stages: stage name -> its runs, one, or several whose experts' intervals tile [0, 1].
        encoders_folder: the encoders to go with it; default the runs' own.

    Raises:
        ReleaseError: runs that do not belong together, intervals with a gap or an overlap, or encoders that
            are not on this machine.
    """
    if not stages:
        raise ReleaseError("no stages; expected at least a base")
    runs = [run for group in stages.values() for run in group]
    for run in runs[1:]:
        if run.fingerprint != runs[0].fingerprint:
            raise ReleaseError(
                f"{runs[0].workdir} and {run.workdir} were trained with different encoders: {runs[0].fingerprint} and"
                f" {run.fingerprint}; expected the same for all"
            )
    stacked = [stack_runs(name, group) for name, group in stages.items()]
    stacked.sort(key=lambda pair: pair[0].resolution)
    return Release(
        specs=tuple(spec for spec, _ in stacked),
        params=tuple(params for _, params in stacked),
        encoders=place(encoders_folder or _encoders_folder(runs[0])),
        encoders_fingerprint=runs[0].fingerprint,
        trained={name: [dict(run.trained) for run in group] for name, group in stages.items()},
    )


def stack_runs(name: str, runs: Sequence[Run]) -> tuple[StageSpec, dict[str, Any]]:
    """One stage from the experts of several runs, lowest noise first.

    Raises:
        ReleaseError: another network, noise or resolution among them; a gap or an overlap of intervals.
    """
    first = runs[0]
    for run in runs[1:]:
        if difference := _difference(first.spec, run.spec):
            raise ReleaseError(
                f"stage {name!r}: {first.workdir} and {run.workdir} differ in {difference}; expected one network"
            )
    held = sorted(
        ((interval, run, row) for run in runs for row, interval in enumerate(run.intervals)),
        key=lambda expert: expert[0],
    )
    edge = 0.0
    for (low, high), run, _ in held:
        if low != edge:
            kind = "a gap" if low > edge else "an overlap"
            raise ReleaseError(
                f"stage {name!r}: {kind} of quantiles between {min(low, edge):.10g} and {max(low, edge):.10g}, before"
                f" {run.workdir} ({low:.10g} to {high:.10g}); expected experts that tile 0 to 1"
            )
        edge = high
    if edge != 1.0:
        raise ReleaseError(
            f"stage {name!r}: no expert for quantiles {edge:.10g} to 1; expected experts that tile 0 to 1"
        )
    rows = [jax.tree.map(lambda leaf, row=row: leaf[row], run.ema) for _, run, row in held]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    cuts = tuple(low for (low, _), _, _ in held[1:])
    return dataclasses.replace(first.spec, name=name, cuts=cuts), params


def _difference(a: StageSpec, b: StageSpec) -> str:
    """The first thing that must not differ between a stage's experts, with both values; else ""."""
    for key in ("model", "noise", "sigma_data", "resolution", "low_resolution"):
        first, second = getattr(a, key), getattr(b, key)
        if first == second:
            continue
        if isinstance(first, Mapping):
            inner = next(name for name in sorted({**first, **second}) if first.get(name) != second.get(name))
            key, first, second = f"{key}.{inner}", first.get(inner), second.get(inner)
        return f"{key}: {first} and {second}"
    return ""
