"""One request at a time on a cascade: seen step by step, and stopped when nobody waits for it any more.

    request ─▶ thread: cascade.run ──callback──▶ Step, Step, …, Done    read by iterating
                        ▲ raises at the next step as soon as the reader is closed
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ediffi_jax.cascade import Batch, Cascade, to_uint8
from ediffi_jax.request import Request


class Stopped(Exception):
    """Raised inside the sampling thread once the reader has gone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A solver's step.

    Attributes:
        stage: its name.
        number, of: which step, from 1, of how many.
        sigma: noise level it started from.
        expert: index of the expert that took it.
        images: uint8 [B, r, r, 3], what the model expects of the clean images at this point.
        share: of all steps of all stages, so far.
    """

    stage: str
    number: int
    of: int
    sigma: float
    expert: int
    images: UInt8[np.ndarray, "b r r 3"]
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """The end: for each stage its images, uint8 [n, r, r, 3]."""

    images: Mapping[str, UInt8[np.ndarray, "n r r 3"]]


class Jobs:
    """Takes turns on a cascade.

    Attributes:
        cascade: what samples.
    """

    def __init__(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self._turn = threading.Lock()  # a stage has one listener at a time

    def run(self, request: Request) -> Iterator[Step | Done]:
        """The request's steps as they are taken, at the end its images; closing the iterator stops the work.

        Raises:
            Whatever sampling raises.
        """
        with self._turn:
            yield from self._run(request)

    def _run(self, request: Request) -> Iterator[Step | Done]:
        said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop = threading.Event()
        thread = threading.Thread(target=self._work, args=(request, said, stop), name="studio job", daemon=True)
        thread.start()
        try:
            while not isinstance(item := said.get(), Done):
                if isinstance(item, BaseException):
                    raise item
                yield item
            yield item
        finally:
            stop.set()
            thread.join()

    def _work(self, request: Request, said: queue.SimpleQueue, stop: threading.Event) -> None:
        """In the thread: samples, and puts what happens into `said`."""
        counts = {name: stage.steps for name, stage in request.stages.items()}
        rounds = sum(counts.values()) * len(request.batches(len(self.cascade.stages[0].devices)))
        taken = 0

        def listen(stage: str, step: int, sigma: float, expert: int, x0: np.ndarray) -> None:
            nonlocal taken
            if stop.is_set():
                raise Stopped
            taken += 1
            said.put(
                Step(
                    stage=stage, number=step + 1, of=counts[stage], sigma=sigma, expert=expert,
                    images=to_uint8(x0), share=min(1.0, taken / rounds),
                )
            )  # fmt: skip

        batches: list[Batch] = []
        try:
            for batch in self.cascade.run(request, callback=listen, progress=False):
                batches.append(batch)
                if stop.is_set():
                    raise Stopped
            names = [stage.spec.name for stage in self.cascade.stages]
            said.put(Done(images={name: np.concatenate([batch.images[name] for batch in batches]) for name in names}))
        except BaseException as error:
            said.put(error)
