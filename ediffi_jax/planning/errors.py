"""The planning room's exception: a topology, a mesh or a program that cannot be planned, said in one line."""

from __future__ import annotations

from ediffi_jax.errors import UserError


class PlanError(UserError):
    """A chip, shape or mesh that does not exist or does not divide; a missing compiler; a loop without an end."""
