"""The config of a run: every key with its default, and what makes a value invalid.

A recipe in `configs/` starts from `default()` and changes what it needs. `batch_size` is per expert and
`phases` is the expert schedule (see `schedule.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
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
CADENCES = ("log", "eval", "save", "sample")
# Every key with its default; the comment beside or above it is its meaning in docs/config.md (docs/generate.py).
DEFAULTS: dict[str, Any] = {
    "seed": 0,  # what parameters, data order and noise are drawn from
    "stage": "base",  # name of the stage in a cascade
    "model": {"name": "unet"},  # kind of network; its other keys are in the tables below
    "noise": {
        "mean": -1.2,  # of ln sigma in training, normal; sigma is on the scale of pictures in [-1, 1]
        "std": 1.2,  # of ln sigma in training
    },
    "sigma_data": 0.5,  # standard deviation of the pictures, in the preconditioning
    "conditioning": {
        "clip_text": 0.2,  # share of samples trained without CLIP's text tokens
        "t5": 0.25,  # share of samples trained without T5's tokens
        "clip_image": 0.9,  # share of samples trained without CLIP's image embedding
    },
    "encoders": "scenes",  # bundled name, folder, or gs://BUCKET/FOLDER
    "data": {
        "name": "scenes",  # or "synthetic" (no files), the folder of a TFDS data set; "A:0.7,B:0.3" mixes them
        "dir": "",  # where records are kept; "" is the default cache folder
        "resolution": 64,  # side in pixels of the full picture that the stage makes
        "low_resolution": 0,  # side of the picture it upsamples; 0 for a base model
        "crop": 0,  # train on crops of this side; 0 for none
        "source_resolution": 64,  # side of the stored pictures
        "num_scenes": 100_000,  # scenes in the train split
        "clip_resolution": 32,  # side of the picture that CLIP sees; 0 for none
        "workers": 0,  # processes that decode; 0 in this one
        "captions": 0,  # phrasings of a scene that training draws from; 0 for a new one each time
        "embeddings": "",  # folder of launch.encode; "" encodes in each step
        "record_ids": False,  # note in workdir/records which records each step trained on
        "flip": False,  # mirror half of the pictures; only where no caption says left or right
        "reduced_decode": True,  # decode JPEGs of 8 times source_resolution and more at a half or less of their size
        "max_bad_fraction": 0.01,  # of images replaced, as their records cannot be used, before the run ends
        "degrade": "",  # how the low-resolution picture is degraded: "full" or "cascade", see docs/degradation.md
        "degrade_clean": 0.1,  # share of pictures that degrade leaves as they are
    },
    "batch_size": 64,  # pictures a step for each expert, over all devices
    "accumulate": 1,  # parts a batch is worked off in: only one part's activations are in memory
    "steps_per_call": 1,  # steps in one program, for when a step is so short that starting it counts
    # the expert schedule, one after the other; keys of a phase are in a table below
    "phases": ({"steps": 1000, "cuts": (), "parents": ()},),
    "optimizer": {
        "name": "adamw",  # decoupled weight decay; biases and norm scales are spared
        "lr": 3e-4,  # peak learning rate
        "warmup": 500,  # steps over which the rate rises linearly from 0
        "decay": "constant",  # what the rate does after the warm-up; "cosine" is over the whole run
        "cooldown": 0,  # last steps of the run, over which the rate falls linearly to 0
        "weight_decay": 0.01,  # times the learning rate, off each weight a step
        "b1": 0.9,  # decay of the first moment
        "b2": 0.999,  # decay of the second moment
        "eps": 1e-8,  # added to the root of the second moment
        "clip": 1.0,  # largest global norm of one expert's gradient; 0 for none
    },
    "ema": {
        "decay": 0.9999,  # of the moving average of the weights that one samples with, a step
        "warmup": True,  # min(decay, (1 + t) / (10 + t)) at step t, so that early weights fade
    },
    "aug": {
        "max_level": 0.0,  # training adds noise of a level from U(0, max_level) to the low-resolution picture
        "level": 0.0,  # and sampling noise of this level
    },
    "mesh": {
        "expert": 1,  # groups of devices, each with its own experts; -1 takes as many as fit
        "data": -1,  # parts of a batch; -1 takes what the others leave
        "fsdp": 1,  # parts of a batch that share one copy of the weights, cut; -1 takes what the others leave
    },
    "compute_dtype": "auto",  # of activations; "auto" is bfloat16 on TPU and GPUs that have it, else float32
    "log_every": 50,  # steps between lines of metrics; 0 for never, as for all cadences
    "eval_every": 1000,  # steps between evaluations of the EMA weights on held-out data
    "eval_batches": 4,  # batches of one evaluation
    "save_every": 500,  # steps between checkpoints
    "sample_every": 1000,  # steps between sample pictures
    "keep": 3,  # checkpoints kept, the newest
    "nonfinite": "stop",  # what a loss that becomes NaN or infinite does; or "rollback", see docs/training.md
    "rollbacks": 3,  # roll-backs to one checkpoint, at most
    "hang_minutes": 30.0,  # after which a step, or a wait for data, hangs; 4 times as long for all else; 0 for never
    "profile": "",  # "100:105" traces steps 100 to 105
    "wandb": "",  # a Weights & Biases project, if wandb is installed
    "sampler": {
        "name": "deis_kutta3",  # solver; all of config.sampler are the defaults of a cascade made of this run
        "steps": 25,  # steps of the solver
        "sigma_min": 0.002,  # least noise of the grid, on the scale of pictures in [-1, 1]
        "sigma_max": 80.0,  # most noise of the grid
        "exponent": 6.0,  # of the power grid; larger puts more steps at low noise
        "guidance": 2.0,  # w of D_c + w (D_c - D_0); 0 is none
        "interval": None,  # (low, high) of sigma that guidance acts in; None for all
        "threshold": None,  # "static" clips x0 to [-1, 1], "dynamic" rescales it per picture
    },
    "init_from": "",  # a workdir or release whose EMA weights this run starts from
}

# What a number must be, in words and as a test; checked in this order.
RANGES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("conditioning.clip_text", "a probability from 0 to 1", lambda p: 0 <= p <= 1),
    ("conditioning.t5", "a probability from 0 to 1", lambda p: 0 <= p <= 1),
    ("conditioning.clip_image", "a probability from 0 to 1", lambda p: 0 <= p <= 1),
    ("batch_size", "1 or more", lambda n: n >= 1),
    ("accumulate", "a number of parts, 1 or more", lambda n: n >= 1),
    ("noise.std", "more than 0", lambda x: x > 0),
    ("sigma_data", "more than 0", lambda x: x > 0),
    ("ema.decay", "0 or more and less than 1", lambda x: 0 <= x < 1),
    ("optimizer.lr", "more than 0", lambda x: x > 0),
    ("optimizer.cooldown", "a number of steps, 0 for none", lambda n: n >= 0),
    ("aug.max_level", "0 or more", lambda x: x >= 0),
    ("aug.level", "0 or more", lambda x: x >= 0),
    ("keep", "1 or more", lambda n: n >= 1),
    ("steps_per_call", "a number of steps, 1 or more", lambda n: n >= 1),
    *((f"{name}_every", "a number of steps, 0 for never", lambda n: n >= 0) for name in CADENCES),
    ("rollbacks", '1 or more; config.nonfinite="stop" for none', lambda n: n >= 1),
    ("hang_minutes", "minutes, 0 for no end", lambda minutes: minutes >= 0),
)


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
    for path, expected, holds in RANGES:
        _expect(config, path, expected, holds)
    call = config.steps_per_call
    for name in CADENCES:
        _expect(config, f"{name}_every", f"a multiple of config.steps_per_call={call}", lambda n: n % call == 0)
    if config.eval_every:
        expected = "1 or more, or config.eval_every=0 for no evaluation"
        _expect(config, "eval_batches", expected, lambda n: n >= 1)
    _check_degradation(config)
    if config.nonfinite not in POLICIES:
        raise ConfigError(f"config.nonfinite={config.nonfinite!r} is unknown{nearest(str(config.nonfinite), POLICIES)}")
    profile_steps(config.profile)
    _check_sampler(config)
    return parse_phases(config.phases)


def _expect(config: ConfigDict, path: str, expected: str, holds: Callable[[float], bool]) -> None:
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
