# %% [markdown]
# # 4 · Plan a pod
#
# What does a training run take on a TPU slice that you do not have? `launch.plan` compiles the very step that would
# run, for chips that are not there, and reads from the program what lies in each chip's memory, what is computed and
# what is sent. The TPU's compiler comes with `EXTRAS = "[plan]"` in the first cell (in a clone `pip install '.[plan]'`) and
# needs no TPU. Without it this notebook plans for emulated CPU devices: the same questions and answers, but no times,
# for a CPU's figures are not known; that took 109 s of processor time.

# %%
# Installs the package where it is missing; what Colab has of jax, numpy and protobuf stays as it is.
REPOSITORY = "git+https://github.com/OWNER/ediffi_jax"  # its address, or a clone: "file:///content/ediffi_jax"
EXTRAS = ""

import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("ediffi_jax") is None:
    if "OWNER" in REPOSITORY:
        raise SystemExit("Put the repository's address into REPOSITORY, or a clone's folder as file:///...")
    installed = {(found.name or "").lower(): found.version for found in importlib.metadata.distributions()}
    held = [f"{name}=={installed[name]}" for name in ("jax", "jaxlib", "numpy", "protobuf") if name in installed]
    if installed.get("protobuf", "7").startswith("5."):  # newer ones want protobuf 6
        held.append("tensorflow-metadata<=1.17.2")
    pathlib.Path("held.txt").write_text("\n".join(held))
    wanted = f"ediffi_jax{EXTRAS} @ {REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", "held.txt", wanted], check=True)

# %% tags=["parameters"]
CONFIG = "configs/scenes.py:stage=base"
CHANGES = []  # of the recipe, such as "batch_size=256"
TOPOLOGY = ""  # such as v5e:2x2 or v5p-128; empty: v5e:2x2 with the TPU's compiler, else cpu:8
MESHES = ["", "data=1,fsdp=-1"]  # how devices are used; the first is the recipe's own

# %%
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator of this machine is not asked; before jax is imported

from IPython.display import Image, display

from ediffi_jax.planning import ask, plan, plot, topology
from ediffi_jax.training import config_files

if not TOPOLOGY:
    TOPOLOGY = "v5e:2x2" if importlib.util.find_spec("libtpu") else "cpu:8"
slices = topology.parse_topology(TOPOLOGY, 1)
print(f"{TOPOLOGY}: {slices.devices} devices")

# %% [markdown]
# ## The train step
#
# `data` devices hold all parameters each and split the batch; `fsdp` devices split the parameters too, and send them
# around in every step. Compare memory with traffic.

# %%
config = config_files.load(CONFIG)
config_files.override(config, CHANGES)
answers = {}
for mesh in MESHES:
    answers[mesh] = ask.answer(config, slices, ask.Question(mesh=plan.read_mesh(mesh or None)))
    print(answers[mesh].words, end="\n\n")
if not slices.local:
    display(Image(plot.draw(answers[MESHES[0]].plan, "png")))

# %% [markdown]
# How to read it, line by line, is in `docs/planning.md`. In short: *arguments* are what lies in memory between two
# steps (parameters, their moving average, the optimizer's moments), *temporaries* what a step needs on top; the sum
# must fit into a chip. The least time is a bound that no run beats, not a forecast.
#
# ## Bigger questions
#
# The paper's models take the TPU's compiler and minutes, on a laptop too:
#
# ```
# python -m ediffi_jax.launch.plan --config=configs/base64.py --topology=v5e:16x16
# python -m ediffi_jax.launch.plan --config=configs/ediffi_d.py --topology=v5e:2x2 --what=sample --batch_per_chip=8
# python -m ediffi_jax.launch.plan --config=configs/base64.py --topology=v5e:4x4 --search=4
# ```
