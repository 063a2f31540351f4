"""What `cascade.json` says about a stage: its network, experts, noise, and sampling defaults.

A description is a frozen dataclass that goes to JSON and back unchanged. Unknown or missing keys are
refused: a file from a later version must not be half understood.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ediffi_jax.errors import UserError, nearest
from ediffi_jax.experts import Ensemble
from ediffi_jax.noise import LogNormal

# The version of the folder's layout and of cascade.json, raised when an older reader would misread it.
FORMAT = 1


class ReleaseError(UserError):
    """A release folder or a training workdir that is missing, damaged, incomplete or of an unknown format."""


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
        values = {**fields_of(cls, values, where), "cuts": tuple(values.get("cuts", ()))}
        if not isinstance(values["model"], Mapping) or "name" not in values["model"]:
            raise ReleaseError(f"{where}: model is {values['model']!r}; expected a dictionary with a name")
        if "sampler" in values:
            values["sampler"] = sampler_from_json(values["sampler"], f"{where}: sampler")
        return cls(**values)


def sampler_from_json(values: Mapping[str, Any], where: str) -> SamplerSpec:
    """Reads sampling defaults. Raises ReleaseError for unknown keys."""
    values = fields_of(SamplerSpec, values, where)
    if values.get("interval") is not None:
        values["interval"] = tuple(float(end) for end in values["interval"])
    return SamplerSpec(**values)


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
