"""The paper's models as recipes: what they resolve to, how large they are, their schedules, and that they train.

    PYTHONPATH=. python tests/test_paper_configs.py      writes the resolved recipes anew; review the diff
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ediffi_jax import conditioning, encoders, models
from ediffi_jax.errors import UserError
from ediffi_jax.noise import LogNormal
from ediffi_jax.training import branching, config_files, loop
from ediffi_jax.training.config import validate
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.mesh import check_batch_size, make_mesh
from ediffi_jax.training.schedule import Phase

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "fixtures" / "paper_configs"
STAGES = ("base", "sr256", "sr1024")
RECIPES = {"base64": ("", "synthetic"), "sr256": ("",), "sr1024": ("",)}
RECIPES |= {f"ediffi_{letter}": tuple(f"stage={stage}" for stage in STAGES) for letter in "abcd"}
SINGLES = {"base64": 715_496_707, "sr256": 445_653_763, "sr1024": 194_959_619}


def load(recipe: str, arguments: str = "") -> ConfigDict:
    return config_files.load(f"configs/{recipe}.py:{arguments}")


def phases_of(letter: str, stage: str, run: str = "all") -> tuple[Phase, ...]:
    return validate(load(f"ediffi_{letter}", f"stage={stage},run={run}"))


# ------------------------------------------------------------------------------------------------- golden files


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested JSON as (dotted path, value); lists of plain values stay whole."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        yield path, value
        return
    for key in sorted(value):
        yield from flat(value[key], f"{path}.{key}" if path else key)


def resolved(recipe: str) -> dict[str, dict[str, Any]]:
    """{arguments: {dotted key: value}} of a recipe."""
    return {words: dict(flat(config_files.to_json(load(recipe, words)))) for words in RECIPES[recipe]}


def write_golden() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        (GOLDEN / f"{recipe}.json").write_text(json.dumps(resolved(recipe), indent=1) + "\n")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_to_what_was_reviewed(recipe: str) -> None:
    golden, now = json.loads((GOLDEN / f"{recipe}.json").read_text()), resolved(recipe)
    assert golden.keys() == now.keys()
    absent = "(no such key)"
    differences = [
        f"{recipe}:{words}: config.{key} was {golden[words].get(key, absent)!r}, is {now[words].get(key, absent)!r}"
        for words in now
        for key in sorted(golden[words].keys() | now[words].keys())
        if golden[words].get(key, absent) != now[words].get(key, absent)
    ]
    hint = "\nif that is meant: PYTHONPATH=. python tests/test_paper_configs.py, and review the diff of tests/fixtures/paper_configs"
    assert not differences, "\n".join(differences) + hint


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_valid_and_says_how_to_run_it(recipe: str) -> None:
    for words in RECIPES[recipe]:
        config = load(recipe, words)
        validate(config)
        models.build(config.model)
        assert (config.batch_size, config.optimizer.lr, config.optimizer.weight_decay) == (2048, 1e-4, 0.01)
        assert config.ema.decay == 0.9999 and config.model.dropout == 0 and config.model.remat
        assert config.conditioning.to_dict() == {"clip_text": 0.2, "t5": 0.25, "clip_image": 0.9}
    text = (ROOT / f"configs/{recipe}.py").read_text()
    assert f"python -m launch.train --config=configs/{recipe}.py" in text
    assert all(word in text for word in ("Hardware:", "Hours:", "Expected result:"))


def test_config_a_is_the_three_single_models() -> None:
    for recipe, stage in zip(SINGLES, STAGES, strict=True):
        assert config_files.to_json(load(recipe)) == config_files.to_json(load("ediffi_a", f"stage={stage}"))


# --------------------------------------------------------------------------------------------- parameter counts
# By hand from the paper's tables 2 to 4 and from how ADM, Imagen and docs/architecture.md build with them.


def dense(i: int, o: int) -> int:
    return i * o + o


def conv(i: int, o: int) -> int:
    return 9 * i * o + o


def res(i: int, o: int, e: int = 1024) -> int:
    """Norm, convolution, scale and shift from the embedding [e], norm, convolution; projected where widths differ."""
    return 2 * i + conv(i, o) + dense(e, 2 * o) + 2 * o + conv(o, o) + (dense(i, o) if i != o else 0)


def self_attention(c: int) -> int:
    return 2 * c + 3 * dense(c, c) + dense(c, c)


def cross_attention(c: int, width: int = 1024) -> int:
    return 2 * c + dense(c, c) + 2 * dense(width, c) + dense(c, c)


def attention(c: int) -> int:
    return self_attention(c) + cross_attention(c)


def conditioner(c: int, *, aug: bool) -> int:
    """Noise embedding (two for a noisy input), both pooled vectors, three projections with norms, the null token."""
    e, width = 4 * c, 1024
    noise = dense(c, e) + dense(e, e)
    tokens = [dense(features, width) + 2 * width for features in (768, 4096, 768)]
    return noise * (1 + aug) + 2 * dense(768, e) + sum(tokens) + width


def base64_by_hand() -> int:
    """ADM at 256, 512, 1024, 1024 channels: 3 blocks down and 4 up a level, a block for each halving and doubling."""
    down = [
        4 * res(256, 256),  # 64x64, and its halving
        res(256, 512) + 3 * res(512, 512) + 3 * attention(512),  # 32x32
        res(512, 1024) + 3 * res(1024, 1024) + 3 * attention(1024),  # 16x16
        3 * res(1024, 1024) + 3 * attention(1024),  # 8x8
    ]
    middle = 2 * res(1024, 1024) + attention(1024)
    up = [  # the width below + the skip's; the last skip of a level is the halving of the one above it
        4 * res(1024 + 1024, 1024) + 4 * attention(1024) + res(1024, 1024),
        3 * res(1024 + 1024, 1024) + res(1024 + 512, 1024) + 4 * attention(1024) + res(1024, 1024),
        res(1024 + 512, 512) + 2 * res(512 + 512, 512) + res(512 + 256, 512) + 4 * attention(512) + res(512, 512),
        res(512 + 256, 256) + 3 * res(256 + 256, 256),
    ]
    ends = conv(3, 256) + 2 * 256 + conv(256, 3)
    return conditioner(256, aug=False) + sum(down) + middle + sum(up) + ends


def super_resolution_by_hand(widths: tuple[int, ...], last_attention: int) -> int:
    """2, 4, 8, 8 blocks on either side, attention after the last; 2x2 patches into a level and out of it."""
    blocks = (2, 4, 8, 8)
    sides = 2 * sum(n * res(c, c, 512) for n, c in zip(blocks, widths, strict=True)) + 2 * last_attention
    between = sum(dense(4 * a, b) + dense(b, 4 * a) for a, b in itertools.pairwise(widths))
    return conditioner(128, aug=True) + conv(6, 128) + sides + between + 2 * 128 + conv(128, 3)


def network_and_shapes(recipe: str) -> tuple[nn.Module, ConfigDict, PyTree]:
    """The network and its parameters' shapes; nothing is allocated."""
    config = load(recipe)
    network, side = models.build(config.model), config.data.crop or config.data.resolution
    picture, level, cond = jnp.zeros((1, side, side, 3)), jnp.zeros((1,)), conditioning.zeros(1, conditioning.PAPER)
    extra = {}
    if config.data.low_resolution:
        small = side * config.data.low_resolution // config.data.resolution
        extra = {"low_res": jnp.zeros((1, small, small, 3)), "aug_level": level}
    shapes = jax.eval_shape(lambda key: network.init(key, picture, level, cond, **extra), jax.random.key(0))
    return network, config, shapes["params"]


@pytest.mark.parametrize(
    ("recipe", "by_hand"),
    [
        ("base64", base64_by_hand()),
        ("sr256", super_resolution_by_hand((128, 256, 512, 1024), attention(1024))),
        ("sr1024", super_resolution_by_hand((128, 256, 512, 512), cross_attention(512))),
    ],
)
def test_a_network_has_the_parameters_of_its_table(recipe: str, by_hand: int) -> None:
    shapes = network_and_shapes(recipe)[2]
    rooms = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
    count = sum(rooms.values())
    listing = "\n".join(f"{size:>12,} {name}" for name, size in rooms.items())
    assert count == by_hand == SINGLES[recipe], f"{recipe}: {count:,} parameters, by hand {by_hand:,}\n{listing}"
    written = f"{count:,}".replace(",", " ")
    assert written in (ROOT / "configs" / f"{recipe}.py").read_text()
    assert written in (ROOT / "docs" / "experts.md").read_text()


def test_sr1024_trained_on_crops_runs_on_whole_pictures() -> None:
    network, config, shapes = network_and_shapes("sr1024")
    assert (config.data.crop, config.data.resolution, config.data.low_resolution) == (256, 1024, 256)
    cond = conditioning.zeros(2, conditioning.PAPER)
    whole, small, level = jnp.zeros((2, 1024, 1024, 3)), jnp.zeros((2, 256, 256, 3)), jnp.zeros((2,))
    made = jax.eval_shape(
        lambda params: network.apply({"params": params}, whole, level, cond, low_res=small, aug_level=level), shapes
    )
    assert made.shape == (2, 1024, 1024, 3) and made.dtype == jnp.float32


def test_the_conditioning_is_that_of_the_papers_encoders() -> None:
    spec = conditioning.PAPER
    assert spec.t5_tokens == encoders.MAX_T5_TOKENS
    assert spec.clip_tokens + spec.t5_tokens + 1 + 1 == 192  # with the CLIP image and the null token


# ---------------------------------------------------------------------------------------------------- schedules


def sigma(mass: float) -> float:
    """The paper's noise level below which this mass of p(sigma) lies."""
    return math.exp(-1.2 + 1.2 * NormalDist().inv_cdf(mass))


def expert_steps(phases: tuple[Phase, ...]) -> int:
    return sum(phase.steps * phase.num_experts for phase in phases)


def test_config_d_ends_with_the_papers_three_experts() -> None:
    config = load("ediffi_d")
    last = validate(config)[-1]
    assert [(i.low, i.high) for i in last.intervals] == [(0, 1 / 8), (1 / 8, 511 / 512), (511 / 512, 1)]
    edges = last.ensemble(LogNormal(**config.noise)).cut_sigmas
    assert edges == pytest.approx((sigma(1 / 8), sigma(511 / 512)), rel=1e-6)
    assert [round(edge, 4) for edge in edges] == [0.0757, 9.6096]  # the facts' table: 0.0757 and 9.610


def test_config_d_halves_the_extremes_level_by_level() -> None:
    phases = phases_of("d", "base")
    assert [phase.cuts for phase in phases] == [
        (), (1 / 2,), (1 / 4, 3 / 4), (1 / 8, 7 / 8), (1 / 8, 15 / 16), (1 / 8, 31 / 32), (1 / 8, 63 / 64),
        (1 / 8, 127 / 128), (1 / 8, 255 / 256), (1 / 8, 511 / 512),
    ]  # fmt: skip
    assert [phase.parents for phase in phases[1:]] == [(0, 0), (0, 1, 1), *[(0, 1, 2)] * 7]
    for before, phase in itertools.pairwise(phases):
        for own, row in zip(phase.intervals, phase.rows, strict=True):
            parent = before.intervals[row]
            overlap = min(own.high, parent.high) - max(own.low, parent.low)
            assert overlap > 0  # nobody starts from weights that never saw its noise levels
            ends = own.low == 0 or own.high == 1
            assert not ends or overlap == own.high - own.low  # an extreme descends from the node that holds it


def test_config_c_has_the_top_node_and_all_the_rest() -> None:
    phases = phases_of("c", "base")
    assert [phase.cuts for phase in phases[1:]] == [(1 - 2**-level,) for level in range(1, 10)]
    assert [phase.parents for phase in phases[1:]] == [(0, 0), *[(0, 1)] * 8]


@pytest.mark.parametrize("letter", "abcd")
@pytest.mark.parametrize(("stage", "total"), [("base", 1_900_000), ("sr256", 2_000_000), ("sr1024", 1_700_000)])
def test_every_configuration_trains_as_many_iterations_in_all(letter: str, stage: str, total: int) -> None:
    phases = phases_of(letter, stage)
    assert expert_steps(phases) == total
    if stage == "base" and letter in "cd":
        assert phases[0].steps == 500_000
        assert all(40_000 <= phase.steps <= 190_000 for phase in phases[1:])


@pytest.mark.parametrize(
    ("letter", "stage", "runs"),
    [("b", "sr256", ("low", "high")), ("c", "base", ("low", "high")), ("d", "base", ("low", "middle", "high"))],
)
def test_runs_of_one_expert_make_the_same_ensemble(letter: str, stage: str, runs: tuple[str, ...]) -> None:
    shared = phases_of(letter, stage, "shared")
    alone = [phases_of(letter, stage, run) for run in runs]
    assert all(phases[:1] == shared for phases in alone)
    together = phases_of(letter, stage)
    assert tuple(phases[-1].intervals[0] for phases in alone) == together[-1].intervals
    assert expert_steps(shared) + sum(expert_steps(phases[1:]) for phases in alone) == expert_steps(together)
    for phases in alone:  # a chain goes inwards: it never leaves what its expert has seen
        for before, phase in itertools.pairwise(phases):
            (outer,), (inner,) = before.intervals, phase.intervals
            assert outer.low <= inner.low and inner.high <= outer.high


@pytest.mark.parametrize(("experts", "shape"), [(1, (1, 1, 8)), (2, (2, 1, 4)), (3, (1, 1, 8))])
def test_the_mesh_gives_experts_groups_of_their_own_where_that_is_even(experts: int, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(load("ediffi_d").mesh, experts)
    assert tuple(mesh.shape[axis] for axis in ("expert", "data", "fsdp")) == shape
    check_batch_size(mesh, 2048)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ediffi_d.py:run=midle", "config argument run='midle' is unknown; did you mean 'middle'?"),
        ("ediffi_c.py:run=middle", "run='middle': no such expert; choices: all, high, low, shared"),
        ("ediffi_a.py:run=low", "run='low': no such expert; choices: all, shared"),
        ("base64.py:sintetic", "unknown config argument 'sintetic'; did you mean 'synthetic'?"),
    ],
)
def test_arguments_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_files.load(f"configs/{spec}")
    assert message in str(caught.value)


# ----------------------------------------------------------------------------------------------------- training
SMALL = ("batch_size=8", "model.channels=8", "model.head_channels=8", "model.context_width=16", "model.blocks=1",
         "model.channel_mults=1", "eval_every=0", "sample_every=0", "save_every=0", "log_every=1",
         "phases.0.steps=2", "optimizer.warmup=0")  # fmt: skip
SMALL_BASE = (*SMALL, "model.resolution=8", "data.resolution=8", "model.attention_resolutions=8",
              "model.cross_attention_resolutions=8")  # fmt: skip
SMALL_SR = (*SMALL, "model.block_mults=1", "model.resolution=16", "model.cross_attention_resolutions=16")
SMALL_SR256 = (*SMALL_SR, "model.attention_resolutions=16", "data.resolution=16", "data.low_resolution=4")
SMALL_SR1024 = (*SMALL_SR, "data.resolution=64", "data.low_resolution=16", "data.crop=16")


@pytest.fixture
def _quick_to_compile() -> Iterator[None]:
    """Two steps run: what they save by being optimised, compiling would cost many times over."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("_quick_to_compile")
@pytest.mark.parametrize(
    ("recipe", "changes"), [("base64", SMALL_BASE), ("sr256", SMALL_SR256), ("sr1024", SMALL_SR1024)]
)
def test_a_shrunk_recipe_trains_and_branches(recipe: str, changes: tuple[str, ...], tmp_path: Path) -> None:
    shared, config = tmp_path / "shared", load(recipe, "synthetic")
    config_files.override(config, changes)
    assert loop.train(config, shared) == loop.FINISHED
    lines = [json.loads(line) for line in (shared / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    if recipe == "base64":
        for expert, run in enumerate(("low", "middle", "high")):
            check_branched(shared, tmp_path / run, run, expert)


def check_branched(shared: Path, target: Path, run: str, expert: int) -> None:
    """The commands of docs/experts.md: what `launch.branch` writes is what `run=...` goes on with."""
    cuts, row = {"low": ((0.5,), 0), "middle": ((0.125, 0.998046875), 1), "high": ((0.5,), 1)}[run]
    branching.branch_workdir(str(shared), str(target), cuts=cuts, parents=(), expert=row)
    config = load("ediffi_d", f"run={run},synthetic")
    config_files.override(config, SMALL_BASE)
    config_files.check_same_run(target, config)
    phases = validate(config)
    assert phases[1].expert == row and phases[-1].intervals == (phases_of("d", "base")[-1].intervals[expert],)


def test_without_folders_the_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("base64")
    with pytest.raises(UserError, match="no such folder, and no bundled encoders are called 'encoders'") as caught:
        loop.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    config.encoders = "scenes"
    with pytest.raises(UserError, match="config.data.name is missing; expected the path of a TFDS data set") as caught:
        loop.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


if __name__ == "__main__":
    write_golden()
