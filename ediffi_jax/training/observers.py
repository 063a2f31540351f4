"""What watches a run: console, metrics as lines, TensorBoard, Weights & Biases, and the profiler.

An observer has `tick(step)`, `write(step, values)` for numbers, `image(step, name, pixels)` for pictures,
`saved(step)` and `close()`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image
from tqdm import tqdm

from ediffi_jax import stores
from ediffi_jax.errors import install
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.lines import lines_of

FLUSH, FLUSH_STORE = 20.0, 300.0  # seconds after which TensorBoard sees what is new: on a disk, in a store
Pixels = UInt8[np.ndarray, "h w 3"]


class Observer:
    """Receives what a run measures; does nothing with it unless a subclass says so."""

    def tick(self, step: int) -> None:
        """`step` was dispatched."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers measured at `step`, under names such as ``loss/0`` (expert 0)."""

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """A picture made at `step`."""

    def drawn(self, step: int, record_ids: Int[np.ndarray, "e b"]) -> None:
        """The records that `step` trains on, as far as they are this process's; with `config.data.record_ids`."""

    def saved(self, step: int) -> None:
        """A checkpoint of `step` is about to be written."""

    def close(self) -> None:
        """Finishes what is pending."""


class Console(Observer):
    """A progress bar on a terminal, else one line per interval."""

    def __init__(self, total: int, initial: int, name: str) -> None:
        self._total = total
        self._name = name
        shown = {"total": total, "initial": initial, "desc": name, "unit": "step", "dynamic_ncols": True}
        self._bar = tqdm(**shown) if _terminal() else None

    def tick(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows losses, speed and remaining time."""
        losses = " ".join(f"{values[key]:.4f}" for key in sorted(values) if key.startswith("loss/"))
        curves = " ".join(f"{values[key]:.4f}" for key in sorted(values) if key.startswith("held_out/"))
        if self._bar is not None and losses:
            self._bar.set_postfix_str(f"loss {losses}, {values.get('images_per_s', 0):.0f} images/s")
        elif losses:
            rate = ""
            if "eta_s" in values:
                rate = f"  {values['images_per_s']:.1f} images/s  ETA {clock_time(values['eta_s'])}"
            print(f"{self._name} step {step}/{self._total}  loss {losses}{rate}", flush=True)
        if curves:
            tqdm.write(f"{self._name} step {step}/{self._total}  held-out loss {curves}")

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


class Files(Observer):
    """Metrics, one JSON object a line (see `lines`), and `samples/<name>_<step>.png`."""

    def __init__(self, workdir: epath.Path, step: int) -> None:
        """Keeps lines up to `step`: what a killed run wrote after its last checkpoint will come again."""
        self._folder = workdir
        self._lines = lines_of(workdir, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line."""
        rounded = {name: round(value, 7) for name, value in values.items()}
        self._lines.append(json.dumps({"step": step, **rounded}) + "\n")

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Writes a PNG."""
        folder = self._folder / "samples"
        if not stores.is_remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}_{step:07d}.png").open("wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")

    def saved(self, step: int) -> None:
        """Lines up to a checkpoint are there when it is."""
        self._lines.flush()

    def close(self) -> None:
        """Writes the last lines."""
        self._lines.flush()


class TensorBoard(Observer):
    """Event files for TensorBoard, without TensorFlow or a writing thread: one that dies of a full disk hangs us.

    For a store they are written here, and uploaded one after another.
    """

    def __init__(self, workdir: epath.Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = workdir / "tensorboard"
        self._target = folder if stores.is_remote(workdir) else None
        self._begun, self._files = int(time.time()), 0
        if self._target:
            self._here = tempfile.TemporaryDirectory()
            folder = epath.Path(self._here.name)
        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._flushed = Event, time.monotonic()
        self._open = lambda: EventsWriter(str(folder / "events"))
        self._writer = self._open()
        if step:  # what was written after this step comes again
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=log))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars."""
        from tensorboardX import summary

        for name, value in values.items():
            self._add(step, summary.scalar(name, value))
        if self._target and time.monotonic() - self._flushed > FLUSH_STORE:
            self._upload()
            self._writer = self._open()
        elif not self._target and time.monotonic() - self._flushed > FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Adds a picture."""
        from tensorboardX import summary

        self._add(step, summary.image(name, pixels, dataformats="HWC"))

    def _add(self, step: int, told: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=told))

    def _upload(self) -> None:
        """Ends the event file and puts it into the store, under a name that follows those before."""
        self._writer.close()
        for file in sorted(Path(self._here.name).iterdir()):
            name = f"events.out.tfevents.{self._begun:010d}.{self._files:06d}"
            (self._target / name).write_bytes(file.read_bytes())
            file.unlink()
            self._files += 1
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes the event file."""
        if self._target:
            self._upload()
        else:
            self._writer.close()


class Wandb(Observer):
    """Weights & Biases, for those who have it installed."""

    def __init__(self, project: str, workdir: epath.Path, config: Mapping[str, Any]) -> None:
        """Raises ConfigError if the package is missing."""
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"config.wandb needs wandb: {install('wandb')}, or --config.wandb=") from error
        self._wandb = wandb
        self._run = wandb.init(project=project, name=workdir.name, id=workdir.name, resume="allow", config=dict(config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Logs a picture."""
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class Profile:
    """Traces steps first..last with `jax.profiler` into `workdir/profile`, to be read with XProf."""

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None) -> None:
        self._target = workdir / "profile"
        self._remote = stores.is_remote(workdir)
        self._folder = tempfile.mkdtemp() if self._remote and steps else str(self._target)
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """Called before step number `step` (counted from 1) is computed."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Called after it was dispatched; waits for `result` where the trace ends."""
        if self._running and self._steps and step >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            if self._remote:
                stores.upload(Path(self._folder), self._target)
                shutil.rmtree(self._folder)
            logging.info("profile written to %s", self._target)


def clock_time(seconds: float) -> str:
    """Seconds as ``h:mm:ss``."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"


def _terminal() -> bool:
    return sys.stderr.isatty() and jax.process_index() == 0
