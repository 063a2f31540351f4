"""Branches a trained run into more experts, by hand: every new expert starts as a copy of its parent.

    python -m launch.branch --workdir=runs/base --to=runs/ensemble --cuts=0.125,0.75 --parents=0,0,0 --steps=2000
    python -m launch.train --workdir=runs/ensemble

Two cuts make three experts, the first for the least noise; `--parents` says which expert of the old run
each starts from. `--expert=2` takes out only expert 2 of the three, to be trained alone, with its own
steps and on its own machine. Parameters, their moving average and the optimizer's moments all branch.
"""

from __future__ import annotations

from absl import flags

from ediffi_jax.training import branching
from ediffi_jax.training.errors import ConfigError

from . import _main

WORKDIR = flags.DEFINE_string("workdir", None, "The run to branch.")
TO = flags.DEFINE_string("to", None, "The new workdir.")
CUTS = flags.DEFINE_list("cuts", [], "Quantiles of p(sigma) between the new experts, ascending, inside (0, 1).")
PARENTS = flags.DEFINE_list("parents", [], "For each new expert the old one it starts from; default all 0.")
EXPERT = flags.DEFINE_integer("expert", -1, "Take out only this expert; -1 keeps all.", lower_bound=-1)
STEPS = flags.DEFINE_integer("steps", None, "Steps of the new phase; default as many as the last had.", lower_bound=0)


def main(overrides: list[str]) -> None:
    """Writes the branched checkpoint and config."""
    for name, value, example in (("workdir", WORKDIR.value, "runs/base"), ("to", TO.value, "runs/ensemble")):
        if not value:
            raise ConfigError(f"--{name} is missing; for example --{name}={example}")
    path = branching.branch_workdir(
        WORKDIR.value,
        TO.value,
        cuts=_numbers("cuts", CUTS.value, float),
        parents=_numbers("parents", PARENTS.value, int),
        expert=EXPERT.value,
        steps=STEPS.value,
        overrides=overrides,
    )
    print(f"wrote {path}; go on with: python -m launch.train --workdir={TO.value}")


def _numbers(name: str, words: list[str], kind: type) -> tuple:
    try:
        return tuple(kind(word) for word in words)
    except ValueError as error:
        what = "numbers" if kind is float else "whole numbers"
        raise ConfigError(f"--{name}={','.join(words)} is not a list of {what}") from error


if __name__ == "__main__":
    _main.run(main, remote=("workdir", "to"))
