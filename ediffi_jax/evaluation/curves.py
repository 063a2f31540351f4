"""FID–CLIP curves as data: points, means and spreads over seeds, JSON.

Every point says what it was measured with: n, seed, sampler, steps, resize filter. Over seeds a curve has means and
standard deviations (n - 1 in the denominator); with one seed there is no spread, and none is shown.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ediffi_jax import stores
from ediffi_jax.evaluation.errors import EvaluationError

MEASURES = ("fid", "kid", "clip_score", "precision", "recall", "right")
CURVE = "curve.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One guidance weight with one seed.

    Attributes:
        guidance: w of the base stage, 0 = none.
        seed: of the noise.
        n, reference_n: generated and real pictures.
        fid, kid, precision, recall: against the reference; `kid_std` is over KID's subsets of `kid_subset_size`.
        clip_score: mean cosine, None without prompts.
        right: share that the judge finds right, None without one.
        sampler, steps: by stage.
        resize: the filter that brought pictures to the feature network.
    """

    guidance: float
    seed: int
    n: int
    reference_n: int
    fid: float
    kid: float
    kid_std: float
    kid_subset_size: int
    precision: float
    recall: float
    clip_score: float | None
    right: float | None
    sampler: Mapping[str, str]
    steps: Mapping[str, int]
    resize: str

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Point:
        """Raises EvaluationError if it is none."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"not a measured point, or damaged: {text[:80]!r}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one run.

    Attributes:
        label: what plots call it.
        settings: all that its numbers depend on but guidance weight and seed.
        points: by weight, then by seed.
    """

    label: str
    settings: Mapping[str, Any]
    points: tuple[Point, ...]

    @property
    def guidance(self) -> list[float]:
        """The weights, each once, in order."""
        return sorted({point.guidance for point in self.points})

    @property
    def seeds(self) -> list[int]:
        """The seeds, each once, in order."""
        return sorted({point.seed for point in self.points})

    def values(self, measure: str, guidance: float) -> list[float]:
        """A measure of all seeds at one weight; empty where it was not measured."""
        found = [getattr(point, measure) for point in self.points if point.guidance == guidance]
        return [value for value in found if value is not None]

    def mean(self, measure: str, guidance: float) -> float:
        """Over seeds; nan where it was not measured."""
        values = self.values(measure, guidance)
        return float(np.mean(values)) if values else float("nan")

    def spread(self, measure: str, guidance: float) -> float:
        """Standard deviation over seeds; nan with fewer than two."""
        values = self.values(measure, guidance)
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def conditions(self) -> str:
        """One line: n, seeds, sampler and steps, resize filter, network, reference."""
        point, settings = self.points[0], self.settings
        steps = ", ".join(f"{stage} {point.sampler[stage]} x {point.steps[stage]}" for stage in point.sampler)
        return (
            f"n = {point.n}, seeds {', '.join(map(str, self.seeds))}; {steps}; resize {point.resize};"
            f" features {settings['network']['name']}; {settings['clip']['name']};"
            f" {point.reference_n} real pictures of {settings['protocol']['name']}"
        )

    def to_json(self) -> str:
        """The points, their means and spreads, and the settings."""
        rows = [
            {"guidance": w, "seeds": len(self.values("fid", w)), "n": self.points[0].n}
            | {name: {"mean": _none(self.mean(name, w)), "std": _none(self.spread(name, w))} for name in MEASURES}
            for w in self.guidance
        ]
        points = [dataclasses.asdict(point) for point in self.points]
        described = {"format": _FORMAT, "label": self.label, "conditions": self.conditions()}
        return json.dumps({**described, "over_seeds": rows, "points": points, "settings": self.settings}, indent=1)


def _none(value: float) -> float | None:
    return None if np.isnan(value) else value


def warning(n: int) -> str:
    """What has to be said of a FID of few pictures."""
    return (
        f"n = {n} < 10,000: FID is biased upwards, the more the fewer pictures; compare it only at equal n, and not"
        " with published values"
    )


def read(path: str | os.PathLike) -> Curve:
    """The curve of a run's folder, or of its curve.json.

    Raises:
        EvaluationError: none there, unfinished, damaged, or of a newer version.
        StoreError: the store refused or did not answer.
    """
    file = stores.at(path).expanduser()
    try:
        with stores.reaching(file):
            file = file / CURVE if file.is_dir() else file
            content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise EvaluationError(f"{file}: format {content['format']}; expected {_FORMAT}: it is of another version")
        points = tuple(Point(**point) for point in content["points"])
        return Curve(label=content["label"], settings=content["settings"], points=points)
    except FileNotFoundError as error:
        raise EvaluationError(f"no curve in {file}; expected a finished launch.evaluate --out folder") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{file}: not a curve, or damaged ({error})") from error
