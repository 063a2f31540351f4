"""Training and sampling speed against the same U-Net in PyTorch, in one run, turn about.

    python -m benchmarks.against_torch --config=configs/scenes.py:stage=base --batch=64        # CPU
    python -m benchmarks.against_torch --config=configs/base64.py --batch=16 --peak_tflops=989  # an H100

train    one step of `launch.train`: drawing levels, noise and drops, loss, gradient, clip, AdamW, EMA
sample   a guided Euler loop of `--steps` steps over prepared conditioning, two network passes a step

`benchmarks/torch_peer.py` is the other side, held equal to ours by a test. On a GPU both compute in bfloat16 and
PyTorch is compiled (`torch.compile`, channels last); on a CPU both are float32, and `--torch_compile` compiles PyTorch
there too. The table gives medians, and the median of the rounds' ratios with quartiles, ours over PyTorch's: above
1 we are faster. `JAX_NUM_CPU_DEVICES=4` divides our batch over four cores, as `launch.sample` does. With `--peak_tflops` the model FLOPs of a step (no recomputation) give an MFU for both.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from benchmarks import torch_peer
from ediffi_jax import conditioning, guidance, samplers
from ediffi_jax.compilation import compute_dtype
from ediffi_jax.conditioning import ENCODERS, Conditioning
from ediffi_jax.data.embedding_rows import to_conditioning
from ediffi_jax.denoiser import precondition
from ediffi_jax.devices import default_devices
from ediffi_jax.planning.encoders import planned_encoders
from ediffi_jax.planning.flops import global_flops
from ediffi_jax.planning.program import batch_shapes, make_objective, phase_of
from ediffi_jax.training import config_files
from ediffi_jax.training.mesh import make_mesh, put_batch, state_shardings
from ediffi_jax.training.objective import to_unit
from ediffi_jax.training.state import create, make_optimizer
from ediffi_jax.training.step import make_train_step

CONFIG = flags.DEFINE_string("config", "configs/scenes.py:stage=base", "Recipe of a base model.")
BATCH = flags.DEFINE_integer("batch", 64, "Images of a step, and of a sampling loop.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 8, "Sampling steps.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed rounds.", lower_bound=2)
WEIGHT = flags.DEFINE_float("guidance", 2.0, "Weight w of classifier-free guidance.")
COMPILE = flags.DEFINE_bool("torch_compile", None, "Compile PyTorch; by default on a GPU only.")
PEAK = flags.DEFINE_float("peak_tflops", None, "Dense bfloat16 peak of the device, for an MFU.")
OUT = flags.DEFINE_string("out", None, "JSON file of the figures.")

Programs = dict[str, Callable[[], Any]]


class Setup:
    """What both sides are given: recipe, random pictures and embeddings, random weights."""

    def __init__(self) -> None:
        self.config = config_files.load(CONFIG.value)
        self.config.batch_size = BATCH.value
        self.config.model.remat = False
        self.phase = phase_of(self.config, 0)
        self.mesh = make_mesh({"expert": 1, "data": -1, "fsdp": 1}, 1, default_devices())
        encoders = planned_encoders(self.config.encoders, compute_dtype())
        self.objective = make_objective(self.config, encoders, self.mesh)
        rng = np.random.default_rng(0)
        shapes = batch_shapes(self.config, self.phase, encoders, "precomputed")
        self.batch = {name: random(rng, leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        rows = {name: leaf[0] for name, leaf in self.batch.items()}
        self.cond = jax.device_get(to_conditioning(rows))
        init = jax.jit(self.objective.init)
        self.params = jax.device_get(init(jax.random.key(0), {name: leaf[:1] for name, leaf in rows.items()}))
        self.noise = rng.normal(size=rows["image"].shape).astype(np.float32)
        self.sigmas = samplers.power(STEPS.value, sigma_max=20.0)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Pictures, embeddings, or masks that keep everything."""
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return np.ones(shape, bool) if dtype == bool else rng.normal(size=shape).astype(dtype)


def ours(setup: Setup) -> tuple[Programs, float]:
    """Our two programs, and the model FLOPs of a training step."""
    optimizer = make_optimizer(setup.config.optimizer, 1000)
    step = make_train_step(
        objective=setup.objective, optimizer=optimizer, ema=setup.config.ema, phase=setup.phase, mesh=setup.mesh, seed=0
    )
    state = create(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], setup.params), optimizer)
    holder = [jax.device_put(state, state_shardings(setup.mesh, state))]
    batch = put_batch(setup.batch, setup.mesh)
    flops = global_flops(step, holder[0], batch, {})

    def train() -> None:
        holder[0], metrics = step(holder[0], batch, {})
        jax.block_until_ready(metrics)

    def denoise_of(params: PyTree, cond: Conditioning) -> Any:
        network = setup.objective.network
        return precondition(lambda x, c: network.apply({"params": params}, x, c, cond), setup.config.sigma_data)

    @jax.jit
    def loop(params: PyTree, cond: Conditioning, noise: jax.Array) -> jax.Array:
        null = conditioning.select(cond, ())
        guided = guidance.classifier_free(lambda c: denoise_of(params, c), cond, null, WEIGHT.value)
        return samplers.get("euler")(guided, noise, jnp.asarray(setup.sigmas, jnp.float32))

    places = NamedSharding(setup.mesh, P()), *[NamedSharding(setup.mesh, P("data"))] * 2
    arguments = jax.device_put((setup.params, setup.cond, setup.noise), places)
    return {"train": train, "sample": lambda: np.asarray(loop(*arguments))}, flops


def theirs(setup: Setup) -> Programs:
    """The same in PyTorch."""
    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    device = torch.device("cuda" if gpu else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    widths = {name: getattr(setup.cond, name).shape[-1] for name in ("clip_text", "clip_pooled", "clip_image", "t5")}
    network = torch_peer.load(torch_peer.UNet(widths, **setup.config.model.to_dict()), setup.params).to(device)
    network = network.to(memory_format=torch.channels_last)
    compiled = COMPILE.value if COMPILE.value is not None else gpu
    called = torch.compile(network) if compiled else network
    half = torch.autocast("cuda", torch.bfloat16) if gpu else contextlib.nullcontext()

    def put(x: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(x)).to(device)

    names = (*widths, "clip_text_mask", "t5_mask", "clip_image_mask")
    cond = {name: put(getattr(setup.cond, name)) for name in names}
    images = put(np.moveaxis(np.asarray(to_unit(jnp.asarray(setup.batch["image"][0]))), -1, 1))
    images = images.contiguous(memory_format=torch.channels_last)
    rates = setup.config.conditioning.to_dict()
    trainer = torch_peer.Trainer(network, setup.config.optimizer.to_dict(), setup.config.ema.decay)
    noise_of, sigma_data = setup.config.noise, setup.config.sigma_data

    def train() -> None:
        with half:
            sigma = torch.exp(noise_of.mean + noise_of.std * torch.randn(len(images), device=device))
            kept = {name: torch.rand(len(images), device=device) >= rates[name] for name in ENCODERS}
            noise = torch.randn_like(images)
            value = torch_peer.loss(called, images, noise, sigma, torch_peer.keep(cond, kept), sigma_data)
        trainer.update(value).item()

    none = {name: torch.zeros(len(images), dtype=torch.bool, device=device) for name in ENCODERS}
    both = {name: torch.cat([value, torch_peer.keep(cond, none)[name]]) for name, value in cond.items()}
    start = put(np.moveaxis(setup.noise * float(setup.sigmas[0]), -1, 1)).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def sample() -> np.ndarray:
        x = start
        with half:
            for now, after in zip(setup.sigmas[:-1], setup.sigmas[1:], strict=True):
                level = torch.full((2 * len(x),), float(now), device=device)
                given, nothing = torch_peer.denoise(called, torch.cat([x, x]), level, both, sigma_data).chunk(2)
                x0 = given + WEIGHT.value * (given - nothing)
                x = x0 + float(after / now) * (x - x0)
        return np.moveaxis(x.float().cpu().numpy(), 1, -1)

    return {"train": train, "sample": sample}


def timed(program: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    program()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(mine: Callable[[], Any], peer: Callable[[], Any]) -> dict[str, float]:
    """Medians over rounds in which both take turns, who begins changing."""
    first = {"ours_first_s": timed(mine)[0], "torch_first_s": timed(peer)[0]}  # these compile
    for program in (mine, peer):
        program()
    rounds = []
    for index in range(ROUNDS.value):
        order = ((0, mine), (1, peer)) if index % 2 else ((1, peer), (0, mine))
        rounds.append([seconds for _, seconds in sorted((side, timed(program)) for side, program in order)])
    low, ratio, high = statistics.quantiles([peer[0] / mine[0] for mine, peer in rounds], n=4)
    return {
        "ours_s": statistics.median(mine[0] for mine, _ in rounds),
        "torch_s": statistics.median(peer[0] for _, peer in rounds),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "ratio_processor": statistics.median(peer[1] / mine[1] for mine, peer in rounds),
        **first,
    }


def main(_: list[str]) -> None:
    """Measures both, prints a table."""
    setup = Setup()
    mine, flops = ours(setup)
    peer = theirs(setup)
    pictures = mine["sample"](), peer["sample"]()
    error = float(np.abs(pictures[0] - pictures[1]).max() / np.abs(pictures[0]).max())
    size = sum(leaf.size for leaf in jax.tree.leaves(setup.params)) / 1e6
    machine = f"{setup.mesh.size} x {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores"
    print(f"{machine}; {size:.1f} M parameters, batch {BATCH.value}")
    print(f"sampled pictures differ by at most {error:.1e} of their range")
    rows: dict[str, Any] = {"error": error, "flops_per_step": flops, "batch": BATCH.value, "parameters_M": size}
    for name in ("train", "sample"):
        row = rows[name] = compare(mine[name], peer[name])
        rates = [BATCH.value / row[f"{side}_s"] for side in ("ours", "torch")]
        line = (
            f"{name:7} ours {rates[0]:9.1f} images/s, PyTorch {rates[1]:9.1f}: {row['ratio']:.2f} x"
            f" [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] (processor {row['ratio_processor']:.2f} x)"
        )
        if PEAK.value and name == "train":
            mfu = {side: flops / row[f"{side}_s"] / (PEAK.value * 1e12) for side in ("ours", "torch")}
            row["mfu"] = mfu
            line += f"; MFU {100 * mfu['ours']:.1f} % and {100 * mfu['torch']:.1f} %"
        print(line, flush=True)
    if OUT.value:
        with open(OUT.value, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    app.run(main)
