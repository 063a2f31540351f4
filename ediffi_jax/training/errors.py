"""The training room's exceptions: what the user gave us is wrong, said in one line."""

from __future__ import annotations

from ediffi_jax.errors import UserError

RESTART = 42  # exit code of a process that is to be started again


class TrainingError(UserError):
    """A run that cannot go on as asked: a mesh, a schedule, or a loss that became NaN or infinite."""


class ConfigError(TrainingError):
    """A config file, key or value that is unknown, or a workdir that belongs to another config."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged, or does not fit the model it is loaded into."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are missing, cut short or altered: the one before it may be good."""


class StorageError(TrainingError):
    """A workdir that cannot be written, and that a restart would not mend: full, forbidden, or gone."""


class RestartError(TrainingError):
    """What another start goes on from: a roll-back, or storage that did not answer."""

    exit_code = RESTART
