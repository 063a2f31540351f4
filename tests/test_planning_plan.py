"""Plans: shapes against what a run really loads, figures against closed forms, words for what does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import AxisType

from ediffi_jax import encoders
from ediffi_jax.data.loader import make_loader
from ediffi_jax.planning import measuring, plan, program, text
from ediffi_jax.planning.collectives import crossing
from ediffi_jax.planning.encoders import paper_encoders, planned_encoders
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.topology import parse_topology
from ediffi_jax.training import config_files
from ediffi_jax.training.mesh import AXES

V5E = parse_topology("v5e:2x4")
SCENES = "configs/scenes.py:stage=base,tiny"


SMALL = (
    "model.channels=8", "model.channel_mults=(1,2)", "model.attention_resolutions=(8,)",
    "model.cross_attention_resolutions=(8,)", "model.head_channels=8", "model.context_width=16",
)  # fmt: skip


def recipe(*changes: str) -> Any:
    config = config_files.load(SCENES)
    config_files.override(config, ["batch_size=8", "compute_dtype=float32", *SMALL, *changes])
    return config


def mesh(expert: int, data: int, fsdp: int) -> Any:
    devices = jax.devices()[: expert * data * fsdp]
    return jax.make_mesh((expert, data, fsdp), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


@pytest.fixture(scope="module")
def planned() -> tuple[Any, program.TrainProgram, measuring.Measured]:
    """Two experts of a small base on eight emulated CPU devices, each on a group of four."""
    config = recipe()
    config.phases = ({"steps": 10, "cuts": (0.25,), "parents": ()},)
    laid, phase = mesh(2, 2, 2), program.phase_of(config, 0)
    made = program.train_program(config, phase, laid, "precomputed")
    flops = plan.model_flops(config, phase, laid, "precomputed")
    return config, made, measuring.measure(made, V5E.chip, flops)


def test_batches_are_shaped_as_the_loader_makes_them(tmp_path: Path) -> None:
    config = recipe("data.num_scenes=16", f"data.dir={tmp_path}")
    bundled = encoders.load(encoders.bundled("scenes"))
    phase = program.phase_of(config, 1)
    loaded = make_loader(
        config.data, split="train", seed=0, num_experts=3, batch_size=8, tokenizer=bundled
    ).batch(0)  # fmt: skip
    shapes = program.batch_shapes(config, phase, bundled, "live")
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == {
        name: (rows.shape, rows.dtype) for name, rows in loaded.items()
    }


def test_memory_is_what_the_shards_hold(planned: Any) -> None:
    """All leaves by hand: parameters cut over fsdp where they are, moments twice the parameters, experts apart."""
    _, made, measured = planned
    memory = measured.memory
    by_hand = 0
    for leaf in jax.tree.leaves(made.state.params):
        one = math.prod(leaf.shape[1:]) * 4  # of 2 experts one lies on a device
        by_hand += one // 2 if "fsdp" in str(leaf.sharding.spec) else one
    assert memory.parameters == memory.ema == by_hand
    assert 2 * by_hand <= memory.optimizer <= 2 * by_hand + 64  # and the counts of steps
    assert memory.encoders == 0
    assert memory.used >= memory.parameters + memory.ema + memory.optimizer + memory.batch
    assert measured.fits


def test_compiled_flops_are_the_models_without_remat_and_more_with() -> None:
    """On one device, where no small layer is computed twice."""
    alone, ratio = mesh(1, 1, 1), {}
    for remat in (False, True):
        config = recipe(f"model.remat={remat}")
        phase = program.phase_of(config, 0)
        flops = plan.model_flops(config, phase, alone, "precomputed")
        made = program.train_program(config, phase, alone, "precomputed")
        measured = measuring.measure(made, V5E.chip, flops)
        ratio[remat] = measured.compiled_flops / measured.model_flops
    assert 0.97 < ratio[False] < 1.03
    assert 1.1 < ratio[True] < 1.4


def test_experts_send_one_another_nothing(planned: Any) -> None:
    """Only the metrics that every process reads, eight bytes and eight."""
    _, _, measured = planned
    assert measured.collectives
    assert sum(one.count * one.bytes for one in crossing(measured.collectives, "expert")) <= 64


def test_what_is_sent_does_not_grow_with_the_batch(planned: Any) -> None:
    """Weights are gathered and gradients reduced; pictures and activations stay where they are."""
    _, made, measured = planned
    config = recipe("batch_size=16")
    config.phases = planned[0].phases
    larger = measuring.measure(program.train_program(config, made.phase, made.mesh, "precomputed"), V5E.chip, 1)
    sent = [sum(one.count * one.bytes for one in found.collectives) for found in (measured, larger)]
    assert sent[1] <= 1.02 * sent[0]
    assert sent[0] <= 6 * measured.memory.parameters * 2  # of a device's whole expert: two parts along fsdp


def test_a_plan_comes_to_days_and_machines_can_read_it(planned: Any) -> None:
    _, made, measured = planned
    made_plan = plan.Plan(
        topology=V5E, program=made, measured=measured, roofline=plan.roofline(measured, V5E), steps=1_000_000,
        embeddings="precomputed", remat=False,
    )  # fmt: skip
    found = json.loads(json.dumps(made_plan.to_json()))
    step = found["step_seconds_bound"]
    assert found["fits"] is True
    assert found["global_batch"] == 16
    assert found["images_per_second_bound"] == pytest.approx(16 / step)
    assert found["days_bound"] == pytest.approx(1e6 * step / 86400)
    assert found["chip_hours_bound"] == pytest.approx(1e6 * step / 3600 * 8)
    assert found["mfu_bound"] == pytest.approx(found["model_flops_per_step"] / (8 * step * 197e12))
    assert made_plan.days(0.5) == pytest.approx(1e6 * measured.model_flops / (8 * 197e12 * 0.5) / 86400)
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made.state.params))
    assert found["params"] == params / 2
    assert found["checkpoint_gb"] * 1e9 == pytest.approx(4 * 4 * params, rel=0.001)
    words = text.describe(made_plan)
    assert "fits, " in words and "of 16.9 GB" in words and "v5e:2x4 (v5litepod-8), 8 chips" in words


def test_what_does_not_fit_is_said_with_what_may_help(planned: Any) -> None:
    _, made, measured = planned
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
        " Used 21.30G of 15.75G hbm. Exceeded hbm capacity by 5.55G."
    )
    used = measuring.too_large(error)
    assert used == int(21.3 * 2**30)
    full = dataclasses.replace(measured, memory=None, used=used, compiled_flops=None, collectives=())
    made_plan = plan.Plan(
        topology=V5E, program=made, measured=full, roofline=None, steps=10, embeddings="live", remat=False
    )
    words = text.describe(made_plan)
    assert "does not fit: 22.9 of 16.9 GB" in words
    assert "--config.model.remat=True; --embeddings=precomputed; --mesh=data=1,fsdp=4; --config.batch_size=4" in words
    assert made_plan.to_json()["fits"] is False and made_plan.to_json()["days_bound"] is None
    with pytest.raises(PlanError, match="the compiler failed: INTERNAL: something else"):
        measuring.too_large(jax.errors.JaxRuntimeError("INTERNAL: something else\nmore"))


def test_the_papers_encoders_have_the_papers_sizes() -> None:
    made = paper_encoders()
    assert (made.spec.t5_width, made.spec.clip_width, made.spec.pooled_width) == (4096, 768, 768)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made.params))
    assert 5.1e9 < count < 5.3e9  # T5-XXL's encoder 4.76 B, CLIP ViT-L/14 0.43 B


def test_encoders_that_are_here_are_planned_with_their_own_shapes() -> None:
    loaded, planned = encoders.load(encoders.bundled("scenes")), planned_encoders("scenes", "float32")
    assert planned.spec == loaded.spec
    held, shapes = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made.params) for made in (loaded, planned))
    assert held == shapes
    assert planned_encoders("no/such/folder", "float32").spec == paper_encoders().spec


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("experts=3", "--mesh has no axis 'experts'; did you mean 'expert'"),
        ("expert=0", "--mesh=expert=0; expected expert=NUMBER"),
        ("fsdp", "--mesh=fsdp; expected fsdp=NUMBER"),
    ],
)
def test_meshes_that_are_none_are_refused(given: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan.read_mesh(given)


def test_a_phase_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlanError, match="--phase=7: the config has 2 phases; expected 0 to 1, or -1"):
        program.phase_of(recipe(), 7)


@pytest.mark.pod
def test_the_verb_plans_a_recipe_with_the_tpus_compiler(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "plan.json"
    command = [
        sys.executable, "-m", "launch.plan", f"--config={SCENES}", "--topology=v5e:2x2", "--phase=-1",
        "--slices=3", "--mesh=expert=3,fsdp=-1", "--config.batch_size=32", f"--json={out}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "HBM of a chip: fits" in done.stdout
    found = json.loads(out.read_text())
    assert found["mesh"] == {"expert": 3, "data": 1, "fsdp": 4}
    across = sum(size for axes, by in found["collective_bytes"].items() if "expert" in axes for size in by.values())
    assert across <= 1024  # the metrics, 512 bytes with their padding; gradients never leave their slice


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5x:16x16"], "unknown chip 'v5x'"),
        (["--topology=v5e:3x3"], "v5e:3x3"),
        (["--topology=v5p-128", "--mesh=expert=2"], "error:"),
        (["--topology=v5e:2x2", "--config.batch_size=7"], "error:"),
    ],
)
def test_wrong_flags_get_one_line(flags: list[str], message: str, root: Path) -> None:
    command = [sys.executable, "-m", "launch.plan", f"--config={SCENES}", *flags]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in done.stderr
