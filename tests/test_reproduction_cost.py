"""The claim about inference time: equal parameters, rounds and ratios, and the whole run."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import models_small
import numpy as np
import pytest

from ediffi_jax import models
from ediffi_jax.reproduction import cost
from ediffi_jax.reproduction.study import Study


@functools.cache
def _parameters(blocks: int) -> int:
    network = models.build({**models_small.UNET, "blocks": blocks})
    shapes = jax.eval_shape(lambda key: network.init(key, *models_small.inputs(network, 1)), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("blocks", "times"), [(1, 1), (1, 2), (2, 2)])
def test_the_deep_model_is_within_half_a_block_of_the_experts(blocks: int, times: int) -> None:
    deep = cost.deep_blocks(_parameters, blocks, times)
    one_more = _parameters(deep + 1) - _parameters(deep)
    assert abs(_parameters(deep) - times * _parameters(blocks)) <= one_more / 2


@dataclasses.dataclass
class _Busy:
    """Counts as a program; keeps the processor busy for some milliseconds."""

    name: str
    milliseconds: float
    ran: list[str]

    def run(self) -> None:
        self.ran.append(self.name)
        until = time.process_time() + self.milliseconds / 1e3
        while time.process_time() < until:
            pass


def test_every_round_runs_every_program_once_in_its_own_order() -> None:
    ran: list[str] = []
    programs = {name: _Busy(name, ms, ran) for name, ms in (("experts1", 2), ("experts4", 2), ("deep4", 8))}
    taken = cost.timed(programs, 6, seed=1)
    turns = [tuple(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert len(turns) == 7 and all(sorted(turn) == sorted(programs) for turn in turns)
    assert len(set(turns)) > 1
    assert all(len(taken[name][clock]) == 6 for name in programs for clock in cost.CLOCKS)
    assert cost.ratio(taken, "deep4", "processor") == pytest.approx(4, rel=0.3)
    assert min(taken["deep4"]["wall"]) >= 0.0079


def test_the_ratio_is_the_median_within_rounds() -> None:
    seconds = {"experts1": {"wall": [1.0, 10.0, 2.0]}, "deep4": {"wall": [4.0, 30.0, 10.0]}}
    assert cost.ratio(seconds, "deep4", "wall") == 4.0


@pytest.mark.pod
def test_programs_are_compiled_and_described(tmp_path: Path) -> None:
    study = Study(folder=tmp_path, shared=tmp_path, budget="seconds", seeds=(7, 8), say=lambda line: None)
    result = cost.run(study)
    described = json.loads((tmp_path / "programs.json").read_text())["value"]
    assert {name: model["experts"] for name, model in described.items()} == {"experts1": 1, "experts4": 4, "deep4": 1}
    one, four, deep = (model["parameters"] for model in described.values())
    assert four == 4 * one and deep == pytest.approx(4 * one, rel=0.1)
    assert result.findings[1].mean > 1.5  # a deeper model is slower on any machine
    assert np.all([value > 0 for finding in result.findings for value in finding.values])
    again = cost.run(dataclasses.replace(study, say=pytest.fail))
    assert again == result
