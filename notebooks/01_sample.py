# %% [markdown]
# # 1 · Pictures from the bundled cascade
#
# eDiff-I in small: a base model draws 16×16 pixels from a text, two super-resolution models make 64×64 and 256×256 of
# them. In each stage several *experts* share the work: one for each range of noise levels. The cascade in the package
# was trained on drawn scenes of shapes, colours, counts and places, and knows no other words; what it can and cannot
# do is in `docs/scenes.md`.
#
# On four busy CPU cores the whole took a minute and a half.

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
SEED = 0
STEPS = None  # of the solver: a number, or {"base": 8}; None is what each stage was made for

# %%
import ediffi_jax as ed

cascade = ed.load("scenes")
for stage in cascade.stages:
    spec = stage.spec
    print(f"{spec.name}: {spec.resolution}×{spec.resolution}, experts cut at quantiles {spec.cuts} of the noise")

# %% [markdown]
# ## Text
#
# The first call compiles a program for each stage, later ones of the same kind do not. The same seed gives the same
# pictures, alone or in any batch.

# %%
prompts = [
    "a red circle left of a blue square",
    "a green moon above a white square",
    "two yellow stars on a gray background",
    "a purple heart , neon style",
]
pictures = cascade.sample(prompts, seed=SEED, steps=STEPS, return_stages=True)
ed.show(pictures["sr256"], prompts)

# %% [markdown]
# The same pictures after each stage. What is where is settled at 16×16; the others add detail.

# %%
import numpy as np

ed.show(np.stack([np.kron(pictures["base"][0], np.ones((16, 16, 1), np.uint8)), pictures["sr256"][0]]), ["16", "256"])

# %% [markdown]
# ## Paint with words
#
# The text says *what*, painting says *where*. A mask is a half (`"left"`), a box, a picture or an array.
# Cross-attention from the painted pixels to the words of the phrase is raised, the more the more noise there is (paper,
# section 4.3; no training is needed). It is a wish, not a command: `docs/control.md` has how often it is followed. Here
# the same text, painted both ways.

# %%
text = "a red circle and a blue square"
one_way = {"red circle": "left", "blue square": "right"}
other_way = {"red circle": "bottom", "blue square": "top"}
paintings = [one_way, one_way, other_way, other_way]
painted = cascade.sample([text] * 4, seed=SEED, steps=STEPS, paint=paintings)
ed.show(painted, paint=paintings)

# %% [markdown]
# ## Style
#
# A reference picture is read by CLIP's image encoder and tells the style, while the text tells the content. The
# references are drawn here; a file's name works as well.

# %%
from ediffi_jax.data import scenes

styles = ("flat", "outline", "neon", "mosaic")
shape = scenes.Object(colour="orange", shape="triangle")
references = [scenes.render(scenes.Scene(objects=(shape,), style=style), 256) for style in styles]
ed.show(np.stack(references), styles)

# %%
styled = cascade.sample(["a red circle left of a blue square"] * 4, seed=SEED, steps=STEPS, style=references)
ed.show(styled, styles)

# %% [markdown]
# ## The studio
#
# The same with the mouse: phrases as chips, a canvas to paint on, previews after every step. It needs the extra
# `[studio]` (set `EXTRAS = "[studio]"` above). In a cell of its own:
#
# ```python
# ed.studio(cascade)
# ```
#
# On a command line `python -m ediffi_jax.launch.sample --cascade=scenes --prompt="..." --out=samples` writes the
# pictures and everything that is needed to make each of them again.
