"""Object stores as every verb meets them: flags that may name one, and how a verb ends when it is silent."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ediffi_jax import stores
from ediffi_jax.errors import UserError

REMOTE = ("gs://", "s3://")


def refuse_remote(allowed: Sequence[str]) -> None:
    """Raises UserError for a flag with a path in a store, unless it is among the `allowed`."""
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        for value in values if flag.name not in allowed else ():
            if isinstance(value, str) and value.startswith(REMOTE):
                verb, others = f"launch.{Path(sys.argv[0]).stem}", " and ".join(f"--{name}" for name in allowed)
                hint = f"; {verb} takes {REMOTE[0]} with {others}" if others else ""
                raise UserError(f"--{flag.name}={value}: expected a path on this machine{hint}")


def leave(error: UserError | TimeoutError) -> None:
    """Says what was wrong and exits; raises a time-out that is not a store's."""
    silent = isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)
    told = stores.failure(error) if isinstance(error, TimeoutError) else error
    if told is not error and not isinstance(told, stores.SilentStoreError):
        raise error
    print(f"error: {told}", file=sys.stderr, flush=True)
    if silent:
        sys.stdout.flush()
        os._exit(told.exit_code)  # threads that still wait for the store would hold the process for minutes
    sys.exit(told.exit_code)
