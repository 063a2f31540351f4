"""Features of real pictures, kept in a file with what they depend on, and refused where that is something else.

A file, .npz, holds `features` float32 [n, d] (KID, precision and recall need them; FID's moments come from them in
float64) and `described`, JSON: network and its fingerprint, resolution, resize filter, n, and which pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from ediffi_jax import stores
from ediffi_jax.evaluation import real_pictures
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.features import FeatureNetwork
from ediffi_jax.evaluation.frechet import Moments, moments
from ediffi_jax.evaluation.protocols import Protocol, require
from ediffi_jax.pictures import make_folder, write_bytes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real pictures as a feature network sees them.

    Attributes:
        features: [n, d].
        described: see the top of this module.
    """

    features: Float[np.ndarray, "n d"]
    described: Mapping[str, Any]

    @property
    def n(self) -> int:
        """Pictures."""
        return len(self.features)

    @functools.cached_property
    def moments(self) -> Moments:
        """Their mean and scatter."""
        return moments(self.features)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over features and description."""
        digest = hashlib.sha256(json.dumps(self.described, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.features).tobytes())
        return digest.hexdigest()[:16]


def describe(network: FeatureNetwork, protocol: Protocol, resolution: int, number: int) -> dict[str, Any]:
    """What features of a protocol's first `number` real pictures depend on."""
    source = {"protocol": protocol.name, "crop": real_pictures.CROP, **protocol.described}
    sizes = {"resolution": resolution, "resize": network.filter, "n": number}
    return {"network": network.describe(), **sizes, "source": source}


def make(
    network: FeatureNetwork, protocol: Protocol, resolution: int, number: int | None = None, *, progress: bool = True
) -> Reference:
    """Features of a protocol's real pictures.

    Args:
        network: what sees them.
        protocol: whose pictures.
        resolution: they are brought to first, that of the generated ones.
        number: of pictures; default all.
        progress: show a progress bar.

    Raises:
        EvaluationError: too few pictures, or an unreadable one.
    """
    number = len(protocol) if number is None else number
    require(len(protocol), number, protocol.name)
    rows = []
    with tqdm(total=number, desc="real pictures", unit="pic", disable=not progress, mininterval=2.0) as bar:
        for pictures in real_pictures.batches(protocol.picture, number, resolution):
            rows.append(network(pictures))
            bar.update(len(pictures))
    return Reference(features=np.concatenate(rows), described=describe(network, protocol, resolution, number))


def save(reference: Reference, path: str | os.PathLike) -> None:
    """Writes a file, whole or not at all. Raises PictureError or StoreError if it cannot be written."""
    buffer = io.BytesIO()
    np.savez(buffer, features=reference.features, described=np.array(json.dumps(reference.described)))
    file = stores.at(path).expanduser()
    make_folder(file.parent, remote=True)
    write_bytes(file, buffer.getvalue())


def load(
    path: str | os.PathLike, network: FeatureNetwork, protocol: Protocol, resolution: int, number: int
) -> Reference:
    """Reads a file that `save` wrote, if it is what this run compares with.

    Args:
        path: of the file.
        network, protocol, resolution, number: of this run; all must be those of the file.

    Raises:
        EvaluationError: another network, resolution, resize filter, number or choice of pictures; damaged; or not ours.
        StoreError: the store refused or did not answer.
    """
    try:
        with stores.reaching(path):
            content = io.BytesIO(stores.at(path).expanduser().read_bytes())
        with np.load(content, allow_pickle=False) as stored:
            if "described" not in stored.files and {"mu", "sigma"} <= set(stored.files):
                raise EvaluationError(
                    f"{path}: bare mu and sigma do not say which network, resolution and filter they are of; make the"
                    " reference anew from the pictures"
                )
            features, described = stored["features"], json.loads(str(stored["described"]))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = f"not reference statistics, or damaged ({error}); remove it to make them anew"
        raise EvaluationError(f"{path}: {reason}") from error
    difference = first_difference(described, describe(network, protocol, resolution, number))
    if difference:
        raise EvaluationError(f"{path}: these reference statistics have {difference}")
    if features.shape != (number, network.width):
        raise EvaluationError(f"{path}: features are {list(features.shape)}; expected {[number, network.width]}")
    return Reference(features=features, described=described)


def first_difference(held: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> str:
    """Such as "resize = tf1_bilinear, this run resize = pil_bicubic"; "" where nothing differs."""
    for key in dict.fromkeys((*asked, *held)):
        ours, theirs = held.get(key), asked.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            inner = first_difference(ours, theirs, f"{prefix}{key}.")
            if inner:
                return inner
        elif ours != theirs:
            return f"{prefix}{key} = {ours}, this run {prefix}{key} = {theirs}"
    return ""
