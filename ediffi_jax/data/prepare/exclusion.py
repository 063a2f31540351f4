"""Pictures that must not be trained on, because models are judged by them: lists of hashes.

A line holds the SHA-256 of a file (64 hex digits), its perceptual hash (16 hex digits), or both, and then
whatever helps people, as `write` makes them from a folder, tars, a list or a TFDS data set. Lines that
begin with # are not read.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64

from ediffi_jax import stores
from ediffi_jax.data.folders import folder_at
from ediffi_jax.data.prepare import hashing, sources
from ediffi_jax.data.prepare.decode import Decoder
from ediffi_jax.data.prepare.reasons import PrepareError, Rejection
from ediffi_jax.data.prepare.settings import Settings

_SHA, _PHASH = (re.compile(rf"\b[0-9a-f]{{{digits}}}\b", re.I) for digits in (64, 16))


@dataclasses.dataclass(frozen=True)
class Listed:
    """What lists hold.

    Attributes:
        shas: of files.
        phashes: of pictures.
    """

    shas: frozenset[bytes]
    phashes: UInt64[np.ndarray, "m"]

    def covers(self, shas: Sequence[bytes], phashes: UInt64[np.ndarray, "n"], distance: int) -> Bool[np.ndarray, "n"]:
        """Which pictures are listed, or look like one that is."""
        exact = np.array([sha in self.shas for sha in shas], bool)
        return exact | hashing.near_any(phashes, self.phashes, distance)


@functools.lru_cache(maxsize=4)
def load(paths: tuple[str, ...]) -> Listed:
    """Reads lists. Raises PrepareError: a file that is not there, or a line without a hash."""
    shas, phashes = set(), set()
    for path in paths:
        try:
            with stores.reaching(path):
                lines = stores.at(path).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PrepareError(f"--exclude={path} cannot be read: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            sha, phash = _SHA.search(line), _PHASH.search(line)
            if not (sha or phash):
                raise PrepareError(f"{path}, line {number}: no hash of 64 or 16 hex digits in {line[:40]!r}")
            shas |= {bytes.fromhex(sha[0])} if sha else set()
            phashes |= {int(phash[0], 16)} if phash else set()
    return Listed(frozenset(shas), np.array(sorted(phashes), np.uint64))


def fingerprint(paths: tuple[str, ...]) -> str:
    """Of what the lists hold."""
    listed = load(paths)
    return hashlib.sha256(b"".join(sorted(listed.shas)) + listed.phashes.tobytes()).hexdigest()[:16]


def write(location: str, out: str, settings: Settings, *, data_dir: str = "", split: str = "train") -> tuple[int, int]:
    """Makes a list from the pictures of an input, captions or not.

    Returns:
        How many pictures are listed, and how many could not be read.

    Raises:
        PrepareError: no such input, no picture in it, or `out` cannot be written.
    """
    decoder = Decoder(side=64, exif_rotation=settings.exif_rotation, colour_profiles=settings.colour_profiles)

    def lines_of(unit: sources.Unit) -> list[str]:
        made = []
        for item in sources.read(unit, settings):
            try:
                image, _ = decoder.open(item.encoded, item.name)
                phash, _ = hashing.perceptual(decoder.pixels(image, item.encoded)[0])
                made.append(f"{hashlib.sha256(item.encoded).hexdigest()} {phash:016x} {item.source}")
            except Rejection:
                made += [""] if item.encoded else []
        return made

    units = sources.list_units(location, settings, data_dir=data_dir, split=split)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [line for part in pool.map(lines_of, units) for line in part]
    lines = [line for line in found if line]
    if not lines:
        raise PrepareError(f"no picture in {location!r} could be read; nothing to list")
    path = stores.at(out).expanduser()
    text = "".join(f"{line}\n" for line in ("# sha256, perceptual hash, where it was", *lines))
    text = text.encode("utf-8", "backslashreplace")
    try:
        folder = folder_at(path.parent)
        folder.make()
        folder.write(path.name, lambda temporary: temporary.write_bytes(text))
    except OSError as error:
        raise PrepareError(f"{os.fspath(out)!r} cannot be written: {error.strerror or error}") from error
    return len(lines), len(found) - len(lines)
