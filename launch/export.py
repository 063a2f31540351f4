"""Makes a release folder from training workdirs: EMA weights, one file per stage, and the encoders.

  python -m launch.export --workdirs=base=runs/base,sr64=runs/sr64,sr256=runs/sr256 --out=releases/mine

Then:  python -m launch.sample --cascade=releases/mine --prompt="..." --out=samples

Experts trained one a run are stacked: --workdirs=base=runs/low,runs/middle,runs/high,sr64=runs/sr64 takes three
runs for the base (a part without "=" belongs to the stage before it). Their intervals must tile 0 to 1.
--dtype=bfloat16 or float16 halves the size of the weights; computing stays as it is.
--encoders=link refers to the encoders where they are (bundled ones by name) instead of copying them.
"""

from __future__ import annotations

from absl import flags

from ._main import refuse_overrides, run

WORKDIRS = flags.DEFINE_list("workdirs", None, "stage=DIR[,DIR...],stage=DIR...", required=True)
OUT = flags.DEFINE_string("out", None, "Folder, or gs://BUCKET/PREFIX, to write; absent or empty.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "Of the stored weights.")
ENCODERS = flags.DEFINE_string("encoders", "copy", "copy | link | a folder to copy instead of the runs' own.")


def main(overrides: list[str]) -> None:
    """Reads, checks, writes."""
    refuse_overrides(overrides)
    from ediffi_jax import cascade, release

    runs = {
        stage: [release.read_workdir(folder) for folder in folders]
        for stage, folders in release.parse_workdirs(WORKDIRS.value).items()
    }
    own = ENCODERS.value in ("copy", "link")
    made = release.release_of_runs(runs, None if own else ENCODERS.value)
    cascade.from_release(made, OUT.value)  # refuses what could not be sampled from
    folder = release.write_release(OUT.value, made, dtype=DTYPE.value, copy_encoders=ENCODERS.value != "link")
    for spec in made.specs:
        print(f"{spec.name}: {spec.resolution}x{spec.resolution}, {spec.ensemble.num_experts} experts")
    print(f"release in {folder}")


if __name__ == "__main__":
    run(main, remote=("workdirs", "encoders", "out"))
