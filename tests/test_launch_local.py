"""`launch.local` without JAX: exit codes, what is printed, signals, and what happens to the others when one dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ediffi_jax.training import local

# Stands for launch.train: a line of Python that knows which process it is.
BODY = "import os, signal, sys, time; index = int(sys.argv[-1].partition('=')[2]); "


def command(body: str) -> list[str]:
    return [sys.executable, "-c", BODY + body]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("pass", 0),
        ("sys.exit(42)", 42),
        ("sys.exit(2)", 2),
        ("time.sleep(index / 2); sys.exit((3, 2)[index])", 3),  # the first to fail
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("time.sleep(index); os.abort() if index else sys.exit(42)", 42),  # for the want of the other
        ("time.sleep(index); sys.exit(2 if index else 42)", 2),
    ],
)
def test_the_worst_exit_code_is_that_of_all(body: str, code: int) -> None:
    assert local.run(command(body), 2) == code


def test_lines_carry_the_number_of_their_process_and_flags_say_which_it_is(capsys) -> None:
    body = "print(*sys.argv[1:]); print(os.environ['XLA_FLAGS'], 'é', file=sys.stderr); print('last', end='')"
    assert local.run(command(body), 3, devices=2) == 0
    out, err = capsys.readouterr()
    for index in range(3):
        words, last = re.findall(rf"^\[{index}\] (.*)", out, re.M)
        expected = rf"--distributed --coordinator=127.0.0.1:\d+ --num_processes=3 --process_id={index}"
        assert re.fullmatch(expected, words) and last == "last"
        pid, flags = re.findall(rf"^\[{index}\] (.*)", err, re.M)
        assert pid.startswith("pid ") and flags.count(local.DEVICE_COUNT) == 1 and flags.endswith("=2 é")
    assert len(set(re.findall(r"127.0.0.1:\d+", out))) == 1


def test_when_one_dies_the_others_are_killed(monkeypatch, capsys) -> None:
    monkeypatch.setattr(local, "GRACE", 0.3)
    before = time.monotonic()
    assert local.run(command("time.sleep(60 * index); sys.exit(7)"), 3) == 7
    assert time.monotonic() - before < 20
    err = capsys.readouterr().err
    assert "[0] ended with exit code 7" in err and "[1] ended with SIGKILL" in err
    for pid in re.findall(r"pid (\d+)", err):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize(("number", "times", "code"), [("SIGTERM", 1, 42), ("SIGINT", 1, 42), ("SIGTERM", 2, 137)])
def test_signals_go_on_to_all(number: str, times: int, code: int) -> None:
    """The second one kills those who would not end."""
    stop = "sys.exit(42)" if times == 1 else "None"
    body = f"signal.signal(signal.SIGTERM, lambda *a: {stop}); print('ready', flush=True); time.sleep(60)"
    code_of_launcher = f"import sys; from ediffi_jax.training import local; sys.exit(local.run({command(body)!r}, 2))"
    launcher = subprocess.Popen([sys.executable, "-c", code_of_launcher], stdout=subprocess.PIPE, text=True)
    try:
        assert sorted(launcher.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
        for _ in range(times):
            launcher.send_signal(signal.Signals[number])
            time.sleep(0.3)
        assert launcher.wait(timeout=30) == code
    finally:
        launcher.kill()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to train; expected flags of launch.train after --, such as: -- --workdir=runs/base"),
        (["--processes=0", "--", "--workdir=x"], "--processes"),
        (["--workdir=x"], "unknown flag --workdir"),
        (["--proceses=3", "--", "--workdir=x"], "unknown flag --proceses; did you mean 'processes'?"),
        (["--config.seed=1", "--", "--workdir=x"], "unknown flag --config.seed: launch.local takes no config"),
        (["--", "--workdir=x", "--process_id=1"], "--process_id=1 is set by launch.local; expected it left out"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, root) -> None:
    done = subprocess.run([sys.executable, "-m", "launch.local", *words], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
