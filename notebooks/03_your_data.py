# %% [markdown]
# # 3 · Your data
#
# A folder of pictures with captions becomes a data set (`launch.prepare`), a model is trained on it, and draws. Set
# `FOLDER` to a folder of your own, each picture with its caption beside it (`cat.jpg`, `cat.txt`); without one, some
# are drawn.
#
# On a CPU it shows that everything runs, in three minutes of processor time. For pictures worth looking at: a GPU, more
# pixels, thousands of steps, and real encoders in the place of the bundled ones, which know the words of drawn scenes
# only (`docs/weights.md`).

# %%
# Installs the package where it is missing; what Colab has of jax, numpy and protobuf stays as it is.
REPOSITORY = "git+https://github.com/OWNER/ediffi_jax"  # its address, or a clone: "file:///content/ediffi_jax"
EXTRAS = "[beam]"

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
FOLDER = ""
PICTURES = 400  # drawn where FOLDER is empty
STEPS = 400
CHANGES = []  # of the recipe, such as "model.channels=64"
SAMPLE_STEPS = 16

# %%
import pathlib

import numpy as np
from PIL import Image

from ediffi_jax.data import scenes

if not FOLDER:
    FOLDER = "photos"
    pathlib.Path(FOLDER).mkdir(exist_ok=True)
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        scene = scenes.sample_scene(rng)
        place = pathlib.Path(FOLDER, f"{number:05d}.png")
        Image.fromarray(scenes.render(scene, 96)).save(place)
        place.with_suffix(".txt").write_text(scenes.caption(scene, rng))

# %% [markdown]
# ## Prepare
#
# Decodes, crops and resizes every picture, leaves out duplicates and what cannot be used, and says what became of
# each record. Run again with more pictures in the folder, it looks at the new ones only. `docs/data.md` has every
# step.

# %%
# A process of its own: inside IPython, Beam looks for its interactive mode.
verbs = "ediffi_jax.launch" if importlib.util.find_spec("ediffi_jax.launch") else "launch"  # installed, or a clone
words = [f"--input={FOLDER}", "--out=data64", "--resolution=64", "--min_side=0", "--validation=0.1"]
done = subprocess.run([sys.executable, "-m", f"{verbs}.prepare", *words], capture_output=True, text=True)
print(done.stdout, done.stderr)
done.check_returncode()

# %% [markdown]
# ## Look at it as training does

# %%
import ediffi_jax as ed
from ediffi_jax import compilation
from ediffi_jax.training import config_files, loop
from ediffi_jax.training.frozen import open_encoders
from ediffi_jax.training.run import make_loader

compilation.enable_cache()
config = config_files.load("configs/scenes.py:stage=base,quick")
data = ["data.name=" + str(pathlib.Path("data64").resolve()), "data.source_resolution=64"]
config_files.override(config, [*data, f"phases.0.steps={STEPS}", f"sampler.steps={SAMPLE_STEPS}", *CHANGES])
batch = next(make_loader(config, open_encoders(config), split="train", num_experts=1).iterate())
ed.show(batch["image"][0][:8], columns=8)

# %% [markdown]
# ## Train, and draw
#
# One phase, one model; `docs/experts.md` and notebook 2 branch it. Stopped in any way, the cell goes on where it was.

# %%
finished = loop.train(config, "mine") == 0
print("finished" if finished else "stopped; run this cell again")

# %%
cascade = ed.load("mine")
captions = sorted(pathlib.Path(FOLDER).glob("*.txt"))[:4]
prompts = [caption.read_text() for caption in captions]
ed.show(cascade.sample(prompts), prompts)

# %% [markdown]
# The same on a command line, where training runs for days and survives restarts:
#
# ```
# python -m ediffi_jax.launch.prepare --input=photos --out=data64 --resolution=64 --min_side=0 --validation=0.1
# python -m ediffi_jax.launch.train --config=configs/scenes.py:stage=base,quick --workdir=mine \
#   --config.data.name=$PWD/data64 --config.data.source_resolution=64
# python -m ediffi_jax.launch.sample --cascade=mine --prompt="..." --out=samples
# ```
