"""Releases: a trained cascade as a folder of plain files, and the reading of training workdirs.

    my_cascade/
      cascade.json          everything needed to rebuild it; `format` is its version
      base.safetensors      one file per stage: EMA weights, experts stacked on the leading axis
      sr64.safetensors
      encoders/t5, clip     text and image encoders in Hugging Face layout

Nothing here is ever unpickled.
"""

from ediffi_jax.release.files import Release, package_versions, read_release, write_release
from ediffi_jax.release.parameters import check_params, flatten, parameter_shapes, unflatten
from ediffi_jax.release.places import bundled, find, name_of, place
from ediffi_jax.release.spec import FORMAT, ReleaseError, SamplerSpec, StageSpec
from ediffi_jax.release.workdir import Run, is_workdir, parse_workdirs, read_workdir, release_of_runs, stack_runs

__all__ = [
    "FORMAT",
    "Release",
    "ReleaseError",
    "Run",
    "SamplerSpec",
    "StageSpec",
    "bundled",
    "check_params",
    "find",
    "flatten",
    "is_workdir",
    "name_of",
    "package_versions",
    "parameter_shapes",
    "parse_workdirs",
    "place",
    "read_release",
    "read_workdir",
    "release_of_runs",
    "stack_runs",
    "unflatten",
    "write_release",
]
