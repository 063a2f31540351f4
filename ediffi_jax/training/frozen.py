"""The frozen encoders of a run, as far as it needs them: sizes, fingerprint and tokenizers, and weights on a mesh.

    live        encoders of a folder, or bundled ones; their weights lie in parts on the devices
    prepared    embeddings made ahead; what made them may be on another machine
    none        `Unconditional`

No step changes them; a checkpoint keeps their fingerprint, and a run goes on with the same ones only.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ediffi_jax import encoders, stores
from ediffi_jax.compilation import compute_dtype
from ediffi_jax.conditioning import ConditioningSpec
from ediffi_jax.data.config import DataConfig
from ediffi_jax.data.embeddings import Store
from ediffi_jax.data.folders import inside
from ediffi_jax.encoders.sharding import weight_axes
from ediffi_jax.training.unconditional import Unconditional


@dataclasses.dataclass(frozen=True)
class PreparedEncoders:
    """Stands where encoders stand in a run whose embeddings were made by encoders that are not here."""

    spec: ConditioningSpec
    fingerprint: str


FrozenEncoders = encoders.Encoders | PreparedEncoders | Unconditional


def load_encoders(name: str, **options: Any) -> encoders.Encoders | Unconditional:
    """Bundled encoders by name, those of a folder or of an object store, none for an empty name.

    `options` are those of `encoders.load`.
    """
    return encoders.load(find(name), **options) if name else Unconditional()


def find(name: str) -> epath.Path | Path:
    """The folder that a config's `encoders` means. Raises EncoderError: no such folder, and no bundled name."""
    if stores.is_remote(name):
        return stores.at(name)
    return epath.Path(name) if epath.Path(name).exists() else encoders.bundled(name)


def open_encoders(config: ConfigDict) -> FrozenEncoders:
    """A run's encoders without their weights.

    With `data.embeddings`, encoders that are not on this machine are replaced by what the embeddings say of
    them, and the log says so: the first process tells.

    Raises:
        EncoderError: none where config.encoders says, and no embeddings; files that cannot be used.
        LoaderError: embeddings that are not there.
    """
    if not config.data.embeddings or not config.encoders or is_here(config.encoders):
        return load_encoders(config.encoders, weights=False, dtype=compute_dtype(config.compute_dtype))
    about = Store.open(inside(DataConfig.parse(config.data).embeddings_folders[0], "train")).about
    if jax.process_index() == 0:
        logging.warning(
            "encoders %r are not on this machine: sizes and fingerprint %s are those of the embeddings in %r",
            config.encoders,
            about.encoders,
            config.data.embeddings,
        )
    return PreparedEncoders(spec=about.rows.spec, fingerprint=about.encoders)


def is_here(name: str) -> bool:
    """Whether there is anything on this machine where a config's `encoders` points, usable or not."""
    if stores.is_remote(name):
        return False  # nothing is copied here but by who needs the weights
    try:
        return bool(find(name))
    except encoders.EncoderError:
        return False


def encoder_params(config: ConfigDict, mesh: Mesh) -> PyTree:
    """The weights that steps of a run need, each tensor put from its file straight into its shards.

    Matrices are kept in the dtype that the run computes in: frozen, they need no more (T5-XXL in bfloat16 takes
    half). They are cut along `weight_axes(mesh)` and whole for each expert, so that gathering them never crosses the
    `expert` axis. Empty for a run without encoders, or with embeddings.
    """
    if not config.encoders or config.data.embeddings:
        return {}
    dtype = compute_dtype(config.compute_dtype)
    return load_encoders(config.encoders, mesh=mesh, axes=weight_axes(mesh), dtype=dtype).params
