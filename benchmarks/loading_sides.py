"""The sides of `benchmarks.loading`: our loader, and PyTorch's DataLoader over webdataset, each in its own processes.

A side is a process with one worker. It draws batches when told to, and between its turns its worker is stopped
(SIGSTOP), so that neither works ahead while the other is timed: the buffers are as full at the end of a turn as at
its beginning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import psutil
from PIL import Image

from ediffi_jax.data.views import Picture, Views

BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is made of a picture: its centre square at `views.source`, then `views.cut`.

    Attributes:
        name: for the table.
        pictures: which set of `loading_pictures`.
        views: the sizes.
    """

    name: str
    pictures: str
    views: Views


CASES = {
    case.name: case
    for case in (
        Case(name="64", pictures="mixed", views=Views(source=64, resolution=64)),
        Case(name="256", pictures="mixed", views=Views(source=256, resolution=256)),
        Case(name="1024-256", pictures="large", views=Views(source=1024, resolution=1024, low=256, crop=256)),
    )
}


def our_transform(views: Views, encoded: bytes, rng: np.random.Generator) -> dict[str, Picture]:
    """As our loader does it."""
    return views.cut(views.read(encoded), rng)


def pillow_transform(views: Views, image: Image.Image, rng: np.random.Generator) -> dict[str, Picture]:
    """The same in Pillow: its BOX filter is the box average."""
    side, source = min(image.size), views.source
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((source, source), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    if views.crop:
        steps = (views.resolution - views.crop) // views.factor + 1
        y, x = rng.integers(steps, size=2) * views.factor
        image = image.crop((x, y, x + views.crop, y + views.crop))
    made = {"image": np.asarray(image)}
    if views.low:
        small = views.side // views.factor
        made["low_res"] = np.asarray(image.resize((small, small), Image.Resampling.BOX))
    return made


def ours(case: Case, tfds_folder: str, tars: list[str], workers: int) -> Iterator[Any]:
    """Batches of our loader."""
    del tars
    from ediffi_jax.data.loader import make_loader

    views = case.views
    sizes = {"resolution": views.resolution, "source_resolution": views.source, "low_resolution": views.low}
    data = {"name": tfds_folder, "crop": views.crop, "clip_resolution": 0, "workers": workers, **sizes}
    return make_loader(data, split="train", seed=0, num_experts=1, batch_size=BATCH).iterate()


def webdataset(case: Case, tfds_folder: str, tars: list[str], workers: int, with_pillow: bool) -> Iterator[Any]:
    """Batches of a WebDataset pipeline, decoded with Pillow as it does by itself, or with our transform."""
    del tfds_folder
    import torch
    import webdataset as wds

    torch.set_num_threads(1)
    data = wds.WebDataset(tars, shardshuffle=len(tars), resampled=False, empty_check=False).shuffle(256)
    data = data.decode("pil") if with_pillow else data
    transform = functools.partial(_transformed, case.views, with_pillow)
    data = data.to_tuple("jpg", "txt").map_tuple(transform, _text).repeat().batched(BATCH, collation_fn=_collate)
    options = {"multiprocessing_context": "spawn"} if workers else {}
    return iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers, **options))


def _transformed(views: Views, with_pillow: bool, picture: Any) -> dict[str, Picture]:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(random.getrandbits(64))
    return (pillow_transform if with_pillow else our_transform)(views, picture, rng)


def _text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode()


def _collate(samples: list[tuple[dict[str, Picture], str]]) -> tuple[dict[str, np.ndarray], list[str]]:
    made = [views for views, _ in samples]
    return {name: np.stack([views[name] for views in made]) for name in made[0]}, [text for _, text in samples]


SIDES: dict[str, Callable[..., Iterator[Any]]] = {
    "ours": ours,
    "webdataset": functools.partial(webdataset, with_pillow=True),
    "webdataset, our decoding": functools.partial(webdataset, with_pillow=False),
}


class Side:
    """A side in a process of its own, with a worker."""

    def __init__(self, name: str, case: Case, tfds_folder: str, tars: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, name, case, tfds_folder, tars)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()

    def draw(self, batches: int) -> tuple[float, float]:
        """Wall and processor seconds of drawing so many; the latter of all the side's processes."""
        self._pipe.send(batches)
        return self._pipe.recv()

    def close(self) -> None:
        """Ends the processes."""
        self._pipe.send(0)
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Any, name: str, case: Case, tfds_folder: str, tars: list[str]) -> None:
    """Draws as many batches as the pipe says, until it says 0."""
    me = psutil.Process()
    batches = SIDES[name](case, tfds_folder, tars, workers=1)
    while count := pipe.recv():
        workers = me.children(recursive=True)
        for worker in workers:
            worker.resume()
        wall, processor = time.perf_counter(), _seconds(me)
        for _ in range(count):
            next(batches)
        wall, workers = time.perf_counter() - wall, me.children(recursive=True)
        for worker in workers:
            worker.suspend()
        pipe.send((wall, _seconds(me) - processor))
    for worker in me.children(recursive=True):
        worker.kill()
    os._exit(0)  # its worker is gone; nothing is left to be finished


def _seconds(process: psutil.Process) -> float:
    """Processor time of a process and those below it."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total
