"""Trains a stage: a recipe into a workdir, or a workdir further.

    python -m launch.train --config=configs/scenes.py:stage=base,tiny --workdir=runs/base
    python -m launch.train --config=configs/scenes.py:stage=base --workdir=runs/base --config.optimizer.lr=1e-4
    python -m launch.train --workdir=runs/base              # go on where it stopped
    python -m launch.train --workdir=runs/base --steps=500  # make the last phase 500 steps long
    python -m launch.train --workdir=runs/base --goodput    # what its time went to, over all restarts

Interrupted in any way, the same command goes on from the last checkpoint, bit for bit. Exit codes:
0 finished, 2 what a restart will not mend, 42 to be started again: saved after SIGTERM or Ctrl-C, hung, rolled
back, storage that did not answer. What happens on which failure: docs/training.md.
The workdir receives config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/, goodput/ and owner/.

Several processes on one workdir, each started with the same command: --distributed, on Cloud TPU pods and under
Slurm with nothing else; elsewhere each is told about the others:

    python -m launch.train --workdir=runs/base --distributed --coordinator=10.0.0.1:8476 --num_processes=2 --process_id=0

SIGTERM or Ctrl-C in any of them stops all after the same step.
"""

from __future__ import annotations

from absl import flags

from ediffi_jax.compilation import enable_cache
from ediffi_jax.training import config_files, distributed, goodput, loop
from ediffi_jax.training.errors import ConfigError

from . import _main

CONFIG = flags.DEFINE_string("config", None, "Recipe FILE.py:arguments; --config.a.b=VALUE changes a key.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; new, or one to go on with.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the last phase, instead of the recipe's.", lower_bound=0)
GOODPUT = flags.DEFINE_bool("goodput", False, "Print what the run's time went to, and end.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "This is one of several processes.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main(overrides: list[str]) -> int | None:
    """Reads the config, applies what the command line changes, and trains."""
    if not WORKDIR.value:
        raise ConfigError("--workdir is missing; for example --workdir=runs/base")
    if GOODPUT.value:
        return print(goodput.report(WORKDIR.value))
    processes = {name.name: name.value for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)}
    if DISTRIBUTED.value:
        distributed.connect(**processes)
    elif alone := [name for name, value in processes.items() if value is not None]:
        raise ConfigError(f"--{alone[0]} is for several processes; expected --distributed beside it")
    config = config_files.load(CONFIG.value) if CONFIG.value else config_files.read_workdir(WORKDIR.value)
    if config is None:
        raise ConfigError(
            f"--workdir={WORKDIR.value} holds no run; for a new one name a recipe, such as"
            " --config=configs/scenes.py:stage=base"
        )
    config_files.override(config, overrides)
    if STEPS.value is not None:
        if not config.phases:
            raise ConfigError("--steps: config.phases is empty; expected at least one phase such as {'steps': 1000}")
        config.phases[-1]["steps"] = STEPS.value
    enable_cache()
    return loop.train(config, WORKDIR.value)


if __name__ == "__main__":
    _main.run(main, remote=("workdir",))
