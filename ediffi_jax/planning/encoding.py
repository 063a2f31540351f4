"""The programs of `launch.encode` as shapes: captions, and pictures, on the chips of one host."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.encoders import Encoders, Tokens
from ediffi_jax.encoders.sharding import batch_sharding, param_shardings
from ediffi_jax.planning.program import placed_shapes
from ediffi_jax.training.embedder import Embedder, check_batch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeProgram:
    """One of the two programs.

    Attributes:
        run: (encoder weights, inputs) -> what is stored, jitted.
        params: shapes, in parts over `fsdp`.
        inputs: tokens or pixels [B, ...].
        mesh: the devices of a host.
    """

    run: Any
    params: PyTree
    inputs: PyTree
    mesh: Mesh

    @property
    def images(self) -> int:
        """Captions or pictures of a run, on all devices."""
        return jax.tree.leaves(self.inputs)[0].shape[0]

    @property
    def held(self) -> dict[str, PyTree]:
        """What lies on the devices before a run."""
        return {"encoders": self.params, "batch": self.inputs}

    def lower(self) -> Any:
        """The program, lowered for the mesh's devices."""
        return self.run.lower(self.params, self.inputs)


def encode_programs(
    encoders: Encoders, rows: RowFormat, mesh: Mesh, batch_size: int, t5_tokens: int, pixels: int
) -> dict[str, EncodeProgram]:
    """What a host compiles.

    Args:
        encoders: with shapes for weights.
        rows: what is stored.
        mesh: devices of a host.
        batch_size: captions or pictures at a time, over all of them.
        t5_tokens: that captions are padded to.
        pixels: side of the pictures; 0 without.

    Returns:
        "text" and, with pictures, "pictures".

    Raises:
        TrainingError: the devices do not divide the batch.
    """
    check_batch_size(mesh, batch_size)
    machine = Embedder(encoders, mesh, rows, batch_size)
    params = placed_shapes(encoders.params, param_shardings(mesh, encoders.params))

    def given(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=batch_sharding(mesh))

    def sequence(length: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return given(length, dtype=jnp.int32), given(length, dtype=jnp.bool_)

    t5, clip = sequence(t5_tokens), sequence(rows.spec.clip_tokens)
    tokens = Tokens(t5_ids=t5[0], t5_mask=t5[1], clip_ids=clip[0], clip_mask=clip[1])
    found = {"text": EncodeProgram(run=machine.text, params=params, inputs=tokens, mesh=mesh)}
    if pixels:
        pictures = given(pixels, pixels, 3, dtype=jnp.uint8)
        found["pictures"] = EncodeProgram(run=machine.picture, params=params, inputs=pictures, mesh=mesh)
    return found
