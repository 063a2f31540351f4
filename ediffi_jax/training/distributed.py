"""Several processes as one run: each starts with the same command and finds the others before it uses a device.

On Cloud TPU pods, and on clusters whose scheduler JAX knows (Slurm, Open MPI), nothing needs to be said; elsewhere
one process, number 0, is the coordinator, and all are told where it is, how many they are, and which each is.
"""

from __future__ import annotations

import jax

from ediffi_jax.training.errors import ConfigError

EXAMPLE = "--coordinator=10.0.0.1:8476 --num_processes=4 --process_id=0"


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process to the others; waits until all are there. Before anything that uses a device.

    Args:
        coordinator: ``host:port`` of process 0; None, as the other two, where JAX finds out by itself.
        num_processes: how many there are.
        process_id: which this is, from 0.

    Raises:
        ConfigError: some of the three but not all, values that cannot be, or a machine on which JAX finds
            no other processes.
    """
    check(coordinator, num_processes, process_id)
    if jax.config.jax_cpu_collectives_implementation is None:  # only where the devices are CPUs
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "" if coordinator else f"; where JAX does not know the cluster, say it: {EXAMPLE}"
        raise ConfigError(f"--distributed: the processes did not find each other ({reason}){hint}") from error


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
