"""What a workdir cannot do, in one line: and whether another start could mend it.

A disk that is full, read-only, forbidden or gone stays so until somebody acts: exit code 2, for a restart would
only train the same steps again and fail again. A store that does not answer may answer the next process,
perhaps on another machine: exit code 42.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from ediffi_jax import stores
from ediffi_jax.training.errors import RestartError, StorageError

FULL, FORBIDDEN, GONE = ("ENOSPC", "EDQUOT", "EFBIG"), ("EROFS", "EACCES", "EPERM"), ("ENOENT", "ENOTDIR")
LASTING = tuple(getattr(errno, name) for name in (*FULL, *FORBIDDEN, *GONE))
LASTING_WORDS = (*map(os.strerror, LASTING), "PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "Forbidden")
STATUS = re.compile(r"[A-Z_]{5,}: ")  # how TensorStore, which raises ValueError for everything, begins


@contextlib.contextmanager
def writing(place: object) -> Iterator[None]:
    """Around what writes to `place`.

    Raises:
        StorageError: it could not, and a restart will not mend it.
        RestartError: it could not this time.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if not (failure := stores.failure(error)) and not (isinstance(error, ValueError) and STATUS.match(text)):
            raise  # our mistake
        if isinstance(failure, stores.SilentStoreError):
            text = str(failure)
        lasting = getattr(error, "errno", None) in LASTING or any(word in text for word in LASTING_WORDS)
        line = f"{place} cannot be written: {text[:300] or type(error).__name__}"
        if lasting:
            raise StorageError(f"{line}; make room or access, and start again from the last checkpoint") from error
        raise RestartError(f"{line}; another start goes on from the last checkpoint") from error
