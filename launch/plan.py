"""Plans a run on a TPU pod without one: what fits, how fast at the most, how many days, by the TPU's own compiler.

  python -m launch.plan --config=configs/base64.py --topology=v5e:16x16
  python -m launch.plan --config=configs/ediffi_d.py --phase=-1 --topology=v5p-128 --slices=3 --mesh=expert=3
  python -m launch.plan --config=configs/base64.py --topology=v5litepod-256 --config.batch_size=4096 --json=plan.json

Compiles the very step that launch.train would run, for chips that nobody has to own, and prints of each chip: HBM
by what is in it, FLOPs compiled and of the model, bytes sent along each axis of the mesh over each network, the least
time a step can take (a bound, not a forecast), images/s, days and chip-hours. Needs the package libtpu that belongs
to this jax (pip install 'jax[tpu]'), no TPU, no data and no weights; minutes on a laptop.

--topology is chip and shape (v5e:16x16, v5p:4x4x4) or a cloud name (v5litepod-256, v5p-128). --mesh changes sizes of
the recipe's mesh: expert, data, fsdp, one of them -1 for the rest. --embeddings says whether T5 and CLIP run in the step
(live) or were prepared by launch.encode (precomputed, int8). --effort=quick compiles in a quarter of the time that
full takes, which is what a run compiles with: the same FLOPs and collectives, but up to a fifth less memory (base64 on
v5e:16x16: 6.4 and 7.9 GB). Let full have the last word. Exit code 3: it does not fit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU or GPU of this machine is not asked

from absl import flags  # noqa: E402

from ._main import run  # noqa: E402

DOES_NOT_FIT = 3
CONFIG = flags.DEFINE_string("config", None, "Recipe FILE.py:arguments; --config.a.b=VALUE changes a key.", required=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape, or a cloud name.", required=True)
SLICES = flags.DEFINE_integer("slices", 1, "How many of them, joined by the data-centre network.", lower_bound=1)
MESH = flags.DEFINE_string("mesh", None, "axis=SIZE,axis=SIZE instead of the recipe's; -1 takes the rest.")
PHASE = flags.DEFINE_integer("phase", 0, "Phase of the recipe, from 0; -1 is the last.")
EMBEDDINGS = flags.DEFINE_enum("embeddings", "live", ["live", "precomputed", "int8"], "Where embeddings come from.")
EFFORT = flags.DEFINE_enum("effort", "quick", ["quick", "full"], "How hard the compiler tries; a run's own is full.")
JSON = flags.DEFINE_string("json", None, "File to write the plan to; - prints it, and nothing else.")


def main(overrides: list[str]) -> int:
    """Reads the config, compiles, prints."""
    from ediffi_jax.pictures import make_folder, write_bytes
    from ediffi_jax.planning import plan, text, topology
    from ediffi_jax.training import config_files

    config = config_files.load(CONFIG.value)
    config_files.override(config, overrides)
    if JSON.value not in (None, "-"):
        make_folder(Path(JSON.value).parent)  # before minutes of compiling
    chips = topology.parse_topology(TOPOLOGY.value, SLICES.value)
    chosen = {"phase": PHASE.value, "embeddings": EMBEDDINGS.value, "effort": EFFORT.value}
    made = plan.make_plan(config, chips, plan.read_mesh(MESH.value), **chosen)
    machine = json.dumps(made.to_json(), indent=1) + "\n"
    print(machine if JSON.value == "-" else text.describe(made))
    if JSON.value not in (None, "-"):
        write_bytes(JSON.value, machine.encode())
    return 0 if made.measured.fits else DOES_NOT_FIT


if __name__ == "__main__":
    run(main)
