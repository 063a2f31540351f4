"""What a picture costs: more experts against one deeper model with as many parameters.

Sampling programs as `Stage` compiles them (`lax.switch` over experts, each with parameters of its own), with random
parameters. E experts of the base's network hold about E times its parameters; the deep model is the same network with
as many more residual blocks a level. Programs take turns, in a fresh order every round, and are compared within it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ediffi_jax import conditioning, experts, models, samplers
from ediffi_jax.cascade import Cascade
from ediffi_jax.denoiser import precondition
from ediffi_jax.reproduction.bundled import opened, plt
from ediffi_jax.reproduction.claim import Claim, Finding, Picture, Result, Table
from ediffi_jax.reproduction.study import Study

CHEAP, DEAR = 1.1, 2.0  # four experts cost less than this, four times the depth more
BATCH, STEPS = 4, 8
DECIDES = 4  # experts
CLOCKS = ("processor", "wall")
KINDS = {"experts": "experts", "deep": "one deeper model"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        experts: numbers of experts; 1 and `DECIDES` among them.
        rounds: of all programs, a seed.
        model: what is changed in the base's network.
    """

    experts: tuple[int, ...] = (1, 2, 3, 4, 6)
    rounds: int
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SMALL = {"channels": 8, "channel_mults": (1, 2), "attention_resolutions": (8,), "cross_attention_resolutions": (8,)}
SIZES = {
    "seconds": Size(experts=(1, 4), rounds=2, model=SMALL),
    "minutes": Size(rounds=8),
    "hours": Size(rounds=24),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A compiled sampling loop, its arguments, and how long compiling took."""

    compiled: Any
    arguments: tuple[Any, ...]
    compile_seconds: float

    def run(self) -> None:
        """To the end."""
        self.compiled(*self.arguments).block_until_ready()


def run(study: Study) -> Result:
    """See `Claim.run`."""
    size = SIZES[study.budget]
    cascade = opened(study.cascade)
    variants = _variants(cascade, size)
    programs = functools.cache(lambda: {name: _program(cascade, *variant) for name, variant in variants.items()})
    settings = {"experts": size.experts, "batch": BATCH, "steps": STEPS, "model": dict(size.model)}
    described = study.remembered("programs", lambda: _described(variants, programs()), **settings)
    rounds = [
        study.remembered(
            f"seed{seed}", lambda seed=seed: timed(programs(), size.rounds, seed), rounds=size.rounds, **settings
        )
        for seed in study.seeds
    ]
    return _result(rounds, described, size, study.folder)


def deep_blocks(count: Callable[[int], int], blocks: int, times: int) -> int:
    """Residual blocks a level with which a network has about `times` its parameters; each block adds equally many.

    Args:
        count: blocks a level -> parameters.
        blocks: that it has.
        times: 1 or more.
    """
    return blocks + round((times - 1) * count(blocks) / (count(blocks + 1) - count(blocks)))


def timed(programs: Mapping[str, Program], rounds: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each program in each round, after one to warm up: {name: {clock: [rounds]}}."""
    rng = np.random.default_rng((seed, 0xC057))
    taken: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in programs}
    for index in range(-1, rounds):
        for name in rng.permutation(list(programs)):
            wall, processor = time.perf_counter(), time.process_time()
            programs[name].run()
            spent = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
            if index >= 0:
                for clock in CLOCKS:
                    taken[name][clock].append(spent[clock])
    return taken


def ratio(seconds: Mapping[str, Mapping[str, list[float]]], name: str, clock: str) -> float:
    """The median over rounds of a program's time by that of one expert."""
    return float(np.median(np.divide(seconds[name][clock], seconds[_name("experts", 1)][clock])))


def _name(kind: str, times: int) -> str:
    return f"{kind}{times}"


def _variants(cascade: Cascade, size: Size) -> dict[str, tuple[dict[str, Any], int]]:
    """Name -> (network, experts); the deep ones have as many parameters as the experts of their number."""
    model = {**cascade.stages[0].spec.model, **size.model}

    @functools.cache
    def count(blocks: int) -> int:
        return _count(_shapes(cascade, {**model, "blocks": blocks}))

    own = int(np.max(model["blocks"]))
    blocks = {times: deep_blocks(count, own, times) for times in size.experts if times > 1}
    return {_name("experts", times): ({**model, "blocks": own}, times) for times in size.experts} | {
        _name("deep", times): ({**model, "blocks": number}, 1) for times, number in blocks.items()
    }


def _inputs(cascade: Cascade, model: Mapping[str, Any]) -> tuple[jax.Array, conditioning.Conditioning]:
    side = model["resolution"]
    return jnp.zeros((BATCH, side, side, 3)), conditioning.zeros(BATCH, cascade.encoders.spec)


def _shapes(cascade: Cascade, model: Mapping[str, Any]) -> Any:
    """Of one expert's parameters."""
    network, (x, cond) = models.build(dict(model)), _inputs(cascade, model)
    return jax.eval_shape(lambda key: network.init(key, x, jnp.zeros(BATCH), cond)["params"], jax.random.key(0))


def _count(shapes: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def _program(cascade: Cascade, model: Mapping[str, Any], number: int) -> Program:
    """Sampling with `number` experts of equal intervals, as a stage does it: BATCH pictures, unguided."""
    network, shapes, (x, cond) = models.build(dict(model)), _shapes(cascade, model), _inputs(cascade, model)
    ensemble = experts.Ensemble(
        cuts=tuple(i / number for i in range(1, number)), noise=cascade.stages[0].ensemble.noise
    )
    rng = np.random.default_rng(0)
    params = tuple(
        jax.tree.map(lambda leaf: jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32)), shapes)
        for _ in range(number)
    )
    noise = jnp.asarray(rng.standard_normal(x.shape, np.float32))
    grid = cascade.stages[0].spec.sampler
    sigmas = samplers.power(STEPS, sigma_min=grid.sigma_min, sigma_max=grid.sigma_max, exponent=grid.exponent)

    apply = jax.jit(lambda one, *inputs: network.apply({"params": one}, *inputs))  # traced once for all experts

    def sample(params: Any, cond: conditioning.Conditioning, noise: jax.Array, sigmas: jax.Array) -> jax.Array:
        def denoise_of(one: Any) -> Any:
            return precondition(lambda scaled, c_noise: apply(one, scaled, c_noise, cond))

        return samplers.get("deis_ab1")(experts.switch(denoise_of, params, ensemble), noise, sigmas)

    arguments = (params, cond, noise, jnp.asarray(sigmas, jnp.float32))
    began = time.process_time()
    compiled = jax.jit(sample).lower(*arguments).compile()
    return Program(compiled=compiled, arguments=arguments, compile_seconds=time.process_time() - began)


def _described(variants: Mapping[str, tuple[dict[str, Any], int]], programs: Mapping[str, Program]) -> dict[str, Any]:
    found = {}
    for name, (model, number) in variants.items():
        memory = programs[name].compiled.memory_analysis()
        found[name] = {
            "blocks": model["blocks"],
            "experts": number,
            "parameters": _count(programs[name].arguments[0]),
            "temporary": getattr(memory, "temp_size_in_bytes", None),  # a backend may not tell
            "compile_seconds": programs[name].compile_seconds,
        }
    return found


def _result(
    rounds: Sequence[Mapping[str, Any]], described: Mapping[str, Mapping[str, Any]], size: Size, folder: Path
) -> Result:
    def finding(kind: str, times: int, clock: str, **bounds: float) -> Finding:
        model = described[_name(kind, times)]
        who = f"{times} experts" if kind == "experts" else f"one model of {model['blocks']} blocks a level"
        what = f"{who} ({_parameters(described, kind, times):.2f}× the parameters): {clock} time by that of one expert"
        values = tuple(ratio(seconds, _name(kind, times), clock) for seconds in rounds)
        return Finding(what=what, values=values, n=size.rounds, **bounds)

    others = [times for times in size.experts if times not in (1, DECIDES)]
    findings = [
        finding("experts", DECIDES, "processor", below=CHEAP),
        finding("deep", DECIDES, "processor", above=DEAR),
        finding("experts", DECIDES, "wall"),
        finding("deep", DECIDES, "wall"),
        *(finding(kind, times, "processor") for kind in KINDS for times in others),
    ]
    _draw(rounds, described, size, folder / "time.png")
    return Result(
        findings=tuple(findings),
        how=(
            f"The base's network with random parameters, {STEPS + 1} evaluations of {BATCH} pictures a run as one"
            f" compiled program, without guidance; experts share p(σ) in equal parts. {size.rounds} rounds a seed,"
            " each every program once in a fresh order; the median over rounds of the ratio to one expert in the same"
            " round."
            " Processor time, which other programs of the machine disturb less, decides. Seeds are whole repetitions of"
            " the rounds with programs compiled once."
        ),
        tables=(_table(rounds, described, size),),
        pictures=(
            Picture(
                file="time.png",
                caption=(
                    "Processor time of a sampling run, and the memory that it needs beside its parameters, against the"
                    " number of parameters; both axes relative to one expert where they say ×. Bars are ± one standard"
                    " deviation over seeds."
                ),
            ),
        ),
        remarks=("What experts do cost is the memory that holds their parameters, and compilation.",),
    )


def _parameters(described: Mapping[str, Mapping[str, Any]], kind: str, times: int) -> float:
    """Relative to one expert."""
    return described[_name(kind, times)]["parameters"] / described[_name("experts", 1)]["parameters"]


def _table(rounds: Sequence[Mapping[str, Any]], described: Mapping[str, Mapping[str, Any]], size: Size) -> Table:
    rows = []
    for name, model in described.items():
        milliseconds = [1e3 * np.median([seconds[name][clock] for seconds in rounds]) / (STEPS + 1) for clock in CLOCKS]
        ratios = [f"{np.mean([ratio(seconds, name, clock) for seconds in rounds]):.2f}" for clock in CLOCKS]
        memory = "-" if model["temporary"] is None else f"{model['temporary'] / 1e6:.1f}"
        what = f"{model['experts']}", f"{model['blocks']}", f"{model['parameters'] / 1e6:.2f}"
        rows.append((*what, *(f"{ms:.1f}" for ms in milliseconds), *ratios, memory, f"{model['compile_seconds']:.0f}"))
    head = ("experts", "blocks a level", "million parameters", "processor ms", "wall ms", "ratio", "ratio, wall")
    title = f"An evaluation of {BATCH} pictures: medians over rounds and seeds"
    return Table(title=title, head=(*head, "temporary MB", "compilation s"), rows=tuple(rows))


def _draw(
    rounds: Sequence[Mapping[str, Any]], described: Mapping[str, Mapping[str, Any]], size: Size, path: Path
) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind, label in KINDS.items():
        shown = [times for times in size.experts if _name(kind, times) in described]
        if kind == "deep":
            shown = [1, *shown]  # both begin with the same model
        names = [_name("experts" if times == 1 else kind, times) for times in shown]
        xs = [described[name]["parameters"] / described[names[0]]["parameters"] for name in names]
        values = np.array([[ratio(seconds, name, "processor") for seconds in rounds] for name in names])
        spread = values.std(axis=1, ddof=1) if len(rounds) > 1 else None
        left.errorbar(xs, values.mean(axis=1), spread, capsize=3, marker="o", markersize=4, label=label)
        memory = [described[name]["temporary"] for name in names]
        if None not in memory:
            right.plot(xs, [held / 1e6 for held in memory], marker="o", markersize=4, label=label)
    left.set(xlabel="parameters, ×", ylabel="processor time, ×", ylim=(0, None))
    right.set(xlabel="parameters, ×", ylabel="temporary memory, MB", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


CLAIM = Claim(
    number=7,
    name="cost",
    title="Inference time: experts add none, depth does",
    says=(
        "More experts leave the time of an evaluation as it is; one deeper model of as many parameters takes longer in"
        " proportion."
    ),
    source="eDiff-I, section 4 and its figure of run times",
    run=run,
)
