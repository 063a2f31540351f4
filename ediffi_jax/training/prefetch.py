"""Drawing ahead: a thread takes the next item while the last one is used.

    thread   loader ──▶ batch k+1 on its way to the devices ──▶ queue
    loop                                                         └──▶ step k+1, when step k is dispatched

So waiting for the loader and copying to the devices go on beside the step. One item waits in the queue and one in the
thread's hand: double buffering.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")
END = object()
PATIENCE = 10.0  # seconds that closing waits for an item that is just being drawn


class Ahead(Generic[T]):
    """The items of a generator in their order, drawn ahead; what it raises is raised when its turn comes."""

    def __init__(self, items: Generator[T]) -> None:
        self._queue: queue.Queue = queue.Queue(1)
        self._closed = threading.Event()
        self._end: BaseException | None = None
        # The thread holds no reference to this object, so that one which is forgotten is closed.
        arguments = (items, self._queue, self._closed)
        self._thread = threading.Thread(target=_fill, args=arguments, name="ahead", daemon=True)
        self._thread.start()
        close = weakref.WeakMethod(self.close)
        atexit.register(lambda: (method := close()) and method())

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        """The next item; raises StopIteration after the last one, and what drawing raised."""
        if self._end is None:
            item, self._end = self._queue.get()
            if self._end is None:
                return item
        raise self._end

    def close(self) -> None:
        """Ends the thread, which closes the generator."""
        self._closed.set()
        self._end = self._end or StopIteration()
        with contextlib.suppress(queue.Empty):  # it may be waiting for room
            self._queue.get_nowait()
        self._thread.join(PATIENCE)

    def __del__(self) -> None:
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()


def _fill(items: Generator[T], ready: queue.Queue, closed: threading.Event) -> None:
    """Puts (item, None) for each, and at the end (None, why)."""
    end: BaseException = StopIteration()
    try:
        with contextlib.closing(items):
            for item in items:
                if closed.is_set():
                    return
                ready.put((item, None))
                del item
    except BaseException as error:
        end = error
    if not closed.is_set():
        ready.put((None, end))
