"""Object stores (gs://, s3://) below `etils.epath`: what a path needs before it is used, and what can go wrong.

A store has no folders, rename, append or locks. One upload makes an object, whole or not at all; what consists of
several is committed by a marker that is written last and removed first. Orbax reads and writes arrays in gs://
through TensorStore, everything else goes through `gcsfs` (extra ``[gcp]``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from ediffi_jax.errors import UserError, install

TIMEOUT_VARIABLE = "EDIFFI_STORE_TIMEOUT"
TIMEOUT = 60.0  # seconds for one request to be answered
RESTART = 42  # exit code: another start, perhaps on another machine, may be answered
CLIENTS = ("aiohttp", "gcsfs", "google", "requests", "botocore", "s3fs")  # whose errors are the store's


class StoreError(UserError):
    """A store that refuses, or whose client is not installed."""


class SilentStoreError(StoreError):
    """A store that did not answer in time."""

    exit_code = RESTART


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether this is in an object store."""
    return "://" in os.fspath(path)


def at(path: str | os.PathLike[str]) -> epath.Path:
    """A path on a disk or in a store; from then on stores are asked anew each time, and must answer in time."""
    if is_remote(path):
        from fsspec.config import conf

        settings = conf.setdefault("gcs", {})
        settings.setdefault("use_listings_cache", False)  # others write too
        settings.setdefault("requests_timeout", timeout())
    return epath.Path(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """A path as Orbax insists on it."""
    return at(path) if is_remote(path) else epath.Path(path).expanduser().resolve()


def timeout() -> float:
    """Seconds for one request: ``$EDIFFI_STORE_TIMEOUT``, else 60. Raises StoreError if that is no number."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(TIMEOUT)
    try:
        if float(text) > 0:
            return float(text)
    except ValueError:
        pass
    raise StoreError(f"{TIMEOUT_VARIABLE}={text!r}; expected seconds, more than 0")


def upload(folder: Path, target: epath.Path) -> None:
    """Writes all files below a folder of this machine to a store. Raises OSError."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        (target / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


@contextlib.contextmanager
def reaching(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what reads a place that may be in a store.

    Raises:
        StoreError: its client is missing, or the store refused.
        SilentStoreError: it did not answer.
        FileNotFoundError: there is nothing; and whatever else is raised for a place on a disk.
    """
    try:
        yield
    except Exception as error:
        if not is_remote(path) or isinstance(error, FileNotFoundError) or not (told := failure(error)):
            raise
        raise type(told)(f"{os.fspath(path)}: {told}") from error


def failure(error: Exception) -> StoreError | None:
    """What a store's client raised, as a line; None if it is nothing of a store's."""
    if isinstance(error, TimeoutError) and error.errno is None:  # a disk's has a number
        return SilentStoreError(f"the store did not answer within {timeout():g} s ({TIMEOUT_VARIABLE})")
    if isinstance(error, ImportError) and "gcsfs" in str(error):
        return StoreError(f"{error}; gs:// needs gcsfs: {install('gcp')}")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in CLIENTS:
        return StoreError(" ".join(str(error).split())[:300] or type(error).__name__)
    return None
