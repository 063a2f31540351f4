"""What selecting an expert costs while sampling: one model against two ways to switch and a dynamic index.

    python -m benchmarks.expert_switch --pairs=20 [--channels=64 --batch=4 --steps=8 --out=switch.json]

Each program is a whole sampling loop (DEIS kutta3, so 3 evaluations a step) through the same U-Net:

    single    one expert, no selection
    switch    three experts, `experts.switch`, each expert's parameters a buffer of its own: what a stage does
    slices    the same, but each branch takes a static slice of the stacked parameters
    dynamic   three experts, parameters picked from the stack by a dynamic index

Runs are interleaved, forth and back, and compared within a round, so that whatever else
the machine does falls on all three alike. Wall time is what a user waits; processor time is steadier on a busy
machine. The aim is a switch within 1.03 of the single model.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from ediffi_jax import experts, samplers
from ediffi_jax.conditioning import ConditioningSpec, zeros
from ediffi_jax.denoiser import DenoiseFn, precondition
from ediffi_jax.models import UNet
from ediffi_jax.types import Images, Params

FLAGS = flags.FLAGS
PAIRS = flags.DEFINE_integer("pairs", 20, "Rounds of interleaved runs.", lower_bound=2)
CHANNELS = flags.DEFINE_integer("channels", 64, "Channels of the U-Net's first level; it has (1, 2, 3) times that.")
BLOCKS = flags.DEFINE_integer("blocks", 2, "Residual blocks a level.")
BATCH = flags.DEFINE_integer("batch", 4, "Images at a time.")
RESOLUTION = flags.DEFINE_integer("resolution", 16, "Height and width of the images.")
STEPS = flags.DEFINE_integer("steps", 8, "Sampling steps; 3 evaluations each, and one more at the end.")
OUT = flags.DEFINE_string("out", "", "File for the figures as JSON; empty prints them only.")

ENSEMBLE = experts.Ensemble(cuts=(1 / 8, 3 / 4))
SPEC = ConditioningSpec(clip_tokens=16, clip_width=64, pooled_width=64, t5_tokens=24, t5_width=64)


def dynamic_index(denoise_of: Callable[[Params], DenoiseFn], stacked: Params, ensemble: experts.Ensemble) -> DenoiseFn:
    """The alternative to `experts.switch`: gathers the expert's parameters, then runs the one network."""

    def denoise(x: Images, sigma: jax.Array) -> Images:
        i = ensemble.route(sigma)
        one = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stacked)
        return denoise_of(one)(x, sigma)

    return denoise


def make_programs() -> tuple[dict[str, Any], dict[str, tuple], dict[str, dict[str, float]]]:
    """The programs, compiled; their arguments; and their compile seconds and megabytes of temporary memory."""
    network = UNet(
        resolution=RESOLUTION.value,
        channels=CHANNELS.value,
        channel_mults=(1, 2, 3),
        blocks=BLOCKS.value,
        attention_resolutions=(8, 4),
        cross_attention_resolutions=(8, 4),
        head_channels=32,
        context_width=128,
    )
    cond = zeros(BATCH.value, SPEC)
    noise = jax.random.normal(jax.random.key(1), (BATCH.value, RESOLUTION.value, RESOLUTION.value, 3))
    init = jax.jit(lambda key: network.init(key, noise, jnp.zeros(BATCH.value), cond)["params"])
    one = experts.stack([init(jax.random.key(0))])
    three = experts.branch(one, (0, 0, 0))
    sigmas = jnp.asarray(samplers.power(STEPS.value), jnp.float32)

    def denoise_of(params: Params) -> DenoiseFn:
        return precondition(lambda x, c_noise: network.apply({"params": params}, x, c_noise, cond))

    kinds = {
        "single": (experts.switch, experts.Ensemble(), one),
        "switch": (experts.switch, ENSEMBLE, experts.unstack(three)),
        "slices": (experts.switch, ENSEMBLE, three),
        "dynamic": (dynamic_index, ENSEMBLE, three),
    }
    programs, arguments, costs = {}, {}, {}
    for name, (select, ensemble, params) in kinds.items():
        sampling = jax.jit(lambda p, z, s, f=select, e=ensemble: samplers.DeisRK()(f(denoise_of, p, e), z, s))
        began = time.perf_counter()
        programs[name] = sampling.lower(params, noise, sigmas).compile()
        memory = programs[name].memory_analysis()
        costs[name] = {"compile_s": time.perf_counter() - began, "temporary_MB": memory.temp_size_in_bytes / 1e6}
        arguments[name] = (params, noise, sigmas)
    return programs, arguments, costs


def timed(program: Callable[..., jax.Array], arguments: tuple) -> tuple[float, float]:
    """Wall and processor milliseconds per evaluation of the network."""
    wall, processor = time.perf_counter(), time.process_time()
    program(*arguments).block_until_ready()
    per_evaluation = 1e3 / (3 * STEPS.value + 1)
    return (time.perf_counter() - wall) * per_evaluation, (time.process_time() - processor) * per_evaluation


def main(_: list[str]) -> None:
    """Compiles, warms up, measures in rounds, prints a table."""
    programs, arguments, figures = make_programs()
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for index in range(-1, PAIRS.value):
        for name in sorted(programs, reverse=index % 2 == 0):
            measured = timed(programs[name], arguments[name])
            if index >= 0:  # the first round warms up
                rounds[name].append(measured)
    print(f"{jax.devices()[0].device_kind}, {BATCH.value} images of {RESOLUTION.value}, {PAIRS.value} rounds")
    print("program   compile s   temporary MB   ms/evaluation   ratio wall [quartiles]   ratio processor")
    for name, measured in rounds.items():
        ratios = [
            [mine[clock] / single[clock] for mine, single in zip(measured, rounds["single"], strict=True)]
            for clock in (0, 1)
        ]
        low, middle, high = statistics.quantiles(ratios[0], n=4)
        figures[name] |= {
            "ms": statistics.median(wall for wall, _ in measured),
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
            "ratio_processor": statistics.median(ratios[1]),
        }
        row = figures[name]
        print(
            f"{name:<8}{row['compile_s']:>11.1f}{row['temporary_MB']:>15.1f}{row['ms']:>16.2f}"
            f"{middle:>13.3f} [{low:.3f}, {high:.3f}]{row['ratio_processor']:>18.3f}"
        )
    if OUT.value:
        with open(OUT.value, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    app.run(main)
