"""A grid of samples while training: the EMA weights on a few held-out captions, always from the same noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree, UInt8
from ml_collections import ConfigDict

from ediffi_jax import conditioning
from ediffi_jax.encoders.sharding import gathered
from ediffi_jax.release import SamplerSpec, StageSpec
from ediffi_jax.stage import Stage
from ediffi_jax.training.config_files import to_json
from ediffi_jax.training.mesh import replicated
from ediffi_jax.training.objective import Objective, encode_batch, to_unit
from ediffi_jax.training.schedule import Phase

COUNT = 16
Preview = Callable[[PyTree, PyTree], UInt8[np.ndarray, "rows columns 3"]]


def stage_spec(config: ConfigDict, phase: Phase, resolution: int) -> StageSpec:
    """What `config` trains, as a stage that samples pictures of `resolution`."""
    plain = to_json(config)
    low = config.data.low_resolution
    if low:
        low = low * resolution // config.data.resolution
    return StageSpec(
        name=config.stage,
        resolution=resolution,
        low_resolution=low,
        model=plain["model"],
        cuts=phase.cuts,
        noise=plain["noise"],
        sigma_data=config.sigma_data,
        sampler=SamplerSpec(**plain["sampler"]),
        aug_level=config.aug.level,
    )


def make_preview(
    config: ConfigDict, objective: Objective, phase: Phase, mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> Preview | None:
    """A function of (stacked EMA weights, encoder parameters) that samples `COUNT` pictures as one grid.

    Args:
        config: the run.
        objective: for its encoders.
        phase: which experts there are; an expert trained alone cannot sample, and gives None.
        mesh: where the weights are.
        batch: a held-out batch [1, B, ...], whose captions (and low-resolution pictures) are used.
    """
    if phase.expert >= 0:
        return None
    rows = {name: values[0, :COUNT] for name, values in batch.items()}
    count = rows["image"].shape[0]
    spec = stage_spec(config, phase, rows["image"].shape[1])
    keys = jax.random.split(jax.random.key(config.seed), count)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sample(ema: PyTree, frozen: PyTree) -> jax.Array:
        whole = gathered(mesh, frozen)
        cond = conditioning.select(encode_batch(objective.encoders, whole, rows), ("t5", "clip_text"))
        low_res = to_unit(jax.numpy.asarray(rows["low_res"])) if "low_res" in rows else None
        return Stage(spec=spec, params=ema).sample(cond, keys, low_res=low_res)

    def preview(ema: PyTree, frozen: PyTree) -> UInt8[np.ndarray, "rows columns 3"]:
        images = np.asarray(jax.device_get(sample(ema, frozen)))
        return grid(np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8))

    return preview


def grid(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Tiles N pictures into the most nearly square grid, row by row, with a white gap."""
    count, height, width, _ = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    gap = max(1, height // 16)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas
