"""FID against CLIP score over guidance weights: how far a cascade follows its prompts, and what that costs in likeness.

    for w in guidance: for seed in seeds:
        generator ─▶ pictures ─▶ features, scores ─▶ parts on disk ─▶ Point(w, seed, FID, KID, CLIP score, …)

Pictures go from the generator into the networks and are not kept. A part holds what came of `save_every` of them and
is written whole or not at all; a point is written last, from its parts. Killed at any moment, the same call goes on
after the last part, to the same numbers: a picture's noise depends on its index alone, and parts begin at the same
indices whatever happened before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from tqdm.auto import tqdm

from ediffi_jax import samples
from ediffi_jax.cascade import Cascade
from ediffi_jax.data.folders import Disk, ObjectStore, folder_at, inside
from ediffi_jax.evaluation import curves
from ediffi_jax.evaluation.clip_score import ClipScore
from ediffi_jax.evaluation.curves import CURVE, Curve, Point
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.features import FeatureNetwork
from ediffi_jax.evaluation.measures import RELIABLE, Rows, check_number, measure
from ediffi_jax.evaluation.protocols import Protocol, require
from ediffi_jax.evaluation.reference import Reference, first_difference
from ediffi_jax.pictures import make_folder, write_png
from ediffi_jax.request import Request

RUN = "run.json"
SAVE_EVERY = 1024  # pictures a part


def sweep(
    cascade: Cascade,
    protocol: Protocol,
    reference: Reference,
    network: FeatureNetwork,
    clip: ClipScore,
    *,
    guidance: Sequence[float],
    out: str | os.PathLike,
    seeds: Sequence[int] = (0,),
    num: int | None = None,
    label: str | None = None,
    save_every: int = SAVE_EVERY,
    dump: bool = False,
    keep_features: bool = False,
    progress: bool = True,
    **wishes: Any,
) -> Curve:
    """Samples and measures every guidance weight with every seed; goes on where an earlier call stopped.

    Args:
        cascade: what is measured, at the resolution of its last stage.
        protocol: prompts, and the judge if there is one.
        reference: features of real pictures by the same network, filter and resolution.
        network, clip: what gives the features and the CLIP scores.
        guidance: weights of the base stage.
        out: folder for run.json, points/ and curve.json, on a disk or in an object store.
        seeds: of the noise; the prompts stay.
        num: pictures of each point, of the first prompts; default all.
        label: what plots call the curve; default the cascade's name.
        save_every: pictures a part, rounded up to whole batches.
        dump: also write the pictures, into out/pictures/.
        keep_features: leave the parts there; default they go once their point is written.
        progress: show a progress bar.
        wishes: more arguments of `Cascade.sample`: sampler, steps, encoders, batch_size, negative …

    Returns:
        The curve, which is also in out/curve.json.

    Raises:
        EvaluationError: too few prompts, a reference of another network, or `out` holding another run.
        CascadeError, SamplerError, PictureError: as `Cascade.sample`.
        StoreError: the store refused or did not answer.
    """
    num = len(protocol) if num is None else num
    request = check(cascade, protocol, num, guidance, seeds, **wishes)
    _check(cascade, network, reference)
    size = -(-save_every // request.batch_size) * request.batch_size
    settings = _settings(cascade, protocol, reference, network, clip, request, size)
    requests = [(w, s) for w in guidance for s in seeds]
    out = make_folder(out, remote=True)
    folder = folder_at(out)
    _claim(folder, settings)
    if num < RELIABLE:
        logging.warning("%s", curves.warning(num))
    run = _Run(cascade, protocol, reference, network, clip, num, size, wishes, settings, out if dump else None)
    points = folder_at(inside(out, "points"))
    points.make()
    points.sweep(lambda name: True)
    with tqdm(total=num * len(requests), desc="evaluating", unit="pic", disable=not progress, mininterval=2.0) as bar:
        found = [run.point(points, w, seed, bar, keep_features) for w, seed in requests]
    curve = Curve(label=label or cascade.folder.name, settings=settings, points=tuple(found))
    _write_text(folder, CURVE, curve.to_json())
    return curve


def check(
    cascade: Cascade, protocol: Protocol, num: int, guidance: Sequence[float], seeds: Sequence[int], **wishes: Any
) -> Request:
    """The first request of a `sweep`, all of which can be fulfilled; arguments and exceptions as there."""
    require(len(protocol), num, protocol.name)
    check_number(num, "generated")
    weights, seeds = _different(guidance, "guidance"), _different(seeds, "seeds")
    for w in weights:
        for s in seeds:
            cascade.request(("-",), guidance=w, seed=s, **wishes)
    return cascade.request(protocol.prompts[:num], guidance=weights[0], seed=int(seeds[0]), **wishes)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all points of a sweep share."""

    cascade: Cascade
    protocol: Protocol
    reference: Reference
    network: FeatureNetwork
    clip: ClipScore
    num: int
    size: int
    wishes: Mapping[str, Any]
    settings: Mapping[str, Any]
    dump: Path | epath.Path | None

    def point(self, folder: Disk | ObjectStore, guidance: float, seed: int, bar: tqdm, keep: bool) -> Point:
        """One weight and seed: read if it is there, else measured from parts that are there or made now."""
        bar.set_postfix_str(f"w={guidance:g} seed={seed}")
        name = _name(guidance, seed)
        if folder.size(f"{name}.json") is not None:
            bar.update(self.num)
            return Point.from_json(folder.read(f"{name}.json"))
        starts = range(0, self.num, self.size)
        parts = {f"{name}_{start:08d}.npz": start for start in starts}
        for part, start in parts.items():
            if folder.size(part) is None:
                _write_rows(folder, part, self.rows(guidance, seed, start))
            bar.update(min(self.size, self.num - start))
        rows = Rows.join([_read_rows(folder, part) for part in parts])
        measured = measure(rows, self.reference)
        stages = self.settings["stages"]
        how = {key: {stage: values[key] for stage, values in stages.items()} for key in ("sampler", "steps")}
        point = Point(guidance=guidance, seed=seed, resize=self.network.filter, **how, **measured)
        _write_text(folder, f"{name}.json", point.to_json())
        if not keep:
            for part in parts:
                folder.remove(part)
        return point

    def rows(self, guidance: float, seed: int, start: int) -> Rows:
        """What comes of pictures `start` to `start + size`."""
        prompts = self.protocol.prompts[start : min(start + self.size, self.num)]
        request = self.cascade.request(prompts, guidance=guidance, seed=seed, first=start, **self.wishes)
        return Rows.join([self._measured(batch, start, guidance, seed) for batch in self._batches(request)])

    def _batches(self, request: Request) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        last = self.cascade.stages[-1].spec.name
        for batch in self.cascade.run(request, progress=False):
            yield batch.indices, batch.images[last]

    def _measured(self, batch: tuple[np.ndarray, np.ndarray], start: int, guidance: float, seed: int) -> Rows:
        first, pictures = start + int(batch[0][0]), batch[1]
        if self.dump is not None:
            place = make_folder(self.dump / "pictures" / _name(guidance, seed), remote=True)
            for i, picture in enumerate(pictures):
                write_png(place / f"{first + i:06d}.png", picture)
        prompts = self.protocol.prompts[first : first + len(pictures)]
        judge = self.protocol.judge
        return Rows(
            features=self.network(pictures),
            clip_scores=self.clip(prompts, pictures),
            right=np.zeros(0, bool) if judge is None else judge(first, pictures),
        )


def _check(cascade: Cascade, network: FeatureNetwork, reference: Reference) -> None:
    resolution = cascade.stages[-1].spec.resolution
    wanted = {"network": network.describe(), "resolution": resolution, "resize": network.filter}
    held = {key: reference.described.get(key) for key in wanted}
    difference = first_difference(held, wanted)
    if difference:
        raise EvaluationError(f"the reference statistics have {difference}")


def _name(guidance: float, seed: int) -> str:
    """Of a point's files; weights that differ have names that differ."""
    return f"w{guidance:.17g}_seed{seed}" if float(f"{guidance:g}") != guidance else f"w{guidance:g}_seed{seed}"


def _different(values: Sequence[float], name: str) -> list[Any]:
    if not values or len(set(values)) != len(values):
        raise EvaluationError(f"{name} is {list(values)}; expected at least one value, each only once")
    return list(values)


def _settings(
    cascade: Cascade, protocol: Protocol, reference: Reference, network: FeatureNetwork, clip: ClipScore,
    request: Request, size: int,
) -> dict[str, Any]:  # fmt: skip
    """What every number depends on but its guidance weight and seed."""
    asked = samples.settings(request)
    stages = {
        name: {**dataclasses.asdict(stage), "sampler": stage.name, "guidance": None if i == 0 else stage.guidance}
        for i, (name, stage) in enumerate(request.stages.items())
    }
    described = {
        "n": request.total,
        "protocol": {"name": protocol.name, **protocol.described, "prompts": _digest("\n".join(request.prompts))},
        "reference": {"fingerprint": reference.fingerprint, **reference.described},
        "network": network.describe(),
        "resize": network.filter,
        "clip": clip.describe(),
        "stages": stages,
        **{key: asked[key] for key in ("encoders", "negative", "style_weight", "batch_size")},
        **{key: value for key, value in samples.record(cascade, request).items() if key != "stages"},
        "part": size,
    }
    return {**described, "fingerprint": _digest(json.dumps(described, sort_keys=True))}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _claim(folder: Disk | ObjectStore, settings: Mapping[str, Any]) -> None:
    """Writes run.json, or finds the same run there."""
    if folder.size(RUN) is None:
        _write_text(folder, RUN, json.dumps(settings, indent=1))
        return
    try:
        held = json.loads(folder.read(RUN))
    except ValueError as error:
        raise EvaluationError(f"{folder.path}/{RUN} is damaged; name a new --out") from error
    difference = first_difference(held, json.loads(json.dumps(settings)))
    if difference:
        raise EvaluationError(f"{folder.path} holds another run: {difference}; name a new --out")


def _write_text(folder: Disk | ObjectStore, name: str, text: str) -> None:
    folder.write(name, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _write_rows(folder: Disk | ObjectStore, name: str, rows: Rows) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **dataclasses.asdict(rows))
    folder.write(name, lambda path: path.write_bytes(buffer.getvalue()))


def _read_rows(folder: Disk | ObjectStore, name: str) -> Rows:
    try:
        with np.load(io.BytesIO(folder.bytes(name)), allow_pickle=False) as stored:
            return Rows(**{key: stored[key] for key in stored.files})
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{folder.path}/{name} is damaged; remove it, and the run makes it anew") from error
