"""What lives as long as a training process, from its first phase to its last, and how it is closed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from ediffi_jax.training.checkpoint import Checkpoints
from ediffi_jax.training.chrono import Chrono
from ediffi_jax.training.nonfinite import Rollbacks
from ediffi_jax.training.observers import Observer
from ediffi_jax.training.ownership import Ownership
from ediffi_jax.training.signals import StopRequest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """What lives as long as the process."""

    checkpoints: Checkpoints
    observers: list[Observer]
    stop: StopRequest
    chrono: Chrono
    owner: Ownership
    rollbacks: Rollbacks

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Afterwards the last checkpoint is complete and the observers are closed."""
        with finally_(self.checkpoints.wait, *(observer.close for observer in self.observers)):
            yield


@contextlib.contextmanager
def finally_(*ends: Callable[[], None]) -> Iterator[None]:
    """Calls `ends` afterwards. An error before them is the one to tell, not what they raise because of it."""
    try:
        yield
    except BaseException:
        for end in ends:
            with contextlib.suppress(Exception):
                end()
        raise
    for end in ends:
        end()
