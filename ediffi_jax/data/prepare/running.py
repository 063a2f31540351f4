"""Pipelines on a runner, watched through the files they finish."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ediffi_jax import stores
from ediffi_jax.data.prepare.reasons import PrepareError
from ediffi_jax.data.views import LoaderError

DIRECT = "direct"
_OURS = {error.__name__: error for error in (PrepareError, LoaderError, stores.StoreError, stores.SilentStoreError)}
_TOLD = re.compile(rf"^(?:[\w.]+\.)?({'|'.join(_OURS)}): (.*?)(?: \[while running .*)?$", re.M)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """Where pipelines run.

    Attributes:
        runner: "direct" is this machine; any other name is Beam's, FlinkRunner or DataflowRunner, say.
        options: Beam's own flags, as on a command line.
        workers: threads of the direct runner, 0 for one per core.
        every: seconds between lines of progress.
        say: takes such a line.
    """

    runner: str = DIRECT
    options: str = ""
    workers: int = 0
    every: float = 10
    say: Callable[[str], None] = lambda line: print(line, flush=True)

    def check(self) -> None:
        """Raises PrepareError for a runner that Beam does not know."""
        self.pipeline()

    def pipeline(self) -> beam.Pipeline:
        """A pipeline to fill. Raises PrepareError for a runner that Beam does not know."""
        words = shlex.split(self.options)
        if self.runner == DIRECT:
            # Decoding and resizing leave Python's lock to other threads; words given by the user come last and win.
            # Beam's own default would first look for a program to download.
            workers = self.workers or os.cpu_count() or 1
            usual = [f"--direct_num_workers={workers}", "--direct_running_mode=multi_threading"]
            return beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([*usual, *words]))
        try:
            return beam.Pipeline(runner=self.runner, options=PipelineOptions(words))
        except (ValueError, ImportError) as error:
            raise PrepareError(f"--runner={self.runner}: {str(error).splitlines()[0]}") from error

    def run(self, pipeline: beam.Pipeline, watch: Callable[[float], str | None]) -> float:
        """Runs a pipeline to its end; returns the seconds it took.

        Args:
            pipeline: filled.
            watch: called now and then with the seconds so far, returns a line of progress.

        Raises:
            PrepareError: a task said so, or the runner gave up.
            LoaderError, StoreError, SilentStoreError: a task said so.
        """
        start = time.monotonic()
        with self._watched(watch, start):
            try:
                with _quiet():
                    pipeline.run().wait_until_finish()
            except Exception as error:  # runners wrap what tasks raise in types of their own
                text = f"{type(error).__name__}: {error}"
                if told := _TOLD.findall(text):
                    name, line = told[-1]
                    raise _OURS[name](line) from error
                if self.runner != DIRECT and "while running" not in text:  # no task of ours: the runner itself
                    raise PrepareError(f"--runner={self.runner} failed: {' '.join(text.split())[:300]}") from error
                raise
        return time.monotonic() - start

    @contextlib.contextmanager
    def _watched(self, watch: Callable[[float], str | None], start: float) -> Iterator[None]:
        over = threading.Event()

        def tell() -> None:
            while not over.wait(self.every):
                if line := watch(time.monotonic() - start):
                    self.say(line)

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Beam logs what a task raises, at length and several times, and then raises it; once is enough."""
    logger = logging.getLogger("apache_beam")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
