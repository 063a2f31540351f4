"""Pictures to feature vectors, sharded over all devices: Inception for FID as published, or the bundled image tower.

    pictures uint8 --resize by a named filter, on the host--> float [b, s, s, 3] in 0 to 255 --network--> [b, d]

The bundled network, the image tower of a CLIP that was trained on scenes, is **not** Inception: its distances show
which of two cascades of scenes is nearer, and compare with no published FID. Results name the network.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8

from ediffi_jax.devices import default_devices
from ediffi_jax.encoders import Encoders
from ediffi_jax.evaluation import inception, inception_files, resize
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.types import Images, Params, Vectors

BATCH_SIZE = 32  # pictures per device in one program

Pictures = UInt8[np.ndarray, "n h w 3"]
Rows = Float[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """A network and the filter that brings pictures to its size.

    Attributes:
        name: what results call it.
        fingerprint: of its weights.
        size, width: pixels it sees, and features it gives.
        filter: of `resize.FILTERS`.
        params: its parameters.
        apply: (params, pictures [b, size, size, 3] in 0 to 255) -> [b, width]; pure.
        devices: what batches are divided over.
    """

    name: str
    fingerprint: str
    size: int
    width: int
    filter: str
    params: Params
    apply: Callable[[Params, Images], Vectors]
    devices: tuple[jax.Device, ...]

    def __call__(self, pictures: Pictures) -> Rows:
        """Features, float32, of uint8 pictures of one size."""
        return over_devices(self._program, self._placed, self.devices, self._resized, len(pictures), pictures)

    def _resized(self, pictures: Pictures) -> np.ndarray:
        return resize.resize(pictures, self.size, self.filter)

    @functools.cached_property
    def _program(self) -> Callable[..., Array]:
        return jax.jit(self.apply)

    @functools.cached_property
    def _placed(self) -> Params:
        return jax.device_put(self.params, placement(self.devices, P()))

    def describe(self) -> dict[str, Any]:
        """What a result says about it."""
        return {"name": self.name, "fingerprint": self.fingerprint, "size": self.size, "width": self.width}


def over_devices(
    program: Callable[..., Array],
    params: Params,
    devices: Sequence[jax.Device],
    prepare: Callable[..., Any],
    total: int,
    *rows: Any,
) -> np.ndarray:
    """`program(params, prepare(*rows))` in batches of one size divided over the devices; the last is filled up.

    Args:
        program: compiled; one result row for each row.
        params: already on the devices.
        devices: what batches are divided over.
        prepare: pieces of `rows` to a tree of arrays [b, ...], on the host.
        total: number of rows.
        rows: sequences of that length.
    """
    size = min(BATCH_SIZE, 1 << max(0, -(-total // len(devices)) - 1).bit_length()) * len(devices)
    pieces = []
    for start in range(0, total, size):
        batch = prepare(*(values[start : start + size] for values in rows))
        count = min(size, total - start)
        full = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)]), batch)  # noqa: B023
        pieces.append(np.asarray(program(params, jax.device_put(full, placement(devices, P("batch")))))[:count])
    return np.concatenate(pieces)


def placement(devices: Sequence[jax.Device], spec: P) -> NamedSharding:
    """Batches over all devices by `spec`, or whole on each."""
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, spec)


def clip_params(encoders: Encoders) -> Params:
    """The parameters of CLIP alone, without T5's."""
    return {name: encoders.params[name] for name in ("clip", "vision") if name in encoders.params}


def of_inception(
    path: str | os.PathLike, filter: str = resize.DEFAULT, devices: Sequence[jax.Device] | None = None
) -> FeatureNetwork:
    """The FID Inception, from the published weights (see `inception_files`).

    Raises:
        EvaluationError, EncoderError: no such filter; weights missing, unreadable or of another network.
    """
    resize.check(filter)
    params, fingerprint = inception_files.load(path)
    # pytorch-fid scales 0 to 255 onto [-1, 1]; torch-fidelity, as TensorFlow's graph, subtracts 128 and divides by it.
    scale = (lambda x: (x - 128.0) / 128.0) if filter == "tf1_bilinear" else (lambda x: x / 127.5 - 1.0)
    return FeatureNetwork(
        name="Inception-v3 pool3 (FID, 2015-12-05)",
        fingerprint=fingerprint,
        size=inception.SIZE,
        width=inception.WIDTH,
        filter=filter,
        params=params,
        apply=lambda params, x: inception.Inception().apply(params, scale(x)),
        devices=tuple(devices or default_devices()),
    )


def of_encoders(
    encoders: Encoders, filter: str = resize.DEFAULT, devices: Sequence[jax.Device] | None = None
) -> FeatureNetwork:
    """The image tower of a CLIP: its pooled vector. Not Inception; see the top of this module.

    Raises:
        EvaluationError: no such filter, or encoders without an image tower.
    """
    resize.check(filter)
    if encoders.vision is None:
        raise EvaluationError("the encoders have no CLIP image tower, which is to give the features")
    return FeatureNetwork(
        name=f"CLIP image tower {encoders.image_size}px (not Inception)",
        fingerprint=encoders.fingerprint,
        size=encoders.image_size,
        width=encoders.vision.config.pooled_width,
        filter=filter,
        params=clip_params(encoders),
        apply=lambda params, x: encoders.apply(params, None, jnp.clip(x / 255.0, 0.0, 1.0)).clip_image,
        devices=tuple(devices or default_devices()),
    )
