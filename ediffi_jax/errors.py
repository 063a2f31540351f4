"""The one base class of a user's mistake, and how its message names the nearest valid choice.

Each room derives its own exception from `UserError`; `launch/` catches that base class, prints one
line and exits with code 2. Anything else is our mistake and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave us: a flag, a config, a file, a prompt, a mask, a checkpoint."""

    exit_code = 2  # of a verb that it ends


class MissingExtra(UserError):
    """A package is not installed that only some verbs need."""


def install(extra: str) -> str:
    """The command that installs an extra of this package: in a clone that was never installed, from its folder."""
    import importlib.metadata

    try:
        importlib.metadata.version("ediffi_jax")
    except importlib.metadata.PackageNotFoundError:
        return f"pip install '.[{extra}]'"
    return f"pip install 'ediffi_jax[{extra}]'"


def nearest(name: str, choices: Iterable[str]) -> str:
    """The tail of an error message: the closest valid choice, if any, and all of them.

    Args:
        name: what the user wrote.
        choices: what would have been valid.

    Returns:
        For example ``"; did you mean 'euler'? choices: euler, heun"``.
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} choices: {', '.join(choices)}"
