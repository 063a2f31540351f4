"""Several processes as one run: each starts with the same command and finds the others before it uses a device.

On Cloud TPU pods, and on clusters whose scheduler JAX knows (Slurm, Open MPI), nothing needs to be said; elsewhere
one process, number 0, is the coordinator, and all are told where it is, how many they are, and which each is.

Peers that do not come are seldom a mistake: their node is still being made, or restarted. Then every process ends with
42, and all are started again. Only process 0 can tell a wrong address, which does not lead back to it: 2.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator

import jax

from ediffi_jax.training.errors import ConfigError, RestartError, TrainingError

EXAMPLE = "--coordinator=10.0.0.1:8476 --num_processes=4 --process_id=0"

WAIT = 300.0  # seconds for all to be there
GRACE = 60.0  # seconds by which JAX, which ends with a stack dump and SIGABRT, is more patient than we are
REACH = 5.0  # seconds for process 0 to reach itself


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait: float = WAIT,
) -> None:
    """Joins this process to the others; waits until all are there. Before anything that uses a device.

    Args:
        coordinator: ``host:port`` of process 0; None, as the other two, where JAX finds out by itself.
        num_processes: how many there are.
        process_id: which this is, from 0.
        wait: seconds, after which the process ends itself with the line and exit code of `missed`.

    Raises:
        ConfigError: some of the three but not all, values that cannot be, or a machine on which JAX finds
            no other processes.
        RestartError: the others did not come.
    """
    check(coordinator, num_processes, process_id)
    if jax.config.jax_cpu_collectives_implementation is None:  # only where the devices are CPUs
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with _ended_after(wait, coordinator, process_id):
            timeout = round(wait + GRACE)
            jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=timeout)
    except RuntimeError as error:
        raise missed(coordinator, process_id, " ".join(str(error).split())[:200]) from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        hint = "" if coordinator else f"; where JAX does not know the cluster, say it: {EXAMPLE}"
        raise ConfigError(f"--distributed: the processes did not find each other ({reason}){hint}") from error


def missed(coordinator: str | None, process_id: int | None, reason: str) -> TrainingError:
    """What to say, and whether to start again, when the others did not come."""
    if coordinator and process_id == 0:
        host, _, port = coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
        except OSError as error:
            told = f"--coordinator={coordinator} does not lead to this machine, where process 0 is ({error})"
            return ConfigError(f"{told}; expected its address, as the others reach it")
    return RestartError(f"--distributed: the other processes did not come ({reason}); another start may find them")


@contextlib.contextmanager
def _ended_after(seconds: float, coordinator: str | None, process_id: int | None) -> Iterator[None]:
    """Ends this process, which is waiting inside a call that does not return."""

    def end() -> None:
        error = missed(coordinator, process_id, f"waited {seconds:g} s")
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises ConfigError unless all three are given and possible, or none is."""
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise ConfigError(f"{' and '.join(missing)} missing; expected all three or none, such as {EXAMPLE}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator={coordinator}; expected HOST:PORT of process 0, such as 10.0.0.1:8476")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} with --num_processes={num_processes}; expected 0 to {num_processes - 1}"
            if num_processes > 0
            else f"--num_processes={num_processes}; expected 1 or more"
        )
