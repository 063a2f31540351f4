"""Trains with several processes on this machine's CPUs: a run over several hosts, rehearsed on one.

    python -m launch.local --processes=4 -- --config=configs/scenes.py:stage=base,tiny --workdir=runs/base
    python -m launch.local --processes=2 --devices=4 -- --workdir=runs/base --config.mesh.fsdp=2

What follows "--" are flags of launch.train. Each process has --devices emulated devices; together they are the mesh. A
line "[1] ..." was printed by process 1. SIGTERM or Ctrl-C here, or SIGTERM to any of them, stops all after the same
step; a second one here kills them. If one dies the others are killed.
Exit codes: 0 finished, 42 saved and wants a restart, else that of the first which failed (128 + n for signal n).

The GPUs of one machine need none of this: launch.train alone uses all of them. docs/processes.md
"""

from __future__ import annotations

import sys

from absl import flags

from ediffi_jax.training import local
from ediffi_jax.training.errors import ConfigError

from ._main import refuse_overrides, run

PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
DEVICES = flags.DEFINE_integer("devices", 1, "Emulated CPU devices of each.", lower_bound=1)
OURS = ("distributed", "coordinator", "num_processes", "process_id")


def main(overrides: list[str]) -> int:
    """Starts them and waits."""
    refuse_overrides(overrides)
    words = split(sys.argv)[1]
    if not words:
        raise ConfigError("nothing to train; expected flags of launch.train after --, such as: -- --workdir=runs/base")
    for word in words:
        if word.lstrip("-").partition("=")[0] in OURS:
            raise ConfigError(f"{word} is set by launch.local; expected it left out")
    return local.run([sys.executable, "-m", f"{__package__}.train", *words], PROCESSES.value, DEVICES.value)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What is before the first "--", and what after it."""
    where = argv.index("--") if "--" in argv else len(argv)
    return argv[:where], argv[where + 1 :]


if __name__ == "__main__":
    run(main, split(sys.argv)[0])
