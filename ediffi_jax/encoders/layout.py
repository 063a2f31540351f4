"""Where in a folder the encoders lie.

    ours:       t5/  clip/                                                       weights and tokenizer together
    diffusers:  text_encoder/ + tokenizer/,  text_encoder_2/ + tokenizer_2/, ...,  image_encoder/ + feature_extractor/

Which encoder a folder holds is read from its config.json, so a T5 may be the first, second or third.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ediffi_jax import copies, stores
from ediffi_jax.encoders.errors import EncoderError
from ediffi_jax.encoders.files import read_json
from ediffi_jax.errors import nearest

RELEASES = Path(__file__).resolve().parent.parent / "releases"
OTHER_FORMATS = (".bin", ".h5", ".msgpack", ".ot", ".onnx", ".pt", ".pth", ".gguf")  # published beside safetensors
_KINDS = {"t5": "t5", "clip": "clip", "clip_text_model": "clip", "clip_vision_model": "vision"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folders of one encoder: its weights, and its tokenizer or image settings."""

    weights: Path
    settings: Path


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The encoders found.

    Attributes:
        t5: T5, or None.
        clip: CLIP with a text tower, or None.
        vision: a separate CLIP image tower, or None.
    """

    t5: Place | None
    clip: Place | None
    vision: Place | None


def bundled(name: str = "scenes") -> Path:
    """Folder of the encoders that come with the package.

    Raises:
        EncoderError: no bundled release of that name.
    """
    found = {folder.parent.name: folder for folder in RELEASES.glob("*/encoders")}
    if name not in found:
        choices = f"{nearest(name, found)}, or the path of a folder with t5/ and clip/"
        raise EncoderError(f"no such folder, and no bundled encoders are called {name!r}{choices}")
    return found[name]


def local(path: str | os.PathLike) -> Path:
    """A path of this machine as it is; of a folder in an object store, a copy here of what an encoder is read from.

    Raises:
        StoreError: it cannot be copied here.
    """
    if not stores.is_remote(path):
        return Path(path)
    return copies.local(path, lambda name: not name.endswith(OTHER_FORMATS))


def _places(root: Path) -> list[Place]:
    """Folders that may hold an encoder, those to prefer first."""
    own = [Place(weights=root / name, settings=root / name) for name in ("t5", "clip")]
    inner = [place for folder in own if folder.weights.is_dir() for place in _diffusers(folder.weights)]
    return [*own, *inner, *_diffusers(root), Place(weights=root, settings=root)]


def _diffusers(root: Path) -> list[Place]:
    pairs = [(f"text_encoder{n}", f"tokenizer{n}") for n in ("", "_2", "_3")] + [("image_encoder", "feature_extractor")]
    return [
        Place(weights=root / weights, settings=root / (settings if (root / settings).is_dir() else weights))
        for weights, settings in pairs
    ]


def find(root: Path) -> Layout:
    """The encoders in `root`.

    Raises:
        EncoderError: no such folder, or no encoder in it.
    """
    if not root.is_dir():
        raise EncoderError(f"{root}: no such folder; expected one with t5/ and clip/, or text_encoder/ and tokenizer/")
    found: dict[str, Place] = {}
    for place in _places(root):
        kind = _KINDS.get(str(read_json(place.weights / "config.json").get("model_type")))
        if kind is not None:
            found.setdefault(kind, place)
    if not found:
        raise EncoderError(f"{root}: no T5 or CLIP found; expected t5/ and clip/, or text_encoder/ and tokenizer/")
    return Layout(t5=found.get("t5"), clip=found.get("clip"), vision=found.get("vision"))
