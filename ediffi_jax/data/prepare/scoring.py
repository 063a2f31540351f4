"""Scores that the input does not have, computed by a CLIP: likeness of caption and picture, and aesthetics.

    clip score = <text, image> / (|text| |image|)             cosine, as img2dataset's `similarity`
    aesthetic  = W_n ( … (W_1 image/|image| + b_1) … ) + b_n  LAION's predictor, a chain of linear layers, from its file

Pictures reach CLIP as transformers does it: the central square, Pillow's bicubic. A worker loads the networks once.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ediffi_jax import copies, encoders
from ediffi_jax.data.prepare.reasons import PrepareError
from ediffi_jax.data.prepare.settings import Settings, digest
from ediffi_jax.encoders import EncoderError, Encoders
from ediffi_jax.encoders.convert import read_pickle
from ediffi_jax.encoders.files import open_safetensors
from ediffi_jax.pictures import read_style

BATCH_SIZE = 32
Matrix, Vector = Float[np.ndarray, "o i"], Float[np.ndarray, "o"]
_LAYER = re.compile(r"^(?:layers\.(\d+)\.)?(weight|bias)$")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """The networks of one worker.

    Attributes:
        clip: with both towers.
        layers: (W, b) of the aesthetic predictor, first to last; empty without one.
    """

    clip: Encoders
    layers: tuple[tuple[Matrix, Vector], ...] = ()
    lock: Any = dataclasses.field(default_factory=threading.Lock)  # one batch at a time: it takes all cores

    @property
    def side(self) -> int:
        """Of the squares that it sees, pixels."""
        return self.clip.image_size

    def square(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """A picture as CLIP sees it."""
        return read_style(picture, self.side)

    def __call__(
        self, captions: Sequence[str], squares: UInt8[np.ndarray, "n s s 3"]
    ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"] | None]:
        """CLIP scores and, with a predictor, aesthetic scores; a record's do not depend on its neighbours."""
        rows = np.minimum(np.arange(-(-len(captions) // BATCH_SIZE) * BATCH_SIZE), len(captions) - 1)
        with self.lock:
            found = self.clip.encode([captions[row] for row in rows], squares[rows], batch_size=BATCH_SIZE)
        text, image = (_unit(np.asarray(x)) for x in (found.clip_pooled, found.clip_image))
        clip, aesthetic = (text * image).sum(axis=1), None
        if self.layers:
            for weight, bias in self.layers:
                image = np.einsum("ni,oi->no", image, weight) + bias  # row by row, unlike a matrix product
            aesthetic = image[: len(captions), 0]
        return clip[: len(captions)], aesthetic


def of(settings: Settings) -> Scorer | None:
    """The scorer that the settings name, loaded once in a process; None without `clip`.

    Raises:
        PrepareError: a CLIP without one of its towers, an aesthetic predictor without CLIP or of another width.
        EncoderError: a folder or file that cannot be read.
    """
    return _load(settings.clip, settings.aesthetic)


def fingerprint(settings: Settings) -> list[str]:
    """What stands for the networks' contents among the settings; empty without them."""
    scorer = of(settings)
    if scorer is None:
        return []
    layers = [[weight.tolist(), bias.tolist()] for weight, bias in scorer.layers]
    return [scorer.clip.fingerprint, digest(layers)]


@functools.cache
def _load(clip: str, aesthetic: str) -> Scorer | None:
    if not clip:
        if aesthetic:
            raise PrepareError(f"--aesthetic={aesthetic} sees pictures through a CLIP; expected --clip=FOLDER as well")
        return None
    loaded = encoders.load(clip)
    if loaded.clip is None or loaded.vision is None:
        missing = "text" if loaded.clip is None else "image"
        raise PrepareError(f"--clip={clip} has no CLIP {missing} tower; a score needs both")
    layers = read_predictor(aesthetic) if aesthetic else ()
    width = loaded.vision.config.pooled_width
    if layers and layers[0][0].shape[1] != width:
        raise PrepareError(
            f"--aesthetic={aesthetic} wants {layers[0][0].shape[1]} channels, --clip={clip} gives {width};"
            " expected the CLIP that it was trained on (LAION's: ViT-L/14)"
        )
    return Scorer(clip=_clip_alone(loaded), layers=layers)


def _clip_alone(loaded: Encoders) -> Encoders:
    """Without T5; silent about captions longer than CLIP reads, as those of the web often are."""
    kept = {
        field: {name: value for name, value in getattr(loaded, field).items() if name != "t5"}
        for field in ("params", "sources")
    }
    quiet = dataclasses.replace(loaded.clip_tokenizer, quiet=True)
    return dataclasses.replace(loaded, t5=None, t5_tokenizer=None, clip_tokenizer=quiet, **kept)


def read_predictor(path: str) -> tuple[tuple[Matrix, Vector], ...]:
    """LAION's aesthetic predictor: `layers.N.weight` and `.bias` in the order of N, or one `weight` and `bias`.

    Args:
        path: safetensors, or the published pickle (which needs torch, extra [convert]); on a disk or in a store.

    Raises:
        PrepareError: other tensors, or layers that do not follow each other to one number.
        EncoderError: an unreadable file.
        StoreError: it cannot be copied here.
    """
    file = copies.local(path)
    if not file.is_file():
        raise EncoderError(f"{path}: no such file; expected the weights of an aesthetic predictor")
    stored = file.suffix == ".safetensors"
    tensors = {name: tensor.read() for name, tensor in open_safetensors(file).items()} if stored else read_pickle(file)
    layers = _layers(tensors)
    if not _chained(layers):
        held = ", ".join(f"{name} {list(np.shape(tensors[name]))}" for name in sorted(tensors)[:4])
        raise PrepareError(f"{path} holds {held}; expected layers.N.weight and layers.N.bias that end in one number")
    return layers


def _layers(tensors: Mapping[str, np.ndarray]) -> tuple[tuple[Matrix, Vector], ...]:
    """Pairs in order; empty if a name is no layer's, or half of one."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, values in tensors.items():
        match = _LAYER.match(name)
        if not match:
            return ()
        found.setdefault(int(match[1] or 0), {})[match[2]] = np.asarray(values, np.float32)
    if any(len(pair) != 2 for pair in found.values()):
        return ()
    return tuple((found[n]["weight"], found[n]["bias"]) for n in sorted(found))


def _chained(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    shapes = [(weight.shape, bias.shape) for weight, bias in layers]
    fits = all(len(w) == 2 and b == w[:1] for w, b in shapes)
    return (
        bool(shapes) and fits and all(a[0][0] == b[0][1] for a, b in zip(shapes, shapes[1:])) and shapes[-1][0][0] == 1
    )


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
