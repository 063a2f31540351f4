"""Measures the paper's claims at quarter scale, and says of each whether it was reproduced: report.html.

  python -m launch.reproduce --budget=minutes --out=reproduction                       # all nine, a first answer
  python -m launch.reproduce --budget=hours --out=reproduction_full                    # what docs/reproduction.md shows
  python -m launch.reproduce --budget=hours --claims=paint,style --out=reproduction_full

Trains small ensembles and super-resolution networks on scenes, samples from the bundled cascade, and compares. Every
number is a mean over --seeds with its spread; the rule that makes a verdict of them is the same for all claims and
stands in the report. --budget=seconds only shows that everything runs. Stopped or killed, the same command goes on;
seeds and claims may be added later, and calls with other --claims may share one --out at the same time.
"""

from __future__ import annotations

import sys

from absl import flags

from ediffi_jax.compilation import enable_cache

from ._main import refuse_overrides, run

BUDGETS = ("seconds", "minutes", "hours")
BUDGET = flags.DEFINE_enum("budget", "minutes", BUDGETS, "How long it may take, in all; decides sizes and numbers.")
CLAIMS = flags.DEFINE_list("claims", None, "Only these; default all. An unknown name lists them.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Whole repetitions: of training, of prompts and of noise.")
CASCADE = flags.DEFINE_string("cascade", "scenes", "Release for the claims that train nothing: a cascade of scenes.")
OUT = flags.DEFINE_string("out", "reproduction", "Folder to work in.")
INTERRUPTED = 130


def main(overrides: list[str]) -> int:
    """Measures what is not measured yet."""
    refuse_overrides(overrides)
    from ediffi_jax.evaluation import inputs
    from ediffi_jax.evaluation.steps import Interrupted
    from ediffi_jax.reproduction import report, run as running

    enable_cache()
    wishes = {
        "budget": BUDGET.value,
        "seeds": inputs.seeds(SEEDS.value),
        "names": CLAIMS.value,
        "cascade": CASCADE.value,
    }
    try:
        found = running.reproduce(OUT.value, **wishes, say=lambda text: print(text, flush=True))
    except Interrupted:
        print("\nInterrupted. What is done is kept: the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    print(f"{report.text(found)}\nReport: {OUT.value}/{report.HTML}")
    return 0


if __name__ == "__main__":
    run(main)
