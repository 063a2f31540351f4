"""Searching how to lay a step out, all phases of a run, and the picture of a plan."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from ediffi_jax.planning import estimate, plan, plot, program, search, text, whole_run
from ediffi_jax.planning.errors import PlanError
from ediffi_jax.planning.topology import parse_topology
from ediffi_jax.training import config_files
from ediffi_jax.training.schedule import Phase

SMALL = (
    "batch_size=8", "compute_dtype=float32", "encoders=", "model.channels=8", "model.channel_mults=(1,)",
    "model.attention_resolutions=()", "model.cross_attention_resolutions=()", "model.context_width=16",
)  # fmt: skip
V5E, V5P = parse_topology("v5e:2x4"), parse_topology("v5p:4x4x4")


def recipe(*changes: str) -> Any:
    config = config_files.load("configs/scenes.py:stage=base,tiny")
    config_files.override(config, [*SMALL, *changes])
    return config


@pytest.fixture(scope="module")
def found() -> list[search.Candidate]:
    """Two candidates, compiled for two CPU devices of this machine."""
    return search.search(recipe(), parse_topology("cpu:2"), most=2)


@pytest.fixture(scope="module")
def planned(found: list[search.Candidate]) -> plan.Plan:
    """One of them, as if the devices had been a slice of v5e."""
    made = found[0].plan
    return dataclasses.replace(made, topology=V5E, roofline=plan.roofline(made.measured, V5E))


def costs(**changes: Any) -> estimate.Costs:
    """A model of a gigabyte, whose images keep 2 GB, or 100 MB with their blocks computed again."""
    shapes = {"kernel": (2**14, 2**14), "bias": (64,)}
    made = estimate.Costs(
        params={name: jax.ShapeDtypeStruct(sizes, np.float32) for name, sizes in shapes.items()},
        residuals={False: 2e9, True: 1e8}, flops={False: 3e12, True: 4e12}, row=1e6, encoders=0.0, experts=1,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def shape(**changes: Any) -> estimate.Shape:
    made = estimate.Shape(expert=1, data=1, fsdp=64, batch_size=512, remat=True)
    return dataclasses.replace(made, **changes)


def test_an_estimate_by_hand() -> None:
    """Eight images a chip of 64: state in 64 parts, a part of the gradient, activations, the code."""
    part = 4 * (2**28 / 64 + 64)
    kept = 8 * (1e8 + estimate.BLOCK * 2e9 + 1e6)
    found = costs().estimate(shape(), V5P)
    assert found.hbm == pytest.approx(5 * part + kept + estimate.CODE)
    assert found.seconds == pytest.approx(8 * 4e12 / 459e12)
    assert found.fits
    without = costs().estimate(shape(remat=False), V5P)
    assert without.hbm > found.hbm and without.seconds < found.seconds
    whole = costs().estimate(shape(data=64, fsdp=1), V5P)
    assert whole.hbm == pytest.approx(5 * 64 * (part - 256) + 5 * 256 + kept + estimate.CODE)
    two = costs(experts=2).estimate(shape(), V5P)
    assert two.seconds == pytest.approx(2 * found.seconds)
    assert two.hbm == pytest.approx(found.hbm + 4 * part + 8 * 1e6)


def test_candidates_keep_the_batch_where_something_holds_it_and_halve_it_where_not() -> None:
    config = recipe("batch_size=512")
    roomy = search.candidates(config, V5P, costs(), {})
    assert {one.shape.batch_size for one in roomy} == {512}
    assert len(roomy) == 14  # seven splits of 64 devices, with and without remat
    assert roomy == sorted(roomy, key=lambda one: one.order) and roomy[0].estimate.fits
    narrow = search.candidates(config, V5P, costs(residuals={False: 2e11, True: 1e10}), {})
    assert {one.shape.batch_size for one in narrow} == {128}  # two images of 1e10 + 2e10 bytes a chip
    with pytest.raises(PlanError, match="no mesh of 64 devices holds the recipe"):
        search.candidates(config, V5P, costs(residuals={False: 1e13, True: 1e13}), {})
    fixed = search.candidates(config, V5P, costs(), {"data": 2, "fsdp": -1})
    assert {(one.shape.data, one.shape.fsdp) for one in fixed} == {(2, 32)}


def test_slices_are_laid_along_experts_or_data() -> None:
    three = parse_topology("v5e:2x2", slices=3)
    assert list(search.meshes(three, 3, {"fsdp": 4})) == [
        {"expert": 1, "data": 3, "fsdp": 4}, {"expert": 3, "data": 1, "fsdp": 4},
    ]  # fmt: skip
    assert all(sizes["fsdp"] <= 4 for sizes in search.meshes(three, 3, {}))


def test_a_handful_has_both_kinds_of_rematerialisation() -> None:
    ranked = search.candidates(recipe("batch_size=512"), V5P, costs(), {})
    ranked.sort(key=lambda one: one.shape.remat)
    chosen = search.handful(ranked, 3)
    assert [one.shape.remat for one in chosen] == [False, False, True]
    assert len(search.handful(ranked, 1)) == 1


def test_a_search_compiles_as_many_as_asked_for_and_says_the_flags(found: list[search.Candidate]) -> None:
    assert len(found) == 2 and all(one.plan.measured.fits for one in found)
    assert {one.shape.remat for one in found} == {False, True}
    assert found[0].plan.measured.used <= found[1].plan.measured.used  # no speed is stated for a CPU
    best = found[0].shape
    assert dict(found[0].plan.program.mesh.shape) == best.sizes
    assert found[0].plan.remat == best.remat
    words = search.describe(found)
    assert f"best: --config.mesh.expert=1 --config.mesh.data={best.data} --config.mesh.fsdp={best.fsdp}" in words
    machine = json.loads(json.dumps(search.to_json(found)))
    assert machine["fits"] is True and machine["candidates"][0]["flags"] == best.flags()


def test_residuals_shrink_where_blocks_are_computed_again() -> None:
    config = recipe()
    made = estimate.costs_of(config, program.phase_of(config, 1), parse_topology("cpu:1"), "precomputed")
    assert made.residuals[True] < made.residuals[False]
    assert 1.1 < made.flops[True] / made.flops[False] < 1.4
    assert made.experts == 3 and made.encoders == 0


def test_all_phases_are_counted_from_one() -> None:
    """Twice the experts take twice as long; where their mesh is another, only FLOPs are said."""
    phases = (Phase(steps=100), Phase(steps=10, cuts=(0.5,)), Phase(steps=1, cuts=(0.2, 0.4, 0.5)))
    run = whole_run.stretches(phases, 0, {1: "one", 2: "one", 4: "four"})
    assert [one.share for one in run] == [1, 2, 4]
    assert [one.same_mesh for one in run] == [True, True, False]
    assert [one.days(864.0) for one in run] == pytest.approx([1.0, 0.2, 0.04])
    lines = list(whole_run.lines(run, 864.0, 1728.0, 0.4, chips=2))
    assert [line.split()[-4:] for line in lines[2:]] == [
        ["1.00", "48", "2.00", "96"], ["0.20", "10", "0.40", "19"], ["-", "-", "0.08", "4"], ["-", "-", "2.48", "119"],
    ]  # fmt: skip
    assert not list(whole_run.lines(run[:1], 864.0, 1728.0, 0.4, chips=2))


def test_a_plan_of_several_phases_tells_of_all(planned: plan.Plan) -> None:
    config = recipe()
    assert [(one.experts, one.steps) for one in planned.run] == [
        (len(phase.cuts) + 1, phase.steps) for phase in (program.phase_of(config, 0), program.phase_of(config, 1))
    ]
    assert "all phases, from the compiled one" in text.describe(planned)
    schedule = planned.to_json()["schedule"]
    assert [row["compiled"] for row in schedule] == [True, False]
    assert schedule[0]["days_bound"] == pytest.approx(planned.days())


def test_pictures_hold_every_figure_and_are_the_same_each_time(planned: plan.Plan, tmp_path: Path) -> None:
    svg = plot.draw(planned, "svg")
    assert svg == plot.draw(planned, "svg")
    for label in ("GB available", "arithmetic", "ICI (in the slice)", "limits it"):
        assert f"<!-- {label}" in svg.decode() or label in svg.decode()
    file = tmp_path / "plan.png"
    file.write_bytes(plot.draw(planned, "png"))
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert pixels.shape[1] > 1000 and pixels.std() > 10
    with pytest.raises(PlanError, match="nothing to draw"):
        plot.draw(dataclasses.replace(planned, roofline=None), "png")
    with pytest.raises(PlanError, match="expected a name that ends in .png or .svg"):
        plot.check_format("plan.jpg")
    with pytest.raises(PlanError, match="the table of embeddings has no picture"):
        plot.check_format("plan.png", "embeddings")


def test_a_search_of_what_has_nothing_to_search_gets_one_line(root: Path) -> None:
    command = [
        sys.executable, "-m", "launch.plan", "--config=configs/base64.py", "--topology=cpu:1", "--what=sample",
        "--search=2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "error: --search is of --what=train" in done.stderr and "Traceback" not in done.stderr
