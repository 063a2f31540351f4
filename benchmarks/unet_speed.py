"""How fast the networks of a recipe compile and run: images a second, forward and with gradients.

    taskset -c 0,1 python -m benchmarks.unet_speed --batch=32 [--stages=base,sr64,sr256 --out=speed.json]
    taskset -c 0,1 python -m benchmarks.unet_speed --stages=base --experts=3      # and three ways to train experts

`forward` is one evaluation, `gradient` the mean squared output's gradient for every parameter. With
`--experts=E` the gradient of E stacked experts (a `batch` each) is taken three ways: `vmap` (convolutions
become grouped ones), `map` (a loop), `unrolled`. Wall time is what a user waits; processor time, the sum over
cores, is steadier on a busy machine. Both are the best of `--repeats`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from ediffi_jax import models
from ediffi_jax.conditioning import ConditioningSpec, zeros

FLAGS = flags.FLAGS
CONFIG = flags.DEFINE_string("config", "scenes", "Recipe in configs/.")
STAGES = flags.DEFINE_list("stages", ["base", "sr64", "sr256"], "Stages of the recipe.")
BATCH = flags.DEFINE_integer("batch", 32, "Images of one evaluation.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Runs of each program.", lower_bound=1)
EXPERTS = flags.DEFINE_integer("experts", 0, "Also compare ways to train this many experts; 0 = do not.")
OUT = flags.DEFINE_string("out", None, "JSON file of the figures.")
SPEC = ConditioningSpec(clip_tokens=32, clip_width=128, pooled_width=128, t5_tokens=32, t5_width=128)


def measure(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """Seconds: compile, wall and processor time of one run."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    compiled = time.perf_counter() - start
    jax.block_until_ready(program(*args))
    wall, processor = [], []
    for _ in range(REPEATS.value):
        before, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(program(*args))
        wall.append(time.perf_counter() - before)
        processor.append(time.process_time() - cpu)
    return {"compile": compiled, "wall": min(wall), "processor": min(processor)}


def programs(config: Any) -> tuple[dict[str, Callable[..., Any]], Any, tuple[Any, ...]]:
    """The functions to measure, the parameters, and the other arguments."""
    network = models.build(config.model.to_dict())
    size, batch = config.model.resolution, BATCH.value
    low = (batch, size // 4, size // 4, 3) if config.model.get("low_res") else None
    args = (jnp.ones((batch, size, size, 3)), jnp.zeros(batch), zeros(batch, SPEC), low and jnp.zeros(low))
    params = jax.jit(network.init)(jax.random.key(0), *jax.tree.map(lambda a: a[:1], args))

    def forward(params: Any, *args: Any) -> jax.Array:
        return network.apply(params, *args)

    def gradient(params: Any, *args: Any) -> Any:
        return jax.grad(lambda p: jnp.mean((forward(p, *args) - args[0]) ** 2))(params)

    return {"forward": forward, "gradient": gradient}, params, args


def expert_programs(gradient: Callable[..., Any], number: int) -> dict[str, Callable[..., Any]]:
    """The gradient of `number` stacked experts, each on a batch of its own."""
    return {
        "vmap": jax.vmap(gradient),
        "map": lambda *stacked: jax.lax.map(lambda leaves: gradient(*leaves), stacked),
        "unrolled": lambda *stacked: [gradient(*jax.tree.map(lambda a: a[e], stacked)) for e in range(number)],
    }


def report(stage: str, name: str, seconds: dict[str, float], images: int) -> dict[str, Any]:
    """One line of the table, printed and returned."""
    row = {"stage": stage, "program": name, "images_per_second": images / seconds["wall"], **seconds}
    print(
        f"{stage:6} {name:9} {row['images_per_second']:8.1f} images/s"
        f" {1e3 * seconds['processor'] / images:8.2f} core-ms/image, compiled in {seconds['compile']:.1f} s",
        flush=True,
    )
    return row


def main(_: list[str]) -> None:
    module = __import__(f"configs.{CONFIG.value}", fromlist=["get_config"])
    rows = []
    for stage in STAGES.value:
        functions, params, args = programs(module.get_config(f"stage={stage}"))
        print(f"{stage:6} {sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6:.2f} M parameters")
        rows += [report(stage, name, measure(f, params, *args), BATCH.value) for name, f in functions.items()]
        if EXPERTS.value:
            stacked = jax.tree.map(lambda a: jnp.stack([a] * EXPERTS.value), (params, *args))
            for name, function in expert_programs(functions["gradient"], EXPERTS.value).items():
                rows.append(report(stage, name, measure(function, *stacked), BATCH.value * EXPERTS.value))
    if OUT.value:
        with open(OUT.value, "w") as file:
            json.dump({"batch": BATCH.value, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    app.run(main)
