"""Steps are done once, resume after interruption, and refuse a folder of another run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ediffi_jax.evaluation.steps import Interrupted, Step, StepError, finished, run_steps


def command(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def quiet(text: str) -> None:
    pass


def test_each_step_runs_once_and_is_remembered(tmp_path: Path) -> None:
    calls: list[str] = []
    steps = [
        Step(name="one", title="First", action=lambda: calls.append("one"), settings="a"),
        Step(name="two", title="Second", command=command(f"open({str(tmp_path / 'two')!r}, 'a').write('x')")),
    ]
    first, second = run_steps(tmp_path, steps, say=quiet), run_steps(tmp_path, steps, say=quiet)
    assert calls == ["one"]
    assert (tmp_path / "two").read_text() == "x"
    assert first == second
    assert [record.name for record in first] == ["one", "two"]
    assert all(record.seconds > 0 for record in first)


def test_a_failed_step_is_named_and_run_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"import sys, pathlib; f = pathlib.Path({str(flag)!r}); sys.exit(0 if f.exists() else 3)"
    steps = [Step(name="fails", title="Fails at first", command=command(code))]
    with pytest.raises(StepError, match="'fails' ended with exit code 3"):
        run_steps(tmp_path, steps, say=quiet)
    assert finished(tmp_path, steps) == []
    flag.touch()
    assert len(run_steps(tmp_path, steps, say=quiet)) == 1


def test_a_command_that_asks_to_be_restarted_is(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"import sys, pathlib; f = pathlib.Path({str(flag)!r}); r = f.exists(); f.touch(); sys.exit(0 if r else 42)"
    assert run_steps(tmp_path, [Step(name="again", title="Again", command=command(code))], say=quiet)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run_steps(tmp_path, [Step(name="one", title="First", command=command("pass"))], say=quiet)
    with pytest.raises(StepError, match="other settings"):
        run_steps(tmp_path, [Step(name="one", title="First", command=command("1"))], say=quiet)


def test_an_interrupted_action_leaves_no_marker_but_its_time(tmp_path: Path) -> None:
    def stop() -> None:
        time.sleep(0.05)
        raise KeyboardInterrupt

    steps = [Step(name="stop", title="Stops", action=stop)]
    with pytest.raises(Interrupted):
        run_steps(tmp_path, steps, say=quiet)
    assert finished(tmp_path, steps) == []
    steps = [Step(name="stop", title="Stops", action=lambda: None)]
    assert run_steps(tmp_path, steps, say=quiet)[0].seconds >= 0.05


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_the_command_to_save_and_the_next_start_goes_on(tmp_path: Path, sent: signal.Signals) -> None:
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    inner = (
        "import signal, sys, time, pathlib\n"
        f"saved, ready = pathlib.Path({str(saved)!r}), pathlib.Path({str(ready)!r})\n"
        "if saved.exists(): sys.exit(0)\n"
        "def save(*_):\n    saved.write_text('state'); sys.exit(42)\n"
        "signal.signal(signal.SIGTERM, save); ready.touch(); time.sleep(60)\n"
    )
    outer = (
        "import sys, pathlib\n"
        "from ediffi_jax.evaluation.steps import Interrupted, Step, run_steps\n"
        f"step = Step(name='long', title='Long', command=({sys.executable!r}, '-c', {inner!r}))\n"
        "try:\n"
        f"    run_steps(pathlib.Path({str(tmp_path)!r}), [step])\n"
        "except Interrupted:\n    sys.exit(130)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    deadline = time.monotonic() + 30
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    assert process.wait(timeout=30) == 130
    assert saved.read_text() == "state"
    assert subprocess.run([sys.executable, "-c", outer], check=False, timeout=30).returncode == 0
