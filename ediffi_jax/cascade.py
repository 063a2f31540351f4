"""A cascade: text and image encoders, a base stage, and super-resolution stages on top of it.

    prompts, style ─▶ encoders ─▶ Conditioning ─┬─────────────┬─────────────┐
                                    noise ─▶ base ─▶ x0 ─▶ sr64 ─▶ x0 ─▶ sr256 ─▶ uint8

Images are made in batches, each going through all stages before the next begins, so the first are
ready early. Image k of prompt p draws everything random in stage s from the one key
`fold_in(fold_in(key(seed), s), p * num + k)`: its pixels do not depend on its batch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from tqdm.auto import tqdm

from ediffi_jax import compilation, conditioning, encoders, release
from ediffi_jax.conditioning import Conditioning
from ediffi_jax.devices import affordable, default_devices
from ediffi_jax.encoders import Encoders
from ediffi_jax.release import Release
from ediffi_jax.request import Request, make_request
from ediffi_jax.stage import Callback, CascadeError, Stage, image_keys

__all__ = ["Batch", "Cascade", "CascadeError", "Stage", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Finished images.

    Attributes:
        indices: [B] of the images among all asked for.
        images: for each stage its images, uint8 [B, r, r, 3].
    """

    indices: np.ndarray
    images: Mapping[str, UInt8[np.ndarray, "b r r 3"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cascade:
    """Encoders and stages, ready to sample.

    Attributes:
        stages: lowest resolution first.
        encoders: text and image encoders.
        folder: where it was loaded from; the fixed part of what a sample's record says about it.
        encoders_folder: where its encoders lie.
        trained: what its makers wrote about its training.
    """

    stages: tuple[Stage, ...]
    encoders: Encoders
    folder: Path | epath.Path
    encoders_folder: Path | epath.Path
    trained: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        before = 0
        for stage in self.stages:
            if stage.spec.low_resolution != before:
                raise CascadeError(_chain_message(stage, before))
            before = stage.spec.resolution

    def sample(
        self,
        prompts: str | Sequence[str],
        num: int = 1,
        seed: int = 0,
        guidance: float | Mapping[str, float] | None = None,
        negative: str | Sequence[str] | None = None,
        style: Any = None,
        encoders: Sequence[str] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        steps: int | Mapping[str, int] | None = None,
        batch_size: int | None = None,
        paint: Any = None,
        paint_weight: float | Sequence[float] | None = None,
        paint_stages: str | Sequence[str] | None = None,
        style_weight: float | Mapping[str, float] | None = None,
        callback: Callback | None = None,
        return_stages: bool = False,
        progress: bool = True,
    ) -> UInt8[np.ndarray, "n h w 3"] | dict[str, UInt8[np.ndarray, "n h w 3"]]:
        """Pictures of the prompts.

        Args:
            prompts: one text or several.
            num: images per prompt.
            seed: same seed, same settings, same images.
            guidance: weight w of D_c + w (D_c - D_0), 0 is none; a number is the base stage's, a
                dictionary {stage: w} reaches others. Default each stage's own.
            negative: text(s) that guidance leads away from instead of "nothing".
            style: image(s) whose style to take, through the CLIP image encoder: path, PIL image or uint8
                [H, W, 3]; one for all prompts or one each.
            encoders: condition on only some of "t5", "clip_text", "clip_image".
            sampler: name in `samplers.SAMPLERS`, for every stage or {stage: name}.
            steps: solver steps, for every stage or {stage: steps}.
            batch_size: images at a time; default 8 per device. Changes no image but for rounding.
            paint: {phrase: mask}, where phrases of the prompt belong; one for all prompts, or a list with one
                (or None) each. A phrase is words of the prompt; "red circle#2" is its second occurrence,
                without #n it is the first. A mask is a file, a PIL image, an array [h, w] (bool, uint8, or float
                in [0, 1]) of any size, "left", "right", "top", "bottom", or "box:x0,y0,x1,y1"; see
                `ediffi_jax.paint`. Masks may overlap; where a word has several, they add.
            paint_weight: w' of the painting, one for all or one per prompt; 0 is none. Default
                `paint.PAINT_WEIGHT`.
            paint_stages: stages that follow the painting; default the base.
            style_weight: s of D_ts + w (D_t - D_0) + s (D_ts - D_t), where t is the text and s the style image; a
                number is the base stage's, a dictionary reaches others. Default: guidance by both together, as s = w.
            callback: called as callback(stage, step, sigma, expert, x0) after each solver step; what it raises stops
                the sampling and is raised here.
            return_stages: also return the smaller images of the stages before.
            progress: show a progress bar.

        Returns:
            uint8 [P * num, H, W, 3], image k of prompt p at p * num + k; or {stage: images}.

        Raises:
            CascadeError, SamplerError, EncoderError, PictureError, PaintError: what is wrong, in one line.
        """
        request = self.request(
            prompts, num=num, seed=seed, guidance=guidance, negative=negative, style=style, encoders=encoders,
            sampler=sampler, steps=steps, batch_size=batch_size,
            paint=paint, paint_weight=paint_weight, paint_stages=paint_stages, style_weight=style_weight,
        )  # fmt: skip
        batches = list(self.run(request, callback=callback, progress=progress))
        images = {
            stage.spec.name: np.concatenate([b.images[stage.spec.name] for b in batches]) for stage in self.stages
        }
        return images if return_stages else images[self.stages[-1].spec.name]

    def request(self, prompts: str | Sequence[str], **wishes: Any) -> Request:
        """Checks the arguments of `sample` and fills in defaults, computing nothing."""
        specs = [stage.spec for stage in self.stages]
        return make_request(
            specs, self.encoders.image_size, prompts, devices=self._devices, readers=self.encoders, **wishes
        )

    def run(self, request: Request, *, callback: Callback | None = None, progress: bool = True) -> Iterator[Batch]:
        """Samples batch by batch, yielding each as soon as it is through all stages."""
        cond, null = self._conditionings(request)
        painting = None if request.paint is None else request.paint.painting()
        total = request.total * len(self.stages)
        interval = 0.2 if sys.stderr.isatty() else 10.0
        with tqdm(total=total, desc="sampling", unit="pic", disable=not progress, mininterval=interval) as bar:
            for indices, count in request.batches(self._devices):
                rows = indices // request.num
                pick = functools.partial(jax.tree.map, lambda leaf: leaf[rows])  # noqa: B023 (used at once)
                images: dict[str, np.ndarray] = {}
                x = None
                for number, stage in enumerate(self.stages):
                    bar.set_postfix_str(stage.spec.name)
                    painted = painting is not None and stage.spec.name in request.paint.stages
                    numbers = (indices + request.first).astype(np.uint32)
                    keys = image_keys(np.uint32(request.seed), numbers, stage_index=number)
                    x = stage.sample(
                        pick(cond), keys, low_res=x, null=None if null is None else pick(null),
                        settings=request.stages[stage.spec.name], paint=pick(painting) if painted else None,
                        style_weight=request.style_weight.get(stage.spec.name), callback=callback,
                    )  # fmt: skip
                    images[stage.spec.name] = to_uint8(np.asarray(x)[:count])
                    bar.update(count)
                yield Batch(indices=indices[:count], images=images)

    def save(self, out: str | os.PathLike, *, dtype: str = "float32", copy_encoders: bool = True) -> Path | epath.Path:
        """Writes the cascade as a release folder; see `release.write_release`."""
        return release.write_release(out, self.to_release(), dtype=dtype, copy_encoders=copy_encoders)

    def to_release(self) -> Release:
        """The cascade as host arrays and descriptions."""
        return Release(
            specs=tuple(stage.spec for stage in self.stages),
            params=tuple(jax.tree.map(np.asarray, stage.params) for stage in self.stages),
            encoders=self.encoders_folder,
            encoders_fingerprint=self.encoders.fingerprint,
            trained=self.trained,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides its images: stages, weights and encoders; the same however it is stored."""
        digest = hashlib.sha256(self.encoders.fingerprint.encode())
        for stage in self.stages:
            described = {**stage.spec.to_json(), "file": ""}
            digest.update(json.dumps(described, sort_keys=True).encode())
            for name, leaf in sorted(release.flatten(stage.params).items()):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
        return digest.hexdigest()[:16]

    @property
    def _devices(self) -> int:
        return len(self.stages[0].home)

    def _conditionings(self, request: Request) -> tuple[Conditioning, Conditioning | None]:
        """Embeddings of the prompts, rows [P, ...], and of the negative prompts if there are any."""
        cond = self._encode(request.prompts, request.style, request.encoders)
        return cond, self._encode(request.negative, None, request.encoders) if request.negative else None

    def _encode(self, texts: Sequence[str], style: np.ndarray | None, names: Sequence[str]) -> Conditioning:
        """Host arrays, rows [P, ...]; the number of texts is rounded up so that few programs are compiled."""
        count = len(texts)
        rows = np.minimum(np.arange(1 << (count - 1).bit_length()), count - 1)
        cond = self.encoders.encode([texts[row] for row in rows], None if style is None else style[rows])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], conditioning.select(cond, names))


def load(
    name_or_path: str | os.PathLike, *, compute_dtype: str = "auto", devices: Sequence[jax.Device] | None = None
) -> Cascade:
    """A cascade by its bundled name, or from a release folder or the workdir of a training run.

    Args:
        name_or_path: e.g. "scenes", "path/to/release", "runs/base", "gs://BUCKET/release".
        compute_dtype: "float32", "bfloat16", or "auto": bfloat16 where the hardware has it.
        devices: what to sample on; default all local accelerators, or one CPU device; with
            `jax_num_cpu_devices` set, so many cores (`ediffi_jax.devices`).

    Raises:
        ReleaseError, EncoderError: not found, damaged, or incomplete.
        CascadeError: a workdir that holds only a super-resolution stage.
    """
    compilation.enable_cache()
    folder = release.find(name_or_path)
    if release.is_workdir(folder):
        run = release.read_workdir(folder)
        found = release.release_of_runs({run.spec.name: [run]})
    else:
        found = release.read_release(folder)
    return from_release(found, folder, compute_dtype=compute_dtype, devices=devices)


def from_release(
    found: Release,
    folder: str | os.PathLike,
    *,
    compute_dtype: str = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Cascade:
    """Brings a release that was read or built to life; arguments as in `load`.

    Raises:
        ReleaseError: parameters that do not fit their networks.
    """
    coded = encoders.load(found.encoders)
    if found.encoders_fingerprint not in ("", coded.fingerprint):
        raise release.ReleaseError(
            f"{folder} was trained with encoders {found.encoders_fingerprint}; those in {found.encoders} are"
            f" {coded.fingerprint}"
        )
    for spec, params in zip(found.specs, found.params, strict=True):
        release.check_params(release.flatten(params), spec, coded.spec, f"{folder} ({spec.file or spec.name})")
    dtype = compilation.compute_dtype(compute_dtype)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found.params))
    places = affordable(tuple(devices or ()) or default_devices(), size)
    return Cascade(
        stages=tuple(Stage(s, p, dtype, places) for s, p in zip(found.specs, found.params, strict=True)),
        encoders=coded,
        folder=release.place(folder),
        encoders_folder=found.encoders,
        trained=found.trained,
    )


def to_uint8(x: Float[Array, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """[-1, 1] -> {0, ..., 255}: round((x + 1) * 127.5)."""
    return np.clip(np.round((np.asarray(x, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def _chain_message(stage: Stage, before: int) -> str:
    spec = stage.spec
    if not before:
        return (
            f"{spec.name!r} is a super-resolution stage from {spec.low_resolution}x{spec.low_resolution} and needs a"
            f" base; put them together: python -m launch.export --workdirs=base=DIR,{spec.name}=DIR --out=DIR"
        )
    needed = f"{spec.low_resolution}x{spec.low_resolution}"
    return f"stage {spec.name!r} starts from {needed}; the stage before it makes {before}x{before}"
