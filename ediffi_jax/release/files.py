"""Reading and writing a release folder: cascade.json, one safetensors file per stage, encoders.

A folder is written under a temporary name beside its place and renamed when complete, so a release
is either whole or absent. In an object store it is there when cascade.json is, which is uploaded last;
files are copied to this machine before they are read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

import ediffi_jax
from ediffi_jax import copies, stores
from ediffi_jax.encoders import layout
from ediffi_jax.errors import nearest
from ediffi_jax.release.parameters import store, unflatten
from ediffi_jax.release.places import BUNDLED, CASCADE_FILE, bundled_encoders, place
from ediffi_jax.release.spec import FORMAT, ReleaseError, StageSpec

ENCODERS_FOLDER = "encoders"
_KEYS = ("format", "stages", "encoders", "encoders_fingerprint", "versions", "trained")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """A release in memory.

    Attributes:
        specs: the stages, lowest resolution first.
        params: for each stage its nested float32 host arrays, leaves [E, ...].
        encoders: folder of the encoders, on this machine or in an object store.
        encoders_fingerprint: what theirs must be, where they lie outside the release; "" is not checked.
        versions: of the packages that wrote it.
        trained: where it came from, free-form: steps and images per stage, data, seed.
    """

    specs: tuple[StageSpec, ...]
    params: tuple[Mapping[str, Any], ...]
    encoders: Path | epath.Path
    encoders_fingerprint: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def package_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("jax", "jaxlib", "flax", "numpy")
    return {"ediffi_jax": ediffi_jax.__version__, **{name: metadata.version(name) for name in names}}


def read_release(path: str | os.PathLike) -> Release:
    """Reads a release folder.

    Raises:
        ReleaseError: a missing file, an unknown format or key, or an unreadable or truncated tensor file.
        StoreError: a file cannot be copied here.
    """
    folder = place(path)
    described = _read_json(folder / CASCADE_FILE)
    where = str(folder / CASCADE_FILE)
    if described.get("format") != FORMAT:
        raise ReleaseError(
            f"{where} has format {described.get('format')!r}; this ediffi_jax ({ediffi_jax.__version__}) reads"
            f" format {FORMAT}"
        )
    for key in described:
        if key not in _KEYS:
            raise ReleaseError(f"{where} has the unknown key {key!r}{nearest(key, _KEYS)}")
    if not isinstance(described.get("stages"), list) or not described["stages"]:
        raise ReleaseError(f"{where} describes no stages; expected at least a base")
    specs = tuple(StageSpec.from_json(entry, f"{where}: stage {i}") for i, entry in enumerate(described["stages"]))
    return Release(
        specs=specs,
        params=tuple(unflatten(read_tensors(folder / (spec.file or f"{spec.name}.safetensors"))) for spec in specs),
        encoders=_encoders_folder(folder, described.get("encoders", ENCODERS_FOLDER)),
        encoders_fingerprint=described.get("encoders_fingerprint", ""),
        versions=described.get("versions", {}),
        trained=described.get("trained", {}),
    )


def read_tensors(path: Path | epath.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file as float32.

    Raises:
        ReleaseError: a missing, truncated or otherwise unreadable file.
        StoreError: it cannot be copied here.
    """
    with stores.reaching(path):
        there = path.is_file()
    if not there:
        raise ReleaseError(f"{path} does not exist; the release is incomplete")
    file = copies.local(path)
    try:
        tensors = safetensors.numpy.load_file(str(file))
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ReleaseError(f"{path} is truncated or no safetensors file ({reason})") from error
    return {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}


def write_release(
    out: str | os.PathLike, release: Release, *, dtype: str = "float32", copy_encoders: bool = True
) -> Path | epath.Path:
    """Writes a release folder.

    Args:
        out: where it shall stand; absent, or an empty folder; on a disk or in an object store.
        release: what to write.
        dtype: of the stored weights: float32, float16 or bfloat16.
        copy_encoders: copy the encoders into the folder; otherwise refer to them where they are, by
            bundled name, by URL, or by path relative to `out`.

    Returns:
        The folder.

    Raises:
        ReleaseError: a folder that is taken or cannot be written, or weights not finite in `dtype`.
        StoreError: the store refused or did not answer.
    """
    if stores.is_remote(out):
        return _send_release(stores.at(out), release, dtype, copy_encoders)
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReleaseError(f"{out} is taken; expected a folder that is absent or empty")
    stages = [store(params, dtype) for params in release.params]
    specs = [dataclasses.replace(spec, file=f"{spec.name}.safetensors") for spec in release.specs]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise ReleaseError(f"cannot write beside {out}: {error.strerror}") from error
    try:
        for spec, tensors in zip(specs, stages, strict=True):
            safetensors.numpy.save_file(tensors, str(partial / spec.file), {"stage": spec.name, "weights": "ema"})
        described = {
            "format": FORMAT,
            "stages": [spec.to_json() for spec in specs],
            "encoders": _copied(release.encoders, partial) if copy_encoders else linked_encoders(release.encoders, out),
            "encoders_fingerprint": "" if copy_encoders else release.encoders_fingerprint,
            "versions": package_versions(),
            "trained": dict(release.trained),
        }
        (partial / CASCADE_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        for path in (partial, *partial.rglob("*")):  # mkdtemp and safetensors write for their owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(partial, out)
    except (OSError, safetensors.SafetensorError) as error:
        raise ReleaseError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _send_release(out: epath.Path, release: Release, dtype: str, copy_encoders: bool) -> epath.Path:
    """Writes a release here, and sends it."""
    files = {f"{spec.name}.safetensors" for spec in release.specs}
    if not copies.vacant(out, CASCADE_FILE, lambda name: name in files or name == ENCODERS_FOLDER):
        raise ReleaseError(f"{out} is taken; expected a prefix without objects")
    if not copy_encoders:
        linked_encoders(release.encoders, out)  # refuses what would not be found from there
    with copies.sending(out, last=CASCADE_FILE) as folder:
        write_release(folder, release, dtype=dtype, copy_encoders=copy_encoders)
    return out


def _copied(encoders: Path | epath.Path, partial: Path) -> str:
    """Copies the encoders into the folder being written; the entry of cascade.json."""
    shutil.copytree(layout.local(encoders), partial / ENCODERS_FOLDER)
    return ENCODERS_FOLDER


def linked_encoders(encoders: Path | epath.Path, out: Path | epath.Path) -> str:
    """Says where the encoders are; the entry of cascade.json.

    Raises:
        ReleaseError: a release in an object store with encoders on this machine, where nobody else finds them.
    """
    if stores.is_remote(encoders):
        return os.fspath(encoders)
    resolved = Path(encoders).resolve()
    for name, folder in bundled_encoders().items():
        if folder.resolve() == resolved:
            return f"{BUNDLED}{name}"
    if stores.is_remote(out):
        expected = "expected --encoders=copy, or encoders in a store"
        raise ReleaseError(f"{out} cannot refer to the encoders in {encoders}, a folder of this machine; {expected}")
    return os.path.relpath(resolved, out)


def _encoders_folder(folder: Path | epath.Path, entry: str) -> Path | epath.Path:
    """The encoders that cascade.json names: a folder relative to it, a URL, or `bundled:NAME`."""
    if entry.startswith(BUNDLED):
        name, known = entry.removeprefix(BUNDLED), bundled_encoders()
        if name not in known:
            raise ReleaseError(f"{folder / CASCADE_FILE} names unknown bundled encoders {name!r}{nearest(name, known)}")
        return known[name]
    if stores.is_remote(entry):
        return stores.at(entry)
    with stores.reaching(folder):
        there = (folder / entry).is_dir()
    if not there:
        raise ReleaseError(f"{folder / entry} does not exist; {folder / CASCADE_FILE} names it as the encoders")
    return folder / entry


def _read_json(path: Path | epath.Path) -> dict[str, Any]:
    """A JSON dictionary. Raises ReleaseError if the file is missing or is none, StoreError if it is out of reach."""
    try:
        with stores.reaching(path):
            values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReleaseError(f"{path} does not exist; {path.parent} is no release folder") from error
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is unreadable: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ReleaseError(f"{path} holds {type(values).__name__}; expected a dictionary")
    return values
