"""The frame of launch.reproduce: intervals against scipy's, the rule of verdicts, parts that survive, the report."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from ediffi_jax.reproduction import claims, report, results, run
from ediffi_jax.reproduction.claim import (
    CONTRADICTED,
    IN_PART,
    OPEN,
    REPRODUCED,
    Claim,
    Finding,
    Picture,
    Result,
    Table,
    verdict,
)
from ediffi_jax.reproduction.study import Study, StudyError

ROOT = Path(__file__).resolve().parent.parent
finite = st.floats(-100, 100, allow_nan=False)


def finding(*values: float, n: int = 50, **bounds: object) -> Finding:
    return Finding(what="gain", values=values, n=n, **bounds)


@given(st.lists(finite, min_size=2, max_size=8))
def test_the_interval_is_students(values: list[float]) -> None:
    if np.std(values) < 1e-9:
        return
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert finding(*values).interval == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


@given(st.integers(1, 200), st.data())
def test_the_interval_of_a_share_takes_the_counting_error(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert finding(k / n, n=n, share=True).interval == pytest.approx((expected.low, expected.high), abs=1e-9)
    agreeing = finding(k / n, k / n, k / n, n=n, share=True).interval  # Student's alone would have no width
    pooled = stats.binomtest(3 * k, 3 * n).proportion_ci(0.95, method="wilson")
    assert agreeing == pytest.approx((pooled.low, pooled.high), abs=1e-9)


def test_one_seed_decides_nothing() -> None:
    assert finding(5.0, above=0).outcome == "open"
    assert math.isnan(finding(5.0).spread)


@pytest.mark.parametrize(
    ("values", "bounds", "expected"),
    [
        ((1.0, 1.1, 0.9), {"above": 0}, "holds"),
        ((1.0, 1.1, 0.9), {"below": 0}, "fails"),
        ((-1.0, -1.1, -0.9), {"above": 0}, "fails"),
        ((-1.0, -1.1, -0.9), {"below": 0}, "holds"),
        ((1.0, -1.0, 0.5), {"above": 0}, "open"),
        ((0.0, 0.0, 0.0), {"above": 0}, "open"),
        ((1.0, 1.1, 0.9), {}, ""),
    ],
)
def test_outcomes(values: tuple[float, ...], bounds: dict[str, float], expected: str) -> None:
    assert finding(*values, **bounds).outcome == expected


def test_the_rule_of_verdicts() -> None:
    holds, fails = finding(1.0, 1.1, 0.9, above=0), finding(1.0, 1.1, 0.9, below=0)
    undecided, told = finding(1.0, -1.0, 0.5, above=0), finding(1.0, 1.1, 0.9)
    assert verdict([holds, told]) == REPRODUCED
    assert verdict([fails, fails, told]) == CONTRADICTED
    assert verdict([holds, fails]) == verdict([holds, undecided]) == IN_PART
    assert verdict([fails, undecided]) == verdict([undecided]) == OPEN
    with pytest.raises(ValueError, match="no finding decides"):
        verdict([told])


def study(folder: Path, **settings: object) -> Study:
    said: list[str] = []
    return Study(folder=folder, shared=folder, budget="seconds", seeds=(0, 1, 2), say=said.append, **settings)


def test_a_part_is_made_once_and_whole(tmp_path: Path) -> None:
    calls = []

    def broken() -> list[int]:
        calls.append("broken")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        study(tmp_path).remembered("seed0/w1", broken, n=3)
    assert not list(tmp_path.rglob("*.json"))
    for _ in range(2):
        assert study(tmp_path).remembered("seed0/w1", lambda: calls.append("made") or [1, 2.5], n=3) == [1, 2.5]
    assert calls == ["broken", "made"]


def test_a_part_of_another_run_is_refused(tmp_path: Path) -> None:
    study(tmp_path).remembered("w1", lambda: 1, n=3)
    with pytest.raises(StudyError, match="made with n = 3, this run has 4"):
        study(tmp_path).remembered("w1", lambda: 1, n=4)
    with pytest.raises(StudyError, match="made with cascade = scenes, this run has other"):
        study(tmp_path, cascade="other").remembered("w1", lambda: 1, n=3)
    (tmp_path / "w1.json").write_text("{")
    with pytest.raises(StudyError, match="w1.json is damaged"):
        study(tmp_path).remembered("w1", lambda: 1, n=3)


def made(name: str, number: int, measured: list[str]) -> Claim:
    """A claim that measures its own seeds."""

    def measure(study: Study) -> Result:
        def part(seed: int) -> float:
            measured.append(f"{name}{seed}")
            return 1.0 + seed / 10

        values = [study.remembered(f"seed{seed}", lambda seed=seed: part(seed), seed=seed) for seed in study.seeds]
        Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(study.folder / "plot.png")
        return Result(
            findings=(
                Finding(what=f"gain of {name} <b>", values=tuple(values), n=7, above=0.0),
                finding(0.25, digits=1),
            ),
            how="Counted by hand.",
            tables=(Table(title="Rows", head=("a", "b"), rows=(("x", "1"),)),),
            pictures=(Picture(file="plot.png", caption="A gray plot"),),
            remarks=("Small.",),
        )

    return Claim(number=number, name=name, title=f"Claim {name}", says="More is more.", source="Sec. 0", run=measure)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two claims in the list; returns what they measured."""
    measured: list[str] = []
    modules = {
        name: types.SimpleNamespace(CLAIM=made(name, i, measured)) for i, name in enumerate(("first", "second"), 1)
    }
    monkeypatch.setattr(claims, "NAMES", tuple(modules))
    monkeypatch.setattr(claims.importlib, "import_module", lambda name: modules[name.rpartition(".")[2]])
    return measured


def test_claims_are_measured_once_and_reported_together(tmp_path: Path, listed: list[str]) -> None:
    said: list[str] = []
    asked = {"budget": "minutes", "say": said.append}
    run.reproduce(tmp_path, seeds=(0, 1), names=["second"], **asked)
    assert listed == ["second0", "second1"]
    found = run.reproduce(tmp_path, seeds=(0, 1, 2), **asked)
    assert listed == ["second0", "second1", "first0", "first1", "first2", "second2"]
    assert [told.name for told in found] == ["first", "second"] and found[1].seeds == (0, 1, 2)
    assert results.read(tmp_path / "second") == found[1]
    assert found[0].result.findings[0].mean == pytest.approx(1.1)
    page, text = (tmp_path / report.HTML).read_text(), (tmp_path / report.MARKDOWN).read_text()
    assert page.count("1. Claim first: reproduced") == 1 and "gain of first &lt;b&gt;" in page
    assert page.count("data:image/png") == 2 and "1.100 ± 0.100" in page and "[0.852, 1.348]" in page
    assert (
        "| 2 | Claim second | gain of second <b> | 1.100 ± 0.100 | [0.852, 1.348] | > 0 | holds | reproduced |" in text
    )
    assert (tmp_path / "images/reproduction_first_plot.png").exists() and "(images/reproduction_first_plot.png)" in text


def test_another_budget_or_cascade_is_refused(tmp_path: Path, listed: list[str]) -> None:
    run.reproduce(tmp_path, budget="seconds", seeds=(0,), say=len)
    with pytest.raises(StudyError, match="holds a run with budget = seconds, this one has hours"):
        run.reproduce(tmp_path, budget="hours", seeds=(0,), say=len)
    with pytest.raises(StudyError, match="holds a run with cascade = scenes, this one has mine"):
        run.reproduce(tmp_path, budget="seconds", cascade="mine", seeds=(0,), say=len)
    (tmp_path / "first/result.json").write_text(json.dumps({"number": 1}))
    with pytest.raises(StudyError, match="result.json is damaged"):
        run.reproduce(tmp_path, budget="seconds", seeds=(0,), names=["second"], say=len)


def test_an_unknown_claim_is_refused_before_anything_is_made(tmp_path: Path, listed: list[str]) -> None:
    with pytest.raises(StudyError, match="unknown claim 'frist'; did you mean 'first'"):
        run.reproduce(tmp_path / "new", budget="seconds", seeds=(0,), names=["frist"], say=len)
    assert not (tmp_path / "new").exists()


def test_the_verb_refuses_in_one_line(tmp_path: Path) -> None:
    for words, expected in (
        (["--claims=trse"], "unknown claim 'trse'"),
        (["--seeds=a"], "--seeds=a; expected whole numbers"),
        (["--budget=days"], "budget"),
    ):
        command = [sys.executable, "-m", "launch.reproduce", f"--out={tmp_path / 'out'}", *words]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 2 and expected in ended.stderr and "Traceback" not in ended.stderr
        assert not (tmp_path / "out").exists()
