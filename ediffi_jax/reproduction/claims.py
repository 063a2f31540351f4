"""The list of claims, in the order of the report; each is the `CLAIM` of the module of its name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ediffi_jax.errors import nearest
from ediffi_jax.reproduction.claim import Claim
from ediffi_jax.reproduction.study import StudyError

NAMES = ("ensemble", "embeddings", "paint", "style", "switching", "attention", "cost", "degradation", "trees")


def chosen(names: Sequence[str] | None = None) -> list[Claim]:
    """The claims of these names in the order of the list; default all.

    Raises:
        StudyError: no such claim.
    """
    for name in names or ():
        if name not in NAMES:
            raise StudyError(f"unknown claim {name!r}{nearest(name, NAMES)}")
    wanted = NAMES if not names else [name for name in NAMES if name in names]
    return [importlib.import_module(f"ediffi_jax.reproduction.{name}").CLAIM for name in wanted]
