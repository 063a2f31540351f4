"""Where the time went, over restarts: sums that can be done by hand, and damaged records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from etils import epath

from ediffi_jax.training import goodput
from ediffi_jax.training.chrono import Chrono
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.goodput import Goodput, Session, summarize


def session(begun: float, first: int, last: int, **seconds: float) -> Session:
    return Session(begun=begun, ended=begun + sum(seconds.values()), first_step=first, last_step=last, seconds=seconds)


def test_steps_that_were_taken_again_are_lost() -> None:
    """The first process took steps 0 to 100 and was killed; the second goes on from 80, ten seconds later."""
    first = session(0.0, 0, 100, start=10.0, compile=20.0, data=5.0, step=50.0, save=15.0)
    second = session(110.0, 80, 100, start=10.0, compile=10.0, step=10.0)
    summary = summarize([first, second])
    assert summary.seconds["lost"] == pytest.approx(0.2 * 55)
    assert summary.seconds["step"] == pytest.approx(0.8 * 50 + 10)
    assert summary.seconds["data"] == pytest.approx(0.8 * 5)
    assert summary.between == pytest.approx(10)
    assert summary.goodput == pytest.approx(50 / 130)
    assert sum(summary.seconds.values()) == pytest.approx(130)
    assert summary.text().startswith("goodput 38.5% of 0:02:10 in steps that stayed; start 15.4%, compile 23.1%, ")
    assert summary.text().endswith("lost 8.5%; 2 starts, 0:00:10 between them")


def test_one_that_ended_well_lost_nothing() -> None:
    one, two = session(0.0, 0, 50, step=5.0), session(5.0, 50, 60, step=1.0)
    assert summarize([one]).goodput == summarize([one, two]).goodput == 1
    nothing = session(6.0, 60, 60, start=3.0)  # killed before its first step
    assert summarize([one, two, nothing, nothing]).seconds["lost"] == 0


def test_records_of_processes_add_up(tmp_path: Path, capsys) -> None:
    now = [0.0]
    for step in (0, 4):
        chrono = Chrono(clock=lambda: now[0])
        observer = Goodput(epath.Path(tmp_path), step, chrono)
        chrono.turn("step")
        now[0] += 8.0
        chrono.turn("save")
        now[0] += 2.0
        observer.tick(step + 4)
        observer.close()
    assert sorted(path.name for path in (tmp_path / "goodput").iterdir()) == ["1.json", "2.json"]
    assert "goodput 80.0% of 0:00:20" in capsys.readouterr().out
    assert goodput.report(str(tmp_path)).startswith("goodput 80.0%")
    shares = goodput.shares(chrono)
    assert shares["goodput/step"] == pytest.approx(0.8) and sum(shares.values()) == pytest.approx(1)
    damaged = tmp_path / "goodput" / "1.json"
    damaged.write_text(json.dumps(json.loads(damaged.read_text()))[:-9])
    assert len(goodput.read(epath.Path(tmp_path))) == 1


def test_a_workdir_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing has trained in"):
        goodput.report(str(tmp_path))
