"""The frozen encoders as a machine for many captions and pictures: compiled programs on a mesh, batch after batch.

Captions are sorted by length and each batch's T5 ids are cut to the shortest of a few lengths that holds them:
captions of 25 tokens cost 32 tokens of work, not the 113 they are padded to. Tokens become what is stored (bfloat16,
or int8 with scales) on the devices, where also the error that this makes is measured:

    relative error = |x - stored(x)| / |x|,   over all values (root mean square) and of the worst token
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from ediffi_jax.data.embedding_rows import DTYPES, SEQUENCES, RowFormat, dequantize, quantize
from ediffi_jax.encoders import Encoders, Tokens
from ediffi_jax.encoders.sharding import batch_sharding
from ediffi_jax.training.errors import TrainingError

LENGTHS = (16, 32, 64)  # that T5 programs are compiled for, and the encoder's longest
IN_FLIGHT = 2  # batches dispatched ahead of the one being fetched
Stored = dict[str, np.ndarray]


class Embedder:
    """Encoders on a mesh.

    Attributes:
        encoders: with their parameters on the mesh.
        rows: what tokens are stored as.
        batch_size: captions or pictures a program takes at once.
        text: the program (parameters, tokens) -> what is stored of each caption, and the error of that.
        picture: the program (parameters, uint8 [b, s, s, 3]) -> what is stored of each picture.
    """

    def __init__(self, encoders: Encoders, mesh: Mesh, rows: RowFormat, batch_size: int) -> None:
        self.encoders, self.rows, self.batch_size = encoders, rows, batch_size
        self._placed = batch_sharding(mesh)
        self.text = jax.jit(self._encode_text, out_shardings=self._placed)
        self.picture = jax.jit(self._encode_pictures, out_shardings=self._placed)

    def _encode_text(self, params: Any, tokens: Tokens) -> dict[str, Array]:
        """What is stored of a batch of captions, and per caption the error of that."""
        cond = self.encoders.apply(params, tokens, None)
        result = {"clip_pooled": cond.clip_pooled.astype(DTYPES[self.rows.dtype])}
        for name in SEQUENCES:
            x = getattr(cond, name)
            if self.rows.int8:
                result[name], result[f"{name}_scale"] = quantize(x)
                kept = dequantize(result[name], result[f"{name}_scale"])
            else:
                result[name] = x.astype(DTYPES[self.rows.dtype])
                # Not a conversion there and back, which the compiler may leave out.
                kept = x if self.rows.dtype == "float32" else jax.lax.reduce_precision(x, 8, 7)
            lost, held = (jnp.sum(jnp.square(values), -1) for values in (x - kept, x))
            worst = jnp.max(jnp.sqrt(lost / jnp.where(held > 0, held, 1)), -1)
            result[f"{name}_error"] = jnp.stack([lost.sum(-1), held.sum(-1), worst], -1)
        return result

    def _encode_pictures(self, params: Any, pixels: UInt8[Array, "b s s 3"]) -> dict[str, Array]:
        cond = self.encoders.apply(params, None, pixels.astype(jnp.float32) / 255.0)
        return {"clip_image": cond.clip_image.astype(DTYPES[self.rows.dtype])}

    def captions(self, tokens: Tokens) -> Iterator[tuple[int, Stored]]:
        """(caption's number, its arrays trimmed to its length, with their errors), short captions first."""
        lengths = {name: mask.sum(1) for name, mask in zip(SEQUENCES, (tokens.t5_mask, tokens.clip_mask), strict=True)}

        def batch(numbers: np.ndarray) -> Tokens:
            chosen = jax.tree.map(lambda x: x[numbers], tokens)
            cut = program_length(int(lengths["t5"][numbers].max()), chosen.t5_ids.shape[1])
            return chosen.replace(t5_ids=chosen.t5_ids[:, :cut], t5_mask=chosen.t5_mask[:, :cut])

        for number, arrays in self._each(self.text, batch, np.argsort(lengths["t5"], kind="stable")):
            for name in SEQUENCES:
                for key in {name, f"{name}_scale"} & arrays.keys():
                    arrays[key] = arrays[key][: lengths[name][number]]
            yield number, arrays

    def pictures(self, pixels: UInt8[np.ndarray, "n s s 3"]) -> np.ndarray:
        """CLIP's embeddings [n, Dp] as stored."""
        found = self._each(self.picture, lambda numbers: pixels[numbers], np.arange(len(pixels)))
        return np.stack([arrays["clip_image"] for _, arrays in found])

    def _each(
        self, program: Any, batch: Callable[[np.ndarray], Any], order: np.ndarray
    ) -> Iterator[tuple[int, Stored]]:
        """Runs a program over all numbers in `order`, the last batch filled up with its last number."""
        waiting: collections.deque[tuple[np.ndarray, Any]] = collections.deque()

        def fetch() -> Iterator[tuple[int, Stored]]:
            numbers, results = waiting.popleft()
            arrays = jax.device_get(results)
            for row, number in enumerate(numbers):
                yield int(number), {name: values[row] for name, values in arrays.items()}

        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            filled = np.pad(numbers, (0, self.batch_size - len(numbers)), mode="edge")
            inputs = jax.device_put(batch(filled), self._placed)
            waiting.append((numbers, program(self.encoders.params, inputs)))
            if len(waiting) > IN_FLIGHT:
                yield from fetch()
        while waiting:
            yield from fetch()


def program_length(longest: int, room: int) -> int:
    """T5 tokens of the program that a batch runs in: the least of `LENGTHS` that holds its longest caption, or all."""
    return next((length for length in LENGTHS if longest <= length), room)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raises TrainingError if the devices do not divide the batch."""
    if batch_size % mesh.size:
        fitting = -(-batch_size // mesh.size) * mesh.size
        devices = f"the {mesh.size} devices"
        raise TrainingError(f"--batch_size={batch_size} is not a multiple of {devices}; next fitting: {fitting}")
