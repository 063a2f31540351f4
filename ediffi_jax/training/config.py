"""The config of a run: every key with its default, and what makes a value invalid.

A recipe in `configs/` starts from `default()` and changes what it needs. `batch_size` is per expert and
`phases` is the expert schedule (see `schedule.py`).
"""

from __future__ import annotations

import copy
from typing import Any

from ml_collections import ConfigDict

from ediffi_jax import samplers
from ediffi_jax.data.config import DataConfig
from ediffi_jax.data.views import LoaderError
from ediffi_jax.errors import nearest
from ediffi_jax.release.spec import ReleaseError, sampler_from_json
from ediffi_jax.samplers import SamplerError
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.schedule import Phase, parse_phases

POLICIES = ("stop", "rollback")  # for a loss that is not finite
THRESHOLDS = ("static", "dynamic")
DEFAULTS: dict[str, Any] = {
    "seed": 0,  # of parameters, data order and noise
    "stage": "base",  # name of the stage in a cascade
    "model": {"name": "unet"},
    "noise": {"mean": -1.2, "std": 1.2},  # of ln sigma
    "sigma_data": 0.5,
    "conditioning": {"clip_text": 0.2, "t5": 0.25, "clip_image": 0.9},  # drop rates
    "encoders": "scenes",  # bundled name or folder
    "data": {
        "name": "scenes",  # "synthetic" needs no files; "A:0.7,B:0.3" mixes data sets
        "dir": "",  # where records are kept; "" is the default cache folder
        "resolution": 64,  # of what the model sees
        "low_resolution": 0,  # of the picture it upsamples; 0 for a base model
        "crop": 0,  # train on crops of this size; 0 for none
        "source_resolution": 64,  # of the stored pictures
        "num_scenes": 100_000,
        "clip_resolution": 32,
        "workers": 0,  # processes that decode; 0 in this one
        "captions": 0,  # phrasings of a scene that training draws from; 0 for a new one each time
        "embeddings": "",  # folder of launch.encode; "" encodes in each step
        "record_ids": False,  # note in workdir/records which records each step trained on
        "flip": False,  # mirror half of the pictures; only where no caption says left or right
        "reduced_decode": True,  # JPEGs of 8 times source_resolution and more at a half or less of their size
        "max_bad_fraction": 0.01,  # of images whose records cannot be used and are replaced, before the run ends
        "degrade": "",  # of the low-resolution picture: "full" or "cascade", see docs/degradation.md
        "degrade_clean": 0.1,  # share of pictures that it leaves as they are
    },
    "batch_size": 64,
    "accumulate": 1,  # parts a batch is worked off in: only one part's activations are in memory
    "steps_per_call": 1,  # steps in one program, for when a step is so short that starting it counts
    "phases": ({"steps": 1000, "cuts": (), "parents": ()},),
    "optimizer": {
        "name": "adamw",
        "lr": 3e-4,
        "warmup": 500,  # steps
        "decay": "constant",  # or "cosine", over the whole run
        "cooldown": 0,  # last steps of the run, over which the rate falls linearly to 0
        "weight_decay": 0.01,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip": 1.0,  # global norm of one expert's gradient; 0 for none
    },
    "ema": {"decay": 0.9999, "warmup": True},
    # Noise added to the low-resolution input: U(0, max_level) in training, level when sampling.
    "aug": {"max_level": 0.0, "level": 0.0},
    "mesh": {"expert": 1, "data": -1, "fsdp": 1},  # -1 takes what is left
    "compute_dtype": "auto",
    "log_every": 50,  # all cadences are in steps; 0 for never
    "eval_every": 1000,
    "eval_batches": 4,
    "save_every": 500,
    "sample_every": 1000,
    "keep": 3,
    "nonfinite": "stop",  # what a loss that becomes NaN or infinite does; or "rollback", see nonfinite.py
    "rollbacks": 3,  # at most, to one checkpoint
    "hang_minutes": 30.0,  # for a step or a wait for data, 4 times as long for all else; 0 for no end
    "profile": "",  # "100:105" traces steps 100 to 105
    "wandb": "",  # a Weights & Biases project, if wandb is installed
    "sampler": {
        "name": "deis_kutta3",
        "steps": 25,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "exponent": 6.0,
        "guidance": 2.0,
        "interval": None,  # range of sigma guidance acts in
        "threshold": None,  # "static" or "dynamic"
    },
    "init_from": "",  # a workdir or release whose EMA weights this run starts from
}


def default() -> ConfigDict:
    """Every key a run knows except those of `model`, which belong to `ediffi_jax.models.build`."""
    return ConfigDict(copy.deepcopy(DEFAULTS))


def validate(config: ConfigDict) -> tuple[Phase, ...]:
    """Checks names and ranges, and returns the parsed schedule.

    Raises:
        ConfigError: one line naming the key, its value and what was expected.
    """
    known = default()
    for key in config:
        if key not in known:
            raise ConfigError(f"config has unknown key {key!r}{nearest(key, known)}")
    for key in known:
        if key not in config:
            raise ConfigError(f"config lacks key {key!r}; start recipes from ediffi_jax.training.config.default()")
        if key in ("model", "phases") or not isinstance(known[key], ConfigDict):
            continue
        for name in config[key]:
            if name not in known[key]:
                raise ConfigError(f"config.{key} has unknown key {name!r}{nearest(name, known[key])}")
    for key in ("clip_text", "t5", "clip_image"):
        _expect(config, f"conditioning.{key}", lambda rate: 0 <= rate <= 1, "a probability from 0 to 1")
    _expect(config, "batch_size", lambda n: n >= 1, "1 or more")
    _expect(config, "accumulate", lambda n: n >= 1, "a number of parts, 1 or more")
    _expect(config, "noise.std", lambda x: x > 0, "more than 0")
    _expect(config, "sigma_data", lambda x: x > 0, "more than 0")
    _expect(config, "ema.decay", lambda x: 0 <= x < 1, "0 or more and less than 1")
    _expect(config, "optimizer.lr", lambda x: x > 0, "more than 0")
    _expect(config, "optimizer.cooldown", lambda n: n >= 0, "a number of steps, 0 for none")
    _expect(config, "aug.max_level", lambda x: x >= 0, "0 or more")
    _expect(config, "aug.level", lambda x: x >= 0, "0 or more")
    _check_degradation(config)
    _expect(config, "keep", lambda n: n >= 1, "1 or more")
    _expect(config, "steps_per_call", lambda n: n >= 1, "a number of steps, 1 or more")
    for key in ("log_every", "eval_every", "save_every", "sample_every"):
        _expect(config, key, lambda n: n >= 0, "a number of steps, 0 for never")
        every = config.steps_per_call
        _expect(config, key, lambda n, every=every: n % every == 0, f"a multiple of config.steps_per_call={every}")
    if config.eval_every:
        _expect(config, "eval_batches", lambda n: n >= 1, "1 or more, or config.eval_every=0 for no evaluation")
    if config.nonfinite not in POLICIES:
        raise ConfigError(f"config.nonfinite={config.nonfinite!r} is unknown{nearest(str(config.nonfinite), POLICIES)}")
    _expect(config, "rollbacks", lambda n: n >= 1, '1 or more; config.nonfinite="stop" for none')
    _expect(config, "hang_minutes", lambda minutes: minutes >= 0, "minutes, 0 for no end")
    profile_steps(config.profile)
    _check_sampler(config)
    return parse_phases(config.phases)


def _expect(config: ConfigDict, path: str, holds: Any, expected: str) -> None:
    value = config
    for name in path.split("."):
        value = value[name]
    if not isinstance(value, int | float) or not holds(value):
        raise ConfigError(f"config.{path}={value!r}; expected {expected}")


def _check_degradation(config: ConfigDict) -> None:
    """Raises ConfigError before anything is opened: a plan or a recipe's check reads no data."""
    try:
        DataConfig.parse(config.data).degrader  # noqa: B018 (checked when it is made)
    except LoaderError as error:
        raise ConfigError(f"config.{error}") from error


def _check_sampler(config: ConfigDict) -> None:
    """Raises ConfigError for sampling defaults that a release of this run could not use."""
    try:
        spec = sampler_from_json(config.sampler.to_dict(), "config.sampler")
        samplers.get(spec.name)
    except ReleaseError as error:
        raise ConfigError(str(error)) from error
    except SamplerError as error:
        raise ConfigError(f"config.sampler: {error}") from error
    if not 0 < spec.sigma_min < spec.sigma_max:
        raise ConfigError(
            f"config.sampler: sigma_min={spec.sigma_min}, sigma_max={spec.sigma_max}; expected 0 < sigma_min < sigma_max"
        )
    if spec.threshold is not None and spec.threshold not in THRESHOLDS:
        raise ConfigError(f"config.sampler.threshold={spec.threshold!r} is unknown{nearest(spec.threshold, THRESHOLDS)}")


def profile_steps(profile: str) -> tuple[int, int] | None:
    """Parses ``"100:105"`` into the first and last step to trace.

    Raises:
        ConfigError: another form, or the end before the start.
    """
    if not profile:
        return None
    first, _, last = profile.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise ConfigError(f"config.profile={profile!r}; expected FIRST:LAST in steps, such as 100:105")
    return int(first), int(last)
