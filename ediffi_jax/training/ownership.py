"""One run at a time has a workdir: `workdir/owner/<n>.json`, created by whoever is first to take number n.

The owner is whoever holds the highest number. It rewrites its claim every few seconds and marks it when it is
done, so who comes next can tell: released, or dead on this machine: taken over at once, by the next number;
alive on this machine: refused; on another machine, or in another container: watched, and refused as soon as the
claim changes, or taken over when it has not for `SILENCE`. Only its own clock tells how long that was.

A claim that is overtaken or gone ends the run that had it, before it writes another checkpoint. Works on disks
and in object stores alike: nothing is renamed, appended to or locked.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from ediffi_jax.training import claims
from ediffi_jax.training.errors import RestartError, StorageError, TrainingError
from ediffi_jax.training.storage import writing

BEAT = 10.0  # seconds between two signs of life
SILENCE = 60.0  # of an owner that cannot be looked at, until it counts as dead
_HELD: set[str] = set()  # claims of this process whose runs have not ended: it may train more than once


@contextlib.contextmanager
def owned(workdir: epath.Path) -> Iterator[Ownership]:
    """Has the workdir while entered; with several processes the first of them has it for all.

    Raises:
        TrainingError: another run has it.
        StorageError, RestartError: it cannot be written.
    """
    owner, refusal = Ownership(workdir), None
    if jax.process_index() == 0:
        try:
            owner.claim()
        except TrainingError as error:
            refusal = error
    code = refusal.exit_code if refusal else 0
    if jax.process_count() > 1:
        code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
    if code and not refusal:
        kind = RestartError if code == RestartError.exit_code else TrainingError
        refusal = kind(f"process 0 could not take {workdir}; it says why")
    if refusal:
        raise refusal
    owner.start()
    try:
        yield owner
    finally:
        owner.release()


class Ownership:
    """This process's claim on a workdir; in processes other than the first, none is made or checked."""

    def __init__(self, workdir: epath.Path) -> None:
        self._workdir = workdir
        self._folder = workdir / "owner"
        self._number = 0
        self._since = time.time()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="ownership", daemon=True)

    def claim(self) -> None:
        """Takes the next number, once nobody alive has the last. Raises as `owned`."""
        with writing(self._workdir):
            while True:
                last = (claims.numbers(self._folder) or [0])[-1]
                if last:
                    self._await_end(last)
                if claims.create(self._folder, last + 1, self._text()):
                    break
            self._number = last + 1
            self.check()
            for number in claims.numbers(self._folder):
                if number < self._number:
                    claims.place(self._folder, number).unlink(missing_ok=True)
            _HELD.add(str(claims.place(self._folder, self._number)))

    def _await_end(self, number: int) -> None:
        """Returns when the owner of this number is known to be done or dead. Raises TrainingError if it is alive."""
        before, since = self._read(number), time.monotonic()
        told = _parse(before)
        if told.get("released"):
            return
        if told.get("machine") == machine():
            ended_here = told["pid"] == os.getpid() and str(claims.place(self._folder, number)) not in _HELD
            if alive(told["pid"], told["started"]) and not ended_here:
                raise self._refusal(told)
            return
        who = f"{told.get('host', '?')}, process {told.get('pid', '?')}"
        line = f"{self._workdir} was last had by {who}; waiting up to {SILENCE:.0f} s for a sign of life"
        print(line, file=sys.stderr, flush=True)
        while time.monotonic() - since < SILENCE:
            time.sleep(min(1.0, SILENCE / 10))
            now = self._read(number)
            if _parse(now).get("released"):
                return
            if now != before and _parse(now) and claims.numbers(self._folder)[-1:] == [number]:
                raise self._refusal(_parse(now))

    def _refusal(self, told: dict) -> TrainingError:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(told.get("since", 0)))
        host, pid = told.get("host"), told.get("pid")
        return TrainingError(
            f"another run has {self._workdir}: host {host}, process {pid}, since {since}; to take over stop it there"
            f" (kill {pid}: it saves first) and start this again, or name another --workdir"
        )

    def check(self) -> None:
        """Raises TrainingError if another run took the workdir over, StorageError if it is gone."""
        if not self._number:
            return
        with writing(self._workdir):
            found = claims.numbers(self._folder)
        if self._number in found and found[-1] == self._number:
            return
        if found:
            raise TrainingError(
                f"another run took {self._workdir} over while this one was silent: claim {found[-1]} follows"
                f" {self._number}; this one stops and writes nothing more"
            )
        raise StorageError(f"{self._workdir} is gone, or was emptied; this run stops and writes nothing more")

    def start(self) -> None:
        """Begins to give signs of life."""
        if self._number:
            self._thread.start()

    def release(self) -> None:
        """Lets go, so that the next run need not wait."""
        self._done.set()
        _HELD.discard(str(claims.place(self._folder, self._number)))
        if self._thread.ident:
            self._thread.join(timeout=BEAT)
        with contextlib.suppress(OSError, TrainingError):
            if self._number:
                self.check()
                claims.place(self._folder, self._number).write_text(self._text(released=True))

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            try:
                self.check()
                claims.place(self._folder, self._number).write_text(self._text())
            except (OSError, TrainingError) as error:  # the loop's own check stops it, at the next save
                logging.warning("no sign of life could be left: %s", error)

    def _text(self, released: bool = False) -> str:
        told = {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine(), "started": started(os.getpid())}
        return json.dumps({**told, "since": self._since, "alive": time.time(), "released": released})

    def _read(self, number: int) -> str:
        try:
            return claims.place(self._folder, number).read_text()
        except FileNotFoundError:
            return ""


def _parse(text: str) -> dict:
    """A claim; nothing of one cut short by a kill, or while it is rewritten."""
    with contextlib.suppress(ValueError):
        told = json.loads(text)
        return told if isinstance(told, dict) else {}
    return {}


def machine() -> str:
    """The kernel that runs us and the processes that we can see: a container is a machine of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> str:
    """When a process started, which tells it from a later one of the same number; "" where nobody says."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if state in "ZX" else fields[18]


def alive(pid: int, start: str) -> bool:
    """Whether the process of this number that started then still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return started(pid) == start
