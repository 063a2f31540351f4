"""Plans of sampling and encoding, on devices of this machine: counts against the network's own, bytes by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ediffi_jax import encoders, samplers
from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.planning import ask, embedding_costs, inference, inference_text, local_devices, sampling
from ediffi_jax.planning.embedding_costs import STORAGE_PRICE, Assumptions
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.flops import global_flops
from ediffi_jax.planning.plan import phase_of
from ediffi_jax.planning.topology import parse_topology
from ediffi_jax.release import SamplerSpec
from ediffi_jax.stage import Stage, noise_grid
from ediffi_jax.training import config_files

SCENES = "configs/scenes.py:stage=base,tiny"
SMALL = (
    "batch_size=8", "compute_dtype=float32", "model.channels=8", "model.channel_mults=(1,)",
    "model.attention_resolutions=()", "model.cross_attention_resolutions=(16,)", "model.head_channels=8",
    "model.context_width=16", "sampler.steps=4",
)  # fmt: skip


def recipe(*changes: str) -> Any:
    config = config_files.load(SCENES)
    config_files.override(config, [*SMALL, *changes])
    return config


@pytest.fixture(scope="module")
def sampled() -> inference.InferencePlan:
    """Three experts of a small base on four emulated CPU devices."""
    return inference.plan_sampling(recipe(), parse_topology("cpu:4"), batch_per_chip=2)


@pytest.mark.parametrize(
    ("name", "steps", "times"),
    [("deis_kutta3", 25, 76), ("deis_kutta3", 10, 31), ("heun", 18, 35), ("euler", 7, 7), ("dpmpp_2m", 9, 9)],
)
def test_evaluations_are_those_of_the_literature(name: str, steps: int, times: int) -> None:
    """Three a step and one at the end for eDiff-I's solver, 2 N - 1 for EDM's, one a step for the others."""
    assert sampling.evaluations(SamplerSpec(name=name, steps=steps)) == times


def test_flops_of_sampling_are_those_of_the_network_times_evaluations(sampled: inference.InferencePlan) -> None:
    """Two passes each for guidance; the loops of the compiled program multiplied, its last step's stages left out."""
    config, program = recipe(), sampled.first.program
    network = program.stage.network
    cond = program.rows["conditioning"]
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), program.stage.params)
    x = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)
    once = global_flops(
        lambda p, x, c: network.apply({"params": p}, x, jnp.zeros(8), c), params, x, cond
    )  # fmt: skip
    assert config.sampler.guidance and sampled.facts["evaluations"] == 13
    assert sampled.first.measured.model_flops == 2 * 13 * once
    assert sampled.first.measured.compiled_flops == pytest.approx(sampled.first.measured.model_flops, rel=0.02)


def test_every_device_holds_every_expert(sampled: inference.InferencePlan) -> None:
    memory = sampled.first.measured.memory
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(sampled.first.program.stage.params))
    assert sampled.facts["experts"] == 3 and sampled.facts["params"] == params / 3
    assert memory.parameters == 4 * params
    assert memory.ema == memory.optimizer == memory.encoders == 0
    assert sampled.images == 8 and sampled.fits


def test_the_planned_program_is_the_one_that_samples() -> None:
    """Compiled from shapes, and given a stage's own arguments, it makes the stage's own pictures."""
    mesh = inference.make_mesh(parse_topology("cpu:1"), expert=1, data=-1, fsdp=1)
    config = recipe()
    program = sampling.sample_program(config, phase_of(config, -1), mesh, 2)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.05, leaf.shape).astype(np.float32), program.stage.params)
    stage = Stage(spec=program.stage.spec, params=params)
    cond = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), program.rows["conditioning"])
    keys = jax.random.split(jax.random.key(3), 2)
    inputs = stage._inputs(cond, None, stage.spec.sampler.guidance, None, None)
    weight = inputs.pop("weight")
    compiled = program.lower().compile()
    found = compiled(stage._experts, weight, inputs, keys, noise_grid(stage.spec.sampler))
    np.testing.assert_allclose(found, stage.sample(cond, keys), atol=1e-5)


@pytest.mark.parametrize("name", ["configs/scenes.py:stage=base,tiny", "configs/scenes.py:stage=sr64,tiny"])
def test_weights_in_the_compute_dtype_change_no_bit(name: str) -> None:
    """What a stage holds in bfloat16 is what the network would have converted in every evaluation."""
    config = config_files.load(name)
    mesh = inference.make_mesh(parse_topology("cpu:1"), expert=1, data=-1, fsdp=1)
    config_files.override(config, ["compute_dtype=bfloat16"])
    program = sampling.sample_program(config, phase_of(config, 0), mesh, 1)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.05, leaf.shape).astype(np.float32), program.stage.params)
    stage = Stage(spec=program.stage.spec, params=params, compute_dtype="bfloat16")
    rows = {key: jnp.full(leaf.shape, 0.3, leaf.dtype) for key, leaf in program.rows.items() if key == "low_res"}
    cond = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), program.rows["conditioning"])
    size = stage.spec.resolution
    x = jnp.asarray(draw.normal(size=(1, size, size, 3)), jnp.float32)
    found = jax.jit(stage.denoise_fn(cond, **rows))(x, 0.7)
    held = {leaf.dtype.name for leaf in jax.tree.leaves(stage._experts)}
    assert held == {"bfloat16", "float32"}
    stage.__dict__["_experts"] = tuple(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), params) for _ in range(1))
    np.testing.assert_array_equal(found, jax.jit(stage.denoise_fn(cond, **rows))(x, 0.7))


def test_super_resolution_is_given_pictures_to_start_from() -> None:
    config = config_files.load("configs/sr1024.py:synthetic")
    mesh = inference.make_mesh(parse_topology("cpu:2"), expert=1, data=-1, fsdp=1)
    program = sampling.sample_program(config, phase_of(config, -1), mesh, 2)
    assert program.rows["low_res"].shape == (2, 256, 256, 3)
    assert program.stage.spec.resolution == 1024


def test_times_follow_from_the_roofline_and_from_an_expected_share(sampled: inference.InferencePlan) -> None:
    """On chips with known speeds; here as if the program had been compiled for a slice of v5e."""
    chips = parse_topology("v5e:4x4")
    part = sampled.first
    timed = inference.Part(
        program=part.program, measured=part.measured,
        roofline=inference.roofline(part.measured, chips.host, reads=13 / 3, writes=0),
    )  # fmt: skip
    made = inference.InferencePlan(
        what="sample", topology=chips, host=chips.host, parts={"base": timed}, facts=sampled.facts
    )
    assert chips.host == parse_topology("v5e:2x2")
    run = timed.roofline.seconds
    assert run >= part.measured.compiled_flops / 4 / 197e12
    assert made.images_per_second == pytest.approx(8 / run * 4)  # four hosts
    assert made.chip_hours() == pytest.approx(1e6 / 8 * run * 4 / 3600)
    assert made.chip_hours(10, 0.5) == pytest.approx(10 * part.measured.model_flops / 8 / 197e12 / 0.5 / 3600)
    found = json.loads(json.dumps(made.to_json()))
    assert found["seconds_per_image_bound"] == pytest.approx(run / 2)
    words = inference_text.describe(made)
    assert "4 hosts of 4 chips, each by itself" in words and "13 evaluations; guidance 2 in two passes each" in words


def test_a_machine_without_figures_says_so(sampled: inference.InferencePlan) -> None:
    words = inference_text.describe(sampled)
    assert "what a cpu has is not stated" in words and "time: not stated" in words
    found = sampled.to_json()
    assert found["fits"] is True
    assert found["run_seconds_bound"] is None and found["chip_hours_per_million_bound"] is None


def test_encoding_is_planned_as_the_verb_runs_it() -> None:
    config = recipe("data.clip_resolution=32")
    made = inference.plan_encoding(config, parse_topology("cpu:2"), caption_tokens=20, batch_per_chip=4)
    assert list(made.parts) == ["text", "pictures"]
    text = made.parts["text"].program
    assert text.inputs.t5_ids.shape == (8, 32)  # of the lengths that programs are compiled for
    weights = encoders.load(encoders.bundled("scenes")).params
    by_hand = 0
    for planned, leaf in zip(jax.tree.leaves(text.params), jax.tree.leaves(weights), strict=True):
        assert planned.shape == leaf.shape
        by_hand += leaf.size * planned.dtype.itemsize // (2 if "fsdp" in str(planned.sharding.spec) else 1)
    memory = made.parts["text"].measured.memory
    assert memory.encoders == by_hand and memory.parameters == 0
    assert "captions of up to 32 T5 tokens" in inference_text.describe(made)


def test_the_table_of_embeddings_by_hand() -> None:
    config, chips = recipe("batch_size=16", "data.clip_resolution=32"), parse_topology("cpu:8")
    with pytest.raises(PlanError, match="the speed of a cpu is not known here"):
        embedding_costs.compare_sources(config, chips, None, 0, Assumptions())
    fast = SimpleNamespace(peak_flops=1e12, devices_per_chip=1, name="fast")
    stand_in = SimpleNamespace(
        chip=fast, chips=8, devices=8, slices=1, host=chips, jax_name="fast:8", describe=chips.describe
    )
    assumed = Assumptions(pairs=1000, caption_tokens=20, mfu=0.5)
    live, stored, int8 = embedding_costs.compare_sources(config, stand_in, None, 0, assumed)
    spec = encoders.load(encoders.bundled("scenes")).spec
    row = RowFormat(spec=spec, pictures=True)
    tokens = {"t5": np.zeros((20, spec.t5_width)), "clip_text": np.zeros((20, spec.clip_width))}
    vectors = {name: np.zeros(spec.pooled_width) for name in row.vectors}
    written = len(row.encode(b"12345678", {**tokens, **vectors}))
    assert stored.stored == 1000 * written and live.stored == 0
    assert stored.dollars == pytest.approx(1000 * written / 2**30 * STORAGE_PRICE)
    assert stored.stored / 2.1 < int8.stored < stored.stored / 1.6
    assert live.step_seconds > stored.step_seconds == int8.step_seconds > 0
    assert live.weights > 0 == stored.weights and live.encode_hours == 0 < stored.encode_hours
    assert live.phase_hours > stored.phase_hours
    # At half the peak of what arithmetic alone takes, without rematerialisation in this recipe.
    steps = config.phases[0]["steps"]
    assert stored.phase_hours == pytest.approx(stored.step_seconds / 0.5 * steps / 3600 * 8)
    assert stored.read == pytest.approx(written * 16 / (stored.step_seconds / 0.5))
    words = embedding_costs.describe((live, stored, int8), assumed)
    assert "for 1,000 pairs of 20 tokens" in words


@pytest.mark.parametrize(
    ("kind", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", 40e9, "A100-40"),
        ("NVIDIA A100-SXM4-80GB", 80e9, "A100-80"),
        ("NVIDIA H100 80GB HBM3", 79e9, "H100-80"),
        ("NVIDIA H200", 141e9, "H200"),
        ("Tesla T4", 15e9, "Tesla T4"),
    ],
)
def test_gpus_are_known_by_their_drivers_names(kind: str, memory: float, name: str) -> None:
    found = local_devices.gpu(kind, {"bytes_limit": int(memory)})
    assert found.name == name
    assert (found.peak_flops > 0) == (name != "Tesla T4")


def test_more_devices_than_there_are_get_one_line() -> None:
    with pytest.raises(PlanError, match="topology gpu:1: this machine has 0 GPU devices"):
        parse_topology("gpu")
    with pytest.raises(PlanError, match="topology cpu:999: this machine has 8 CPU devices"):
        parse_topology("cpu:999")
    with pytest.raises(PlanError, match="topology cpu:0; expected 1 device or more"):
        parse_topology("cpu:0")
    with pytest.raises(PlanError, match="devices of this machine are one slice"):
        parse_topology("cpu:2", slices=2)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (ask.Question(what="sample", mesh={"fsdp": 2}), "--mesh is of training and encoding"),
        (ask.Question(what="encode"), "the recipe has no encoders"),
        (ask.Question(what="embeddings"), "the recipe has no encoders"),
    ],
)
def test_questions_that_make_no_sense_get_one_line(question: ask.Question, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ask.answer(recipe("encoders="), parse_topology("cpu:2"), question)


@pytest.mark.parametrize("wrong", [{"mfu": 0.0}, {"mfu": 1.5}, {"pairs": 0}, {"caption_tokens": 0}, {"price": -1.0}])
def test_assumptions_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        Assumptions(**wrong)


def test_the_verb_plans_sampling_on_this_machine(root: Path) -> None:
    changes = [f"--config.{change}" for change in SMALL]
    command = [
        sys.executable, "-m", "launch.plan", f"--config={SCENES}", "--topology=cpu:8", "--what=sample", "--json=-",
    ]  # fmt: skip
    done = subprocess.run([*command, *changes], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["what"] == "sample" and found["experts"] == 3 and found["chips"] == 8


def test_samplers_that_are_unknown_are_refused_before_compiling() -> None:
    with pytest.raises(samplers.SamplerError, match="unknown sampler"):
        sampling.evaluations(SamplerSpec(name="heum"))
