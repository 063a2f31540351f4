"""The verbs as processes: killed and restarted to the bit, exit codes, and mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_fakes import same

from ediffi_jax.training import checkpoint, goodput, saving

V1 = Path(__file__).parent / "fixtures" / "checkpoint_v1"
RECIPE = """
import sys
sys.path.insert(0, {tests!r})
from training_fakes import small_config

def get_config(arguments):
    config = small_config()
    config.phases = ({{"steps": 60, "cuts": (), "parents": ()}}, {{"steps": 30, "cuts": (0.5,), "parents": (0, 0)}})
    config.save_every = 7
    return config
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    return path


def start(verb: str, *words: str, **variables: str) -> subprocess.Popen:
    """A verb as a process of its own; see `small_launch` for what is small and slow in it."""
    fixed = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "EDIFFI_TEST_BATCH_SECONDS": "0.02"}
    environment = {**os.environ, **fixed, **variables}
    command = [sys.executable, "-u", str(Path(__file__).parent / "small_launch.py"), verb, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    """Returns as soon as the run has printed that it is at `step` or later."""
    for line in process.stdout:
        found = re.search(r"step (\d+)/", line)
        if found and int(found[1]) >= step:
            return
    pytest.fail(f"ended before step {step}: {process.stderr.read()}")


def half_written(workdir: Path) -> bool:
    """Whether a checkpoint is being written, or was left so by a kill."""
    return any((workdir / "checkpoints").glob(f"*{saving.TEMPORARY}*"))


def kill_while_saving(workdir: Path, *words: str) -> bool:
    """SIGKILL as soon as a checkpoint is being written. Returns whether it stays half-written."""
    process = start("train", *words, f"--workdir={workdir}")
    for wanted in (False, True):  # what the last kill left is removed first
        while process.poll() is None and half_written(workdir) != wanted:
            time.sleep(0.0005)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL, "it ended before it was killed"
    return half_written(workdir)


@pytest.mark.slow
def test_killed_and_terminated_it_ends_where_an_undisturbed_run_ends(recipe: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, out, err = finish(start("train", f"--config={recipe}", f"--workdir={whole}"))
    assert code == 0, err
    assert "small" not in out and "step 90/90" in out and "ETA 0:00:00" in out

    process = start("train", f"--config={recipe}", f"--workdir={broken}")
    wait_for_step(process, 16)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    killed_at = checkpoint.committed_steps(broken / "checkpoints")[-1]
    assert 7 <= killed_at < 60

    kill_while_saving(broken)  # the config comes from the workdir
    process = start("train", f"--workdir={broken}")
    wait_for_step(process, killed_at + 12)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 42, err
    stopped_at = checkpoint.committed_steps(broken / "checkpoints")[-1]
    assert killed_at + 12 <= stopped_at < 90

    code, out, err = finish(start("train", f"--config={recipe}", f"--workdir={broken}"))
    assert code == 0, err
    ends = [checkpoint.load_tree(checkpoint.newest(workdir)) for workdir in (whole, broken)]
    assert same(*ends)
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 91))
    assert "4 starts" in goodput.report(str(broken))


@pytest.mark.pod
def test_killed_at_twenty_random_moments(recipe: Path, tmp_path: Path) -> None:
    """Half of them while a checkpoint is being written; the other half at any step, up to 50 ms later."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [f"--config={recipe}", "--config.phases.0.steps=150", "--steps=250", "--config.save_every=3"]
    assert finish(start("train", *words, f"--workdir={whole}"))[0] == 0
    random, left = np.random.default_rng(0), 0
    for kill in range(20):
        if kill % 2:
            left += kill_while_saving(broken, *words)
        else:
            process = start("train", *words, f"--workdir={broken}")
            saved = checkpoint.committed_steps(broken / "checkpoints")
            wait_for_step(process, (saved[-1] if saved else 0) + int(random.integers(1, 9)))
            time.sleep(random.uniform(0, 0.05))
            process.kill()
            assert finish(process)[0] == -signal.SIGKILL, "it ended before it was killed"
    assert left >= 5, "too few of the kills came while a checkpoint was being written"
    code, _, err = finish(start("train", *words, f"--workdir={broken}"))
    assert code == 0, err
    assert same(*(checkpoint.load_tree(checkpoint.newest(workdir)) for workdir in (whole, broken)))
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, broken)]
    losses = [[(row["step"], row["loss/0"]) for row in map(json.loads, each)] for each in lines]
    assert [step for step, _ in losses[1]] == list(range(1, 401))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_data_source_that_hangs_ends_with_42_and_the_next_start_goes_on(recipe: Path, tmp_path: Path) -> None:
    words = [f"--config={recipe}", f"--workdir={tmp_path}", "--steps=0", "--config.hang_minutes=0.15"]
    code, out, err = finish(start("train", *words, EDIFFI_TEST_HANG_AT="400"))
    assert code == 42
    assert "error: hung: 'data' has not ended for 0.15" in err, err
    line = err.index("minutes (config.hang_minutes); exit code 42")
    assert "Thread" in err[line:] and "slow_batch" in err[line:] and "loop.py" in err[line:]
    assert checkpoint.newest(tmp_path).name == "49"
    code, _, err = finish(start("train", *words[:3]))
    assert code == 0, err


@pytest.mark.pod
def test_where_one_of_two_processes_stops_the_other_ends_with_42(recipe: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"--config={recipe}", f"--workdir={tmp_path}", "--steps=100000", "--config.hang_minutes=0.15"]
    words += ["--config.save_every=0", "--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    processes = [start("train", *words, f"--process_id={index}") for index in range(2)]
    try:
        wait_for_step(processes[0], 5)
        processes[1].send_signal(signal.SIGSTOP)
        code, _, err = finish(processes[0])
        assert code == 42, err
        assert "error: hung: 'step' has not ended for 0.15" in err
    finally:
        for process in processes:
            process.kill()
            process.communicate()



def test_branch_then_train_from_the_workdir_alone(recipe: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shorter = ["--config.phases.0.steps=2", "--config.phases.1.steps=1"]
    code, _, err = finish(start("train", f"--config={recipe}", f"--workdir={old}", *shorter))
    assert code == 0, err
    branch = ("branch", f"--workdir={old}", f"--to={new}", "--cuts=0.25,0.5", "--parents=0,0,1")
    code, out, err = finish(start(*branch, "--steps=5"))
    assert code == 0, err
    assert f"python -m launch.train --workdir={new}" in out
    code, _, err = finish(start("train", f"--workdir={new}", "--steps=2"))
    assert code == 0, err
    assert checkpoint.newest(new).name == "5"
    code, err = run_here("branch", [*branch[1:3], "--cuts=0.5,0.25"], monkeypatch, capsys)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/scene.py", "--workdir=x"], "did you mean 'configs/scenes.py'"),
        (["--config=configs/scenes.py:stage=bse", "--workdir=x"], "did you mean 'base'"),
        (["--config=configs/scenes.py", "--workdir=x", "--config.optimizer.lrr=1"], "did you mean 'lr'"),
        (["--wrkdir=x"], "unknown flag --wrkdir; did you mean 'workdir'"),
        (["--config=configs/scenes.py"], "--workdir is missing"),
        (["--workdir=/nonexistent/run"], "holds no run"),
        (["--workdir=x", "--steps=-3"], "--steps"),
        (["--workdir=x", "train"], "unexpected argument 'train'"),
        (["--workdir=x", "--process_id=0"], "--process_id is for several processes; expected --distributed beside it"),
        (["--workdir=x", "--distributed", "--num_processes=2"], "--coordinator and --process_id missing; expected all"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words: list[str], message: str, monkeypatch, capsys) -> None:
    """In this process, as sixteen imports of JAX would take a minute."""
    code, err = run_here("train", words, monkeypatch, capsys)
    assert code == 2
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("sample", ["--out=x", "--config.sampler.steps=9"], "unknown flag --config.sampler.steps: launch.sample takes no"
         " config; did you mean 'steps'?"),
        ("export", ["--workdirs=a=b", "--out=x", "--config.encoder=t5"], "unknown flag --config.encoder: launch.export"
         " takes no config; did you mean 'encoders'?"),
        ("convert", ["--input=x", "--output=y", "--config.seed=1"], "unknown flag --config.seed: launch.convert takes no"
         " config; choices: dtype,"),
    ],
)  # fmt: skip
def test_a_config_given_to_a_verb_that_takes_none(verb: str, words: list, message: str, monkeypatch, capsys) -> None:
    code, err = run_here(verb, words, monkeypatch, capsys)
    assert code == 2
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_branch_names_an_unknown_key_of_the_config(tmp_path: Path, monkeypatch, capsys) -> None:
    words = [f"--workdir={V1}", f"--to={tmp_path / 'new'}", "--cuts=0.5", "--config.optimizer.lrr=1"]
    code, err = run_here("branch", words, monkeypatch, capsys)
    assert code == 2
    assert err.startswith("error: config.optimizer has no key 'lrr'; did you mean 'lr'?") and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_help_teaches_with_an_example(monkeypatch, capsys) -> None:
    for verb in ("train", "branch"):
        code, _ = run_here(verb, ["--help"], monkeypatch, capsys, keep_out=True)
        out = capsys.readouterr().out
        assert code == 0
        assert f"python -m launch.{verb} --" in out
        assert "--workdir:" in out


def run_here(verb: str, words: list[str], monkeypatch, capsys, keep_out: bool = False) -> tuple[int, str]:
    """Runs a verb as `__main__` with absl flags of its own."""
    import runpy

    from absl import flags

    before = set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", [f"launch/{verb}.py", *words])
    try:
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(f"launch.{verb}", run_name="__main__")
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return caught.value.code, "" if keep_out else capsys.readouterr().err
