"""One caption's embeddings as bytes, trimmed to the caption's length, and back into padded arrays.

    row = digest [8 bytes], Lt, Lc [uint16], t5 [Lt, Dt], clip_text [Lc, Dc], clip_pooled [Dp], clip_image [Dp]

The mask is the length: both tokenizers pad at the end. Numbers are bfloat16 or float32. With int8 each token
x [D] of t5 and clip_text is kept as  q = round(x / s),  s = max|x| / 127  (float32, before the token's values);
the two pooled vectors are not, being a hundredth of the bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int8

from ediffi_jax.conditioning import Conditioning, ConditioningSpec
from ediffi_jax.data.views import LoaderError

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
HEADER = struct.Struct("<8sHH")
SEQUENCES, VECTORS = ("t5", "clip_text"), ("clip_pooled", "clip_image")


def digest(caption: str, scene: str) -> bytes:
    """8 bytes by which a row is known to belong to a record: of its stored caption and its scene's JSON."""
    return hashlib.blake2b(f"{caption}\0{scene}".encode(), digest_size=8).digest()


def quantize(x: Float[Array, "*t d"]) -> tuple[Int8[Array, "*t d"], Float[Array, "*t"]]:
    """Each token's nearest whole numbers from -127 to 127, and their scale; a token of zeros has scale 0."""
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)[..., None]).astype(jnp.int8), scale


def dequantize(values: Int8[Array, "*t d"], scale: Float[Array, "*t"]) -> Float[Array, "*t d"]:
    """Float32 tokens from `quantize`'s pair."""
    return values.astype(jnp.float32) * scale[..., None]


def to_conditioning(batch: Mapping[str, Array]) -> Conditioning:
    """A batch as `RowFormat.decode` gives it, as the encoders would have given it: float32, absent pictures null."""
    fields = {name: jnp.asarray(batch[name]) for name in ("t5_mask", "clip_text_mask")}
    for name in SEQUENCES:
        scale = batch.get(f"{name}_scale")
        tokens = jnp.asarray(batch[name])
        fields[name] = tokens.astype(jnp.float32) if scale is None else dequantize(tokens, jnp.asarray(scale))
    pooled = fields["clip_pooled"] = jnp.asarray(batch["clip_pooled"]).astype(jnp.float32)
    seen = "clip_image" in batch
    fields["clip_image"] = jnp.asarray(batch["clip_image"]).astype(jnp.float32) if seen else jnp.zeros_like(pooled)
    fields["clip_image_mask"] = jnp.asarray(batch["clip_image_mask"]) if seen else jnp.zeros(len(pooled), bool)
    return Conditioning(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFormat:
    """What the bytes mean.

    Attributes:
        spec: widths, and the lengths that tokens are padded to when read.
        dtype: "bfloat16" or "float32", of everything that is not int8.
        int8: tokens as int8 with a scale each.
        pictures: whether rows hold CLIP's embedding of the picture.
    """

    spec: ConditioningSpec
    dtype: str = "bfloat16"
    int8: bool = False
    pictures: bool = True

    @property
    def vectors(self) -> tuple[str, ...]:
        """The pooled vectors that rows hold."""
        return VECTORS if self.pictures else VECTORS[:1]

    @property
    def token_dtype(self) -> np.dtype:
        """Of stored tokens."""
        return np.dtype(np.int8) if self.int8 else DTYPES[self.dtype]

    def size(self, name: str) -> tuple[int, int]:
        """(longest, width) of a sequence of tokens."""
        spec = self.spec
        return {"t5": (spec.t5_tokens, spec.t5_width), "clip_text": (spec.clip_tokens, spec.clip_width)}[name]

    def row_bytes(self, t5_tokens: float, clip_tokens: float) -> float:
        """Bytes of a row with so many tokens."""
        per_token = [self.size(name)[1] * self.token_dtype.itemsize + 4 * self.int8 for name in SEQUENCES]
        pooled = len(self.vectors) * self.spec.pooled_width * DTYPES[self.dtype].itemsize
        return HEADER.size + t5_tokens * per_token[0] + clip_tokens * per_token[1] + pooled

    def encode(self, key: bytes, arrays: Mapping[str, np.ndarray]) -> bytes:
        """A row from stored values: tokens already trimmed, with `t5_scale` and `clip_text_scale` if int8."""
        parts = [HEADER.pack(key, *(len(arrays[name]) for name in SEQUENCES))]
        for name in SEQUENCES:
            parts += [np.asarray(arrays[f"{name}_scale"], "<f4").tobytes()] if self.int8 else []
            parts.append(np.asarray(arrays[name], self.token_dtype).tobytes())
        parts += [np.asarray(arrays[name], DTYPES[self.dtype]).tobytes() for name in self.vectors]
        return b"".join(parts)

    def decode(self, rows: Sequence[bytes], keys: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Rows as one padded batch.

        Args:
            rows: from `encode`.
            keys: the digest each must have.

        Returns:
            The fields of `Conditioning` as stored, [n, ...] with masks, and the scales if int8. Arrays that rows
            do not hold (clip_image without pictures) are left out.

        Raises:
            LoaderError: a row of another record, or of another format.
        """
        batch = self._empty(len(rows))
        for index, (row, key) in enumerate(zip(rows, keys, strict=True)):
            self._fill(batch, index, memoryview(row), key)
        return batch

    def _empty(self, count: int) -> dict[str, np.ndarray]:
        batch: dict[str, np.ndarray] = {}
        for name in SEQUENCES:
            length, width = self.size(name)
            batch[name] = np.zeros((count, length, width), self.token_dtype)
            batch[f"{name}_mask"] = np.zeros((count, length), bool)
            if self.int8:
                batch[f"{name}_scale"] = np.zeros((count, length), np.float32)
        for name in self.vectors:
            batch[name] = np.zeros((count, self.spec.pooled_width), DTYPES[self.dtype])
        if self.pictures:
            batch["clip_image_mask"] = np.ones((count,), bool)
        return batch

    def _fill(self, batch: dict[str, np.ndarray], index: int, row: memoryview, key: bytes) -> None:
        stored, *lengths = HEADER.unpack_from(row)
        if stored != key:
            raise LoaderError("an embedding is of another caption than its record's; run launch.encode on this data")
        if len(row) != self.row_bytes(*lengths):
            raise LoaderError(f"an embedding has {len(row)} bytes; expected {self.row_bytes(*lengths):.0f}")
        begin = HEADER.size

        def take(dtype: np.dtype, count: int) -> np.ndarray:
            nonlocal begin
            values = np.frombuffer(row, dtype, count, begin)
            begin += values.nbytes
            return values

        for name, length in zip(SEQUENCES, lengths, strict=True):
            if self.int8:
                batch[f"{name}_scale"][index, :length] = take(np.dtype("<f4"), length)
            width = self.size(name)[1]
            batch[name][index, :length] = take(self.token_dtype, length * width).reshape(length, width)
            batch[f"{name}_mask"][index, :length] = True
        for name in self.vectors:
            batch[name][index] = take(DTYPES[self.dtype], self.spec.pooled_width)
