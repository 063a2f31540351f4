"""Plans a run on a TPU pod without one: what fits, how fast at the most, how many days, by the TPU's own compiler.

  python -m launch.plan --config=configs/base64.py --topology=v5e:16x16
  python -m launch.plan --config=configs/ediffi_d.py --phase=-1 --topology=v5p-128 --slices=3 --mesh=expert=3
  python -m launch.plan --config=configs/ediffi_d.py --topology=v5e:2x2 --what=sample --batch_per_chip=8
  python -m launch.plan --config=configs/base64.py --topology=v5p-128 --what=embeddings

Compiles the very program that would run, for chips that nobody has to own. Of each chip it prints HBM by what is in it,
FLOPs compiled and of the model, bytes sent along each axis of the mesh over each network, the least time (a bound, not
a forecast), images/s, days and chip-hours. Needs the package libtpu that belongs to this jax (extra [plan]),
no TPU, no data and no weights; minutes on a laptop.

--what: train, the step of a phase; sample, the whole sampling loop of a stage; encode, the programs of launch.encode;
embeddings, a table (nothing compiled) of T5 and CLIP in the step against embeddings prepared ahead. --topology is chip
and shape (v5e:16x16), a cloud name (v5p-128), or this machine: cpu:8, gpu. --mesh changes sizes of the recipe's mesh:
expert, data, fsdp, one of them -1 for the rest. --effort=quick compiles in a quarter of the time that full takes, which
is what a run compiles with: the same FLOPs and collectives, but up to a fifth less memory (base64 on v5e:16x16: 6.4 and
7.9 GB). Let full have the last word. Exit code 3: it does not fit. docs/planning.md shows how to read it.
"""

from __future__ import annotations

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU or GPU of this machine is not asked

from absl import flags  # noqa: E402

from ._main import run  # noqa: E402

DOES_NOT_FIT = 3
CONFIG = flags.DEFINE_string("config", None, "Recipe FILE.py:arguments; --config.a.b=VALUE changes it.", required=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape, cloud name, cpu:N or gpu.", required=True)
SLICES = flags.DEFINE_integer("slices", 1, "How many of them, joined by the data-centre network.", lower_bound=1)
WHAT = flags.DEFINE_enum("what", "train", ["train", "sample", "encode", "embeddings"], "What is planned.")
MESH = flags.DEFINE_string("mesh", None, "axis=SIZE,axis=SIZE instead of the recipe's; -1 takes the rest.")
PHASE = flags.DEFINE_integer("phase", None, "Phase of the recipe, from 0, -1 the last; default 0, to sample -1.")
EMBEDDINGS = flags.DEFINE_enum("embeddings", "live", ["live", "precomputed", "int8"], "Where embeddings come from.")
EFFORT = flags.DEFINE_enum("effort", "quick", ["quick", "full"], "How hard the compiler tries; a run's own is full.")
BATCH = flags.DEFINE_integer("batch_per_chip", 0, "Sampled or encoded at once; 0: 8 and 16.", lower_bound=0)
PAIRS = flags.DEFINE_integer("pairs", 10**9, "Pictures with captions in the data set; default about the paper's.")
TOKENS = flags.DEFINE_integer("caption_tokens", 32, "Tokens of a caption.")
MFU = flags.DEFINE_float("mfu", 0.4, "Share of the peak that a run is expected to reach.")
PRICE = flags.DEFINE_float("storage_price", 0.020, "Dollars for a GiB and month of storage (us-central1, 2022-12).")
SEARCH = flags.DEFINE_integer("search", 0, "Mesh, batch, remat: compiles so many of the best guesses.", lower_bound=0)
PLOT = flags.DEFINE_string("plot", None, "File for a picture of memory and time, .png or .svg.")
JSON = flags.DEFINE_string("json", None, "File to write the plan to; - prints it, and nothing else.")


def main(overrides: list[str]) -> int:
    """Reads the config, compiles, prints."""
    from ediffi_jax import stores
    from ediffi_jax.pictures import make_folder, write_bytes
    from ediffi_jax.planning import ask, plan, plot, topology
    from ediffi_jax.planning.embedding_costs import Assumptions
    from ediffi_jax.training import config_files

    config = config_files.load(CONFIG.value)
    config_files.override(config, overrides)
    kind = plot.check_format(PLOT.value, WHAT.value) if PLOT.value else ""
    for file in filter(None, (PLOT.value, None if JSON.value == "-" else JSON.value)):
        make_folder(stores.at(file).parent, remote=True)  # before minutes of compiling
    assumed = Assumptions(pairs=PAIRS.value, caption_tokens=TOKENS.value, mfu=MFU.value, price=PRICE.value)
    question = ask.Question(
        what=WHAT.value, phase=PHASE.value, mesh=plan.read_mesh(MESH.value), embeddings=EMBEDDINGS.value,
        effort=EFFORT.value, batch_per_chip=BATCH.value, search=SEARCH.value, assumed=assumed,
    )  # fmt: skip
    found = ask.answer(config, topology.parse_topology(TOPOLOGY.value, SLICES.value), question)
    machine = json.dumps(found.machine, indent=1) + "\n"
    print(machine if JSON.value == "-" else found.words)
    if JSON.value not in (None, "-"):
        write_bytes(JSON.value, machine.encode())
    if kind and found.plan and found.fits:
        write_bytes(PLOT.value, plot.draw(found.plan, kind))
    return 0 if found.fits else DOES_NOT_FIT


if __name__ == "__main__":
    run(main, remote=("plot", "json"))
