"""What `cascade.json` says about a stage: its network, experts, noise, and sampling defaults.

A description is a frozen dataclass that goes to JSON and back unchanged. Unknown or missing keys are
refused: a file from a later version must not be half understood.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ediffi_jax.errors import UserError, nearest
from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import LogNormal

# The version of the folder's layout and of cascade.json, raised when an older reader would misread it.
FORMAT = 1


class ReleaseError(UserError):
    """A release folder or a training workdir that is missing, damaged, incomplete or of an unknown format."""


# What a value must be, in words and as a test.
Kind = tuple[str, Callable[[Any], bool]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """Sampling defaults of a stage.

    Attributes:
        name: key of `samplers.SAMPLERS`.
        steps: solver steps, >= 1.
        sigma_min, sigma_max: ends of the noise grid, standard deviations on the scale of images in [-1, 1].
        exponent: of the power grid; larger puts more steps at low noise.
        guidance: weight w of D_c + w (D_c - D_0); 0 is no guidance.
        interval: (low, high) range of sigma that guidance acts in, or None for all.
        threshold: "static" clips x0 to [-1, 1], "dynamic" rescales it per image, None leaves it.
    """

    name: str = "deis_kutta3"
    steps: int = 25
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    exponent: float = 6.0
    guidance: float = 0.0
    interval: tuple[float, float] | None = None
    threshold: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.interval, list):  # as JSON gives it; a tuple can be hashed
            object.__setattr__(self, "interval", tuple(self.interval))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage of a cascade.

    Attributes:
        name: e.g. "base", "sr64", "sr256"; also names its file.
        resolution: height and width of the images it makes, pixels.
        low_resolution: height and width of the images it starts from; 0 for the base.
        model: configuration of `models.build`.
        cuts: quantiles of p(sigma) between its experts, ascending.
        noise: {"mean", "std"} of ln(sigma) in training, which places the cuts.
        sigma_data: standard deviation of the data in the preconditioning.
        sampler: sampling defaults.
        aug_level: standard deviation of the Gaussian noise added to the low-resolution image; 0 is none.
        file: its safetensors file inside the release folder.
    """

    name: str
    resolution: int
    low_resolution: int = 0
    model: Mapping[str, Any]
    cuts: tuple[float, ...] = ()
    noise: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"mean": -1.2, "std": 1.2})
    sigma_data: float = 0.5
    sampler: SamplerSpec = SamplerSpec()
    aug_level: float = 0.0
    file: str = ""

    @property
    def ensemble(self) -> Ensemble:
        """The partition of noise levels among the experts. Raises ExpertError for cuts that are none."""
        return Ensemble(cuts=tuple(self.cuts), noise=LogNormal(**self.noise))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads back equal."""
        plain = dataclasses.asdict(self)
        return {**plain, "model": dict(plain["model"]), "noise": dict(plain["noise"]), "cuts": list(self.cuts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> StageSpec:
        """Reads the entry of a stage.

        Raises:
            ReleaseError: an unknown or missing key, or a value of the wrong kind; `where` names the file.
        """
        values = fields_of(cls, values, where)
        _check_kinds(values, _STAGE_KINDS, where)
        _check_kinds(values.get("noise", {}), _NOISE_KINDS, f"{where}: noise")
        values["cuts"] = tuple(values.get("cuts", ()))
        if "sampler" in values:
            values["sampler"] = sampler_from_json(values["sampler"], f"{where}: sampler")
        return cls(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_number, value))


_NUMBER: Kind = ("a number", _is_number)
_TEXT: Kind = ("a text", lambda value: isinstance(value, str))
_MAPPING: Kind = ("a dictionary", lambda value: isinstance(value, Mapping))
_SIZE: Kind = ("a whole number >= 0", lambda value: type(value) is int and value >= 0)
_STEPS: Kind = ("a whole number >= 1", lambda value: type(value) is int and value >= 1)
_SAMPLER_KINDS: Mapping[str, Kind] = {
    "name": _TEXT,
    "steps": _STEPS,
    **dict.fromkeys(("sigma_min", "sigma_max", "exponent", "guidance"), _NUMBER),
    "interval": ("[low, high] or null", lambda value: value is None or _are_numbers(value) and len(value) == 2),
    "threshold": ("a text or null", lambda value: value is None or isinstance(value, str)),
}
_NOISE_KINDS: Mapping[str, Kind] = {"mean": _NUMBER, "std": _NUMBER}
_STAGE_KINDS: Mapping[str, Kind] = {
    "name": _TEXT,
    "resolution": _SIZE,
    "low_resolution": _SIZE,
    "model": ("a dictionary with a name", lambda value: isinstance(value, Mapping) and "name" in value),
    "cuts": ("a list of numbers", _are_numbers),
    "noise": _MAPPING,
    "sigma_data": _NUMBER,
    "sampler": _MAPPING,
    "aug_level": _NUMBER,
    "file": _TEXT,
}


def sampler_from_json(values: Mapping[str, Any], where: str) -> SamplerSpec:
    """Reads sampling defaults. Raises ReleaseError for an unknown key or a value of the wrong kind."""
    values = fields_of(SamplerSpec, values, where)
    _check_kinds(values, _SAMPLER_KINDS, where)
    if values.get("interval") is not None:
        low, high = values["interval"]
        values["interval"] = (float(low), float(high))
    return SamplerSpec(**values)


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raises ReleaseError for a value that is not of its key's kind, or a key of `values` that has no kind."""
    for name, value in values.items():
        if name not in kinds:
            raise ReleaseError(f"{where} has the unknown key {name!r}{nearest(str(name), kinds)}")
        expected, holds = kinds[name]
        if not holds(value):
            raise ReleaseError(f"{where}: {name} is {value!r}; expected {expected}")


def fields_of(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values as a dictionary, once all its keys are fields of `cls` and the required ones are there.

    Raises:
        ReleaseError: not a dictionary, an unknown key (with the nearest), or a missing one.
    """
    if not isinstance(values, Mapping):
        raise ReleaseError(f"{where} is {type(values).__name__}; expected a dictionary")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ReleaseError(f"{where} has the unknown key {key!r}{nearest(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ReleaseError(f"{where} lacks the key {name!r}")
    return dict(values)
