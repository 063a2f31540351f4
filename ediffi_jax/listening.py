"""What a compiled program tells the host while it runs: to whoever listens at the time, who may also stop it.

The program holds a `Reports`, not the listener, so it is compiled once for all listeners. If a listener raises, the
program ends at that point and `to` raises the listener's own exception, not the runtime's report about it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax


class Reports:
    """Callable from a compiled program (`io_callback`)."""

    def __init__(self) -> None:
        self._listener: Callable[..., None] | None = None
        self._raised: BaseException | None = None

    def __call__(self, *values: Any) -> None:
        """Passes values on; what the listener raises is kept for `to`."""
        if self._listener is None:
            return
        try:
            self._listener(*values)
        except BaseException as error:
            self._raised, self._listener = error, None
            raise

    @contextlib.contextmanager
    def to(self, listener: Callable[..., None] | None) -> Iterator[None]:
        """Everything reported by programs run inside goes to `listener`, before this returns.

        Raises:
            What the listener raises, which ends the program.
        """
        self._listener, self._raised = listener, None
        logger = logging.getLogger("jax._src.callback")
        logger.addFilter(self._is_news)
        try:
            yield
            if listener is not None:
                jax.effects_barrier()
        except jax.errors.JaxRuntimeError:
            if self._raised is None:
                raise
        finally:
            logger.removeFilter(self._is_news)
            self._listener = None
        if self._raised is not None:
            raise self._raised

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Not the runtime's traceback of what `to` raises anyway."""
        return not (record.exc_info and record.exc_info[1] is self._raised)
