"""Several processes of one run on this machine, on its CPUs: what a run over several hosts does, without the hosts.

The processes are given a coordinator on a free port and emulated devices of their own. What they print comes out line
by line with their number before it. A signal to us goes on to all of them. Where one fails the others cannot go on
without it: they have `GRACE` seconds to say what they have to say, and are then killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

from ediffi_jax.training.errors import RESTART

GRACE = 5.0  # seconds
DEVICE_COUNT = "--xla_force_host_platform_device_count"


def run(command: Sequence[str], processes: int, devices: int = 1) -> int:
    """Starts a command as several processes, and waits for all of them.

    Args:
        command: takes the flags of `distributed.connect`.
        processes: how many.
        devices: emulated CPU devices of each.

    Returns:
        0 if all finished; 42 if they stopped to be started again, or one did and others were then aborted for the want
        of it; else the exit code of the first that failed, 128 + n where signal n ended it.
    """
    together = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
    started: list[subprocess.Popen] = []
    try:
        for index in range(processes):
            started.append(start([*command, *together, f"--process_id={index}"], devices))
            print(f"[{index}] pid {started[-1].pid}", file=sys.stderr, flush=True)
        with forwarding(started), printing(started):
            return wait(started)
    finally:
        kill(started)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: Sequence[str], devices: int) -> subprocess.Popen:
    """One of the processes; in a session of its own, so that a terminal's Ctrl-C reaches us alone."""
    flags = re.sub(rf"{DEVICE_COUNT}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {
        "JAX_PLATFORMS": "cpu",
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"{flags} {DEVICE_COUNT}={devices}".strip(),
    }
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, start_new_session=True, text=True, errors="replace", **pipes)


@contextlib.contextmanager
def forwarding(started: Sequence[subprocess.Popen]) -> Iterator[None]:
    """While entered, SIGTERM and Ctrl-C go to all processes as SIGTERM; a second one kills them."""
    signalled = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        for process in started:
            process.send_signal(signal.SIGKILL if signalled else signal.SIGTERM)
        signalled = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def printing(started: Sequence[subprocess.Popen]) -> Iterator[None]:
    """While entered, passes on what the processes print; left, all of it has been."""
    pipes = [
        (index, source, sink)
        for index, process in enumerate(started)
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    threads = [threading.Thread(target=_pass_on, args=pipe, daemon=True) for pipe in pipes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(GRACE)


def _pass_on(index: int, source: IO[str], sink: IO[str]) -> None:
    for line in source:
        sink.write(f"[{index}] {line.rstrip()}\n")
        sink.flush()


def wait(started: Sequence[subprocess.Popen]) -> int:
    """Waits for all, or kills the others some time after one has failed; returns the exit code of all together."""
    ended: dict[int, int] = {}
    worst, deadline = 0, None
    while len(ended) < len(started):
        for index, process in enumerate(started):
            if index in ended or process.poll() is None:
                continue
            ended[index] = process.returncode
            if process.returncode:
                print(f"[{index}] ended with {said(process.returncode)}", file=sys.stderr, flush=True)
            if process.returncode in (0, RESTART):
                worst = worst or process.returncode
            elif deadline is None:
                deadline = time.monotonic() + GRACE
                aborted = worst == RESTART and process.returncode < 0
                worst = worst if aborted else process.returncode
        if deadline is not None and time.monotonic() > deadline:
            kill(started)
        time.sleep(0.05)
    return worst if worst >= 0 else 128 - worst


def said(code: int) -> str:
    """A process's return code in words."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def kill(started: Sequence[subprocess.Popen]) -> None:
    """Ends what still runs, at once."""
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
