"""Matplotlib for the modules that draw: without a window, and one line where it is not installed."""

from __future__ import annotations

from types import ModuleType

from ediffi_jax.errors import MissingExtra, install


def pyplot(who: str, extra: str) -> ModuleType:
    """`matplotlib.pyplot`, drawing into files.

    Args:
        who: what needs it, for the message.
        extra: the extra that brings it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra(f"{who} needs matplotlib: {install(extra)}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
