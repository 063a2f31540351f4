# %% [markdown]
# # 2 · Train experts
#
# A base model is trained for all noise levels and then *branched*: three copies of it go on, each in its own range of
# noise. Beside them the single model goes on for as many pictures, so that the comparison is fair. Then two
# experiments of the paper on what the text is used for at which noise: attention, and changing the prompt half-way.
#
# The sizes below are a CPU's: far from convergence, eight and a half minutes of processor time, 4 GB of memory. See what
# happens, and do not conclude who wins; three seeds of a longer comparison are in `docs/reproduction.md`.

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
STEPS = 600  # of the base, 16 pictures each
EXPERT_STEPS = 80  # of each expert
CUTS = (0.125, 0.75)  # quantiles of the noise between experts
CHANGES = ["data.num_scenes=4000"]  # of the recipe, as --config.data.num_scenes=4000 on a command line
IMAGES, LEVELS = 64, 32  # held-out pictures, and noise levels at which the models are compared
LOOK_AT = "scenes"  # whose attention is looked at: the bundled cascade's, or "experts", those trained here
SWITCHES = (0.0, 0.07, 0.3, 0.6, 0.8, 1.0)  # shares of the steps, at the end, that see the second prompt

# %% [markdown]
# ## One model
#
# `config_files.load`, `loop.train` and `branching.branch_workdir` are what `launch.train` and `launch.branch` call.
# Run a cell again and training goes on where it stopped.

# %%
import matplotlib.pyplot as plt
import numpy as np

from ediffi_jax import compilation
from ediffi_jax.training import branching, config_files, loop

compilation.enable_cache()
config = config_files.load("configs/scenes.py:stage=base,quick")
config_files.override(config, [f"seed={SEED}", f"phases.0.steps={STEPS}", *CHANGES])
finished = loop.train(config, "base") == 0
print("finished" if finished else "stopped; run this cell again")

# %% [markdown]
# ## Branch: experts, and the single model for as many pictures

# %%
number = len(CUTS) + 1
branches = {"experts": (CUTS, (0,) * number, EXPERT_STEPS), "single": ((), (0,), number * EXPERT_STEPS)}
for name, (cuts, parents, steps) in branches.items():
    if config_files.read_workdir(name) is None:
        branching.branch_workdir("base", name, cuts=cuts, parents=parents, steps=steps)
    loop.train(config_files.read_workdir(name), name)

# %% [markdown]
# ## Compare
#
# The loss on held-out pictures at every quantile of the noise; all models get the same pictures and the same noise.

# %%
import ediffi_jax as ed
from ediffi_jax.evaluation.quantile_loss import compare, quantile_loss
from ediffi_jax.evaluation.quickstart import held_out

losses = {}
for name in ("base", "single", "experts"):
    trained = ed.load(name)
    base = trained.stages[0]
    images, captions = held_out(name, trained.encoders, IMAGES)
    losses[name] = quantile_loss(base.denoise_fn(captions), images, base.ensemble.noise, count=LEVELS)

figure, axes = plt.subplots(figsize=(7, 3))
for name in ("single", "experts"):
    change = 100 * (losses[name].losses.mean(axis=1) / losses["base"].losses.mean(axis=1) - 1)
    axes.plot(losses[name].quantiles, change, label=name)
axes.axhline(0, color="black", linewidth=0.5)
for cut in CUTS:
    axes.axvline(cut, color="gray", linestyle=":")
axes.set(xlabel="quantile of the noise level", ylabel="loss against the base, %")
axes.legend()
plt.show()

print("experts against the single model, held-out loss:")
for part in compare(losses["single"], losses["experts"], base.ensemble):
    print(f"quantiles {part.low:.3f} to {part.high:.3f}: {100 * part.change:+.1f} ± {100 * part.error:.1f} %")

# %% [markdown]
# ## Attention
#
# Figure 3 of the paper: at high noise the picture attends to the text, at low noise nearly all attention goes to the
# *null token*, which is there for when nothing is to be looked up. Here for the model named by `LOOK_AT`: the share of
# cross-attention on text and null token, over all layers, heads and pixels. The bundled cascade leans the same way, but
# far less: at quantile 0.02 of the noise 32 % went to the null token, at 0.98 21 % (16 pictures, seed 0).

# %%
import jax

from ediffi_jax.attention_maps import maps_fn, shares

looked_at = ed.load(LOOK_AT)
stage = looked_at.stages[0]
maps = maps_fn(stage, captions)
quantiles = np.linspace(0.02, 0.98, LEVELS // 2)
noise = jax.random.normal(jax.random.key(SEED), images.shape)
found = []
for quantile in quantiles:
    sigma = float(stage.ensemble.noise.quantile(quantile))
    found.append(shares(maps(images + sigma * noise, sigma), captions))

figure, axes = plt.subplots(figsize=(7, 3))
axes.plot(quantiles, [float(np.mean(one["t5"] + one["clip_text"])) for one in found], label="text")
axes.plot(quantiles, [float(np.mean(one["null"])) for one in found], label="null token")
axes.set(xlabel="quantile of the noise level", ylabel="share of attention", ylim=(0, 1))
axes.legend()
plt.show()

# %% [markdown]
# ## Prompt switching
#
# Figure 4 of the paper: sampling begins with one prompt and ends with another. Everything that changes what is
# denoised is a function from a denoiser to a denoiser, here `guidance.switch_prompt`. The second prompt seen by the
# last few steps changes nothing: by then the text has been used. Seen by most of them, it decides.

# %%
import dataclasses

from ediffi_jax import guidance, samplers
from ediffi_jax.cascade import to_uint8
from ediffi_jax.stage import image_keys, noise_grid

settings = stage.spec.sampler
texts = "a red circle on a gray background", "a blue square on a gray background"
first, second = (looked_at.encoders.encode([text]) for text in texts)
sigmas = noise_grid(settings)
keys = image_keys(np.uint32(SEED), np.arange(1, dtype=np.uint32), stage_index=0)
start = samplers.initial_noise(keys, (stage.spec.resolution,) * 2 + (3,))


@jax.jit
def sample(params, level):
    own = dataclasses.replace(stage, params=params, devices=())
    before, after = (own.denoise_fn(text, guidance=settings.guidance) for text in (first, second))
    return samplers.get(settings.name)(guidance.switch_prompt(before, after, level), start, sigmas, keys)


rows = []
for share in SWITCHES:
    level = np.inf if share == 1 else sigmas[round((1 - share) * settings.steps)] if share else 0.0
    x = sample(stage.params, np.float32(level))
    for upper in looked_at.stages[1:]:
        x = upper.sample(first if share < 0.5 else second, keys, low_res=np.clip(x, -1, 1))
    rows.append(to_uint8(x)[0])
ed.show(np.stack(rows), [f"last {100 * share:.0f} %" for share in SWITCHES], columns=len(rows))
