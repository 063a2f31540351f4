"""The whole method from nothing on two CPU cores, in at most 20 minutes, with a report at the end.

    bash launch/quickstart.sh             # also makes .venv and installs what is needed
    python -m launch.quickstart           # in an environment that has it
    python -m launch.quickstart --tiny    # every step in miniature: shows that it runs, not what it learns

Renders data, trains a base model, branches it into three experts and trains them, goes on with the single
model for as many images, trains both super-resolution stages, samples, and writes report.html: pictures with
their prompts, the loss of single model and ensemble at every noise level, what was run and how long it took.
Ctrl-C stops it (exit code 130); the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from ediffi_jax.compilation import enable_cache
from ediffi_jax.evaluation import quickstart
from ediffi_jax.evaluation.steps import Interrupted
from ediffi_jax.training.errors import ConfigError

from . import _main

TINY = flags.DEFINE_bool("tiny", False, "Every step in miniature, in a few minutes.")
OUT = flags.DEFINE_string("out", None, "Folder to work in; default runs/quickstart, with --tiny runs/quickstart_tiny.")
INTERRUPTED = 130


def main(overrides: list[str]) -> int:
    """Runs what is not done yet."""
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: the quick start has its own sizes; change keys with launch.train")
    enable_cache()
    folder = Path(OUT.value or ("runs/quickstart_tiny" if TINY.value else "runs/quickstart"))
    try:
        path = quickstart.run(folder, quickstart.TINY if TINY.value else quickstart.FULL)
    except Interrupted:
        print("\nInterrupted. What is done is kept: the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    print(f"Report: {path}")
    return 0


if __name__ == "__main__":
    _main.run(main)
