"""What every verb shares: flags, `--help` with an example, one-line errors, exit codes.

    0 finished · 2 what a restart would not mend · 42 wants a restart (docs/training.md)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging

from ediffi_jax.errors import UserError, nearest

from ._stores import leave, refuse_remote

CONFIG_PREFIX = "--config."
Main = Callable[[list[str]], int | None]


def run(main: Main, argv: Sequence[str] | None = None, remote: Sequence[str] = ()) -> None:
    """Runs a verb and exits.

    Args:
        main: takes the config overrides ``a.b=value`` that were given as ``--config.a.b=value``, and
            returns the exit code (None for 0). Its module's docstring is the help text.
        argv: default `sys.argv`.
        remote: flags whose path may be in an object store.
    """
    argv = list(sys.argv if argv is None else argv)
    if any(word in ("--help", "-h", "-help", "--helpfull") for word in argv[1:]):
        print(help_text(main.__globals__["__doc__"], argv[0]))
        sys.exit(0)
    try:
        words, overrides = split_overrides(argv)
        if rest := parse(words):
            raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        refuse_remote(remote)
        logging.use_absl_handler()
        logging.set_verbosity(logging.WARNING)
        sys.exit(main(overrides) or 0)
    except (UserError, TimeoutError) as error:
        leave(error)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def help_text(doc: str, module: str) -> str:
    """What `--help` prints: a verb's docstring, and the flags that absl has under the name of its module."""
    return f"{doc}\nFlags:\n" + flags.FLAGS.module_help(module).strip().partition("\n")[2]


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates ``--config.a.b=value`` from the other words of a command line."""
    words = [word for word in argv if not word.startswith(CONFIG_PREFIX)]
    return words, [word.removeprefix(CONFIG_PREFIX) for word in argv if word.startswith(CONFIG_PREFIX)]


def refuse_overrides(overrides: Sequence[str]) -> None:
    """Raises UserError for ``--config.a.b=value`` given to a verb that takes no config."""
    for override in overrides:
        path = override.partition("=")[0]
        hint = nearest(path.rpartition(".")[2], _flag_names())
        raise UserError(f"unknown flag {CONFIG_PREFIX}{path}: launch.{Path(sys.argv[0]).stem} takes no config{hint}")


def parse(words: Sequence[str]) -> list[str]:
    """Parses flags; returns the words that are none. Raises UserError for unknown flags and bad values."""
    try:
        return flags.FLAGS(list(words))[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{nearest(error.flagname, _flag_names())}") from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error


def _flag_names() -> list[str]:
    return [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
