"""Launchers that run: exit codes 0, 2 and 42, SIGTERM, lost connections and lost machines, on fakes that do run it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launcher_fakes import ROOT, VERB, Cluster, put

GIT = ("git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def wait_for(path: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


# Slurm


def submit(cluster: Cluster, *words: str, nodes: int = 2, restarts: int = 0, **variables: str) -> subprocess.Popen:
    """As sbatch does: a copy of the script, from the folder of the submission."""
    clone = cluster.home / "clone"
    if not clone.exists():
        put(clone / "launch" / "train.py", VERB)
        for name in ("flags.sh", "slurm.sh"):
            put(clone / "launch" / name, (ROOT / "launch" / name).read_text())
        put(clone / ".venv" / "bin" / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    put(cluster.home / "slurmd" / "slurm_script", (ROOT / "launch" / "slurm.sh").read_text())
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_SUBMIT_DIR": str(clone)}
    job |= {"SLURM_RESTART_COUNT": str(restarts), "PYTHONPATH": ""} | variables
    script = str(cluster.home / "slurmd" / "slurm_script")
    command = ["bash", script, *words, "--", "--workdir=/shared/run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**cluster.environment, **job}, **pipes)


def nodes_end_with(cluster: Cluster, *codes: str) -> None:
    for index, code in enumerate(codes):
        put(cluster.home / f"node{index}" / "codes", code)


@pytest.mark.parametrize(
    ("codes", "restarts", "ends_with", "requeues", "says"),
    [
        (("0", "0"), 0, 0, 0, ""),
        (("2", "2"), 0, 2, 0, ""),
        (("1", "1"), 0, 1, 0, ""),
        (("42", "42"), 3, 42, 1, "exit code 42: requeue 4 of at most 100"),
        (("42", "killed"), 0, 137, 1, "exit code 137: requeue 1 of"),
        (("42", "42"), 100, 42, 0, "--max_restarts=100 are used up"),
    ],
)
def test_slurm_requeues_by_exit_code(codes, restarts: int, ends_with: int, requeues: int, says: str, cluster: Cluster):
    nodes_end_with(cluster, *codes)
    process = submit(cluster, restarts=restarts)
    out, err = process.communicate(timeout=60)
    assert process.returncode == ends_with and says in out + err
    assert cluster.calls("scontrol") == [["requeue", "77"]] * requeues
    (step,) = cluster.calls("srun")
    assert step == [
        *["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpu-bind=none"],
        *[".venv/bin/python", "-u", "-m", "launch.train", "--distributed", "--workdir=/shared/run"],
    ]


@pytest.mark.parametrize("job_ends", [False, True])
def test_slurm_after_sigterm(job_ends: bool, cluster: Cluster) -> None:
    """The tasks get SIGTERM before the time limit. Where the job ends the script does too: then it is not requeued."""
    nodes_end_with(cluster, "wait", "wait")
    process = submit(cluster)
    assert [process.stdout.readline() for _ in range(2)] == ["training\n"] * 2
    if job_ends:
        process.send_signal(signal.SIGTERM)
    for index in range(2):
        os.kill(int((cluster.home / f"node{index}" / "pid").read_text()), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 42 and out.count("saved\n") == 2
    assert len(cluster.calls("scontrol")) == (0 if job_ends else 1)
    assert ("not requeued here" in out) == job_ends


@pytest.mark.parametrize(("gpus", "ids"), [("4", "0,1,2,3"), ("1", "0"), ("", None)])
def test_slurm_gives_a_process_all_gpus_of_its_node(gpus: str, ids: str | None, cluster: Cluster) -> None:
    process = submit(cluster, SLURM_GPUS_ON_NODE=gpus, nodes=1) if gpus else submit(cluster, nodes=1)
    put(cluster.home / "clone" / "launch" / "train.py", "import os; print(os.environ.get('JAX_LOCAL_DEVICE_IDS'))")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, f"{ids}\n", "")


def test_slurm_refuses_what_no_node_can_run(cluster: Cluster) -> None:
    process = submit(cluster, "--python=/nowhere/python")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "") and not cluster.calls("srun")
    assert err == "error: --python=/nowhere/python is no interpreter here; expected one that all nodes see\n"


@pytest.mark.slow
def test_slurm_runs_the_real_verb_and_jax_finds_the_processes(cluster: Cluster) -> None:
    """Two nodes train; SIGTERM to one stops both after the same step; the requeued job finishes."""
    with socket.socket() as free:  # jax takes the coordinator's port from the job's number
        for port in range(61440, 65536):
            if free.connect_ex(("127.0.0.1", port)):
                break
    recipe = cluster.home / "recipe.py"
    recipe.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from training_fakes import Net, small_config\nfrom ediffi_jax import models\n"
        "def get_config(arguments):\n    models.build = lambda config: Net(channels=8)\n    config = small_config()\n"
        "    config.phases = ({'steps': int(arguments)},)\n"
        "    config.update({'save_every': 0, 'log_every': 2})\n    return config\n"
    )
    variables = {"SLURM_JOB_ID": str(port - 61440), "SLURM_JOB_NUM_NODES": "2", "SLURM_SUBMIT_DIR": str(ROOT)}
    variables |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}

    def job(steps: int) -> subprocess.Popen:
        words = (f"--python={sys.executable}", "--", f"--config={recipe}:{steps}", f"--workdir={cluster.home / 'run'}")
        return cluster.start("slurm.sh", *words, **variables)

    process = job(100_000)
    seen = [line for line, _ in zip(iter(process.stdout.readline, ""), range(2), strict=False)]
    assert len(seen) == 2, process.communicate()
    os.kill(int((cluster.home / "node1" / "pid").read_text()), signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 42, err
    assert cluster.calls("scontrol") == [["requeue", variables["SLURM_JOB_ID"]]]
    (step,) = (cluster.home / "run" / "checkpoints").iterdir()
    process = job(int(step.name) + 2)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len(cluster.calls("scontrol")) == 1


# TPU VMs


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    put(folder / "launch" / "train.py", VERB)
    put(folder / "launch" / "encode.py", VERB)
    put(folder / "requirements" / "gcp.txt", "")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "all")):
        subprocess.run([*GIT, *words], cwd=folder, check=True)
    return folder


def tpu(repository: Path, *words: str, verb: tuple[str, ...] = ("--workdir=gs://b/run",)) -> list[str]:
    place = ("--name=run", "--zone=z", "--type=v5litepod-16", f"--repo={repository}")
    return ["tpu_vm.sh", *place, *words, "--", *verb]


def workers_end_with(cluster: Cluster, *codes: str) -> None:
    for index, several in enumerate(codes):
        put(cluster.home / f"worker{index}" / "codes", several)


def actions(cluster: Cluster) -> list[str]:
    """What gcloud was told, without looking at the state."""
    return [words[3] for words in cluster.calls("gcloud") if words[3] != "describe"]


@pytest.mark.parametrize(
    ("codes", "ends_with", "runs"),
    [
        (("0", "0"), 0, 1),
        (("42 0", "42 0"), 0, 2),
        (("42 0", "killed 0"), 0, 2),
        (("2", "killed"), 2, 1),
        (("1", "1"), 1, 1),
        (("42 42 42", "42 42 42"), 42, 2),
    ],
)
def test_tpu_vm_restarts_by_exit_code(codes, ends_with: int, runs: int, cluster: Cluster, repository: Path) -> None:
    workers_end_with(cluster, *codes)
    code, out, err = cluster.run(*tpu(repository, "--max_restarts=1", "--delete"), PYTHONPATH="")
    assert code == ends_with, err
    deleted = ["delete"] if ends_with == 0 else []
    assert actions(cluster) == ["create", *["ssh", "ssh"] * runs, *deleted]
    assert (cluster.home / "worker1" / "argv").read_text() == "--distributed --workdir=gs://b/run\n" * runs
    assert err.count("training\n") == 2 * runs
    assert ("are used up; the same command goes on" in err) == (ends_with == 42)


def test_tpu_vm_follows_again_after_a_lost_connection(cluster: Cluster, repository: Path) -> None:
    workers_end_with(cluster, "slow", "slow")
    put(cluster.home / "lose", "")
    code, out, err = cluster.run(*tpu(repository), PYTHONPATH="")
    assert code == 0, err
    assert actions(cluster) == ["create", "ssh", "ssh", "ssh"]
    assert (cluster.home / "worker0" / "argv").read_text().count("\n") == 1  # started once


def test_tpu_vm_outlasts_a_network_that_is_gone(cluster: Cluster, repository: Path) -> None:
    workers_end_with(cluster, "slow", "slow")
    put(cluster.home / "lose", "")
    put(cluster.home / "state", "ACTIVE UNREACHABLE ACTIVE UNREACHABLE ACTIVE")
    code, out, err = cluster.run(*tpu(repository), PYTHONPATH="")
    assert code == 0, err
    assert actions(cluster) == ["ssh", "ssh", "ssh"] and "run: UNKNOWN: ERROR: there is no network" in out
    assert (cluster.home / "worker0" / "argv").read_text().count("\n") == 1


def test_tpu_vm_says_at_once_that_gcloud_does_not_work(cluster: Cluster, repository: Path) -> None:
    put(cluster.home / "state", "UNREACHABLE")
    code, out, err = cluster.run(*tpu(repository), PYTHONPATH="")
    assert (code, out, actions(cluster)) == (2, "", [])
    assert err == "error: gcloud does not tell whether run is there: UNKNOWN: ERROR: there is no network\n"


def test_tpu_vm_says_that_its_request_failed(cluster: Cluster, repository: Path) -> None:
    put(cluster.home / "state", "WAITING_FOR_RESOURCES FAILED")
    code, out, err = cluster.run(*tpu(repository), PYTHONPATH="")
    assert code == 2 and not actions(cluster)
    why = "gcloud compute tpus queued-resources describe run --zone=z"
    assert err == f"error: the request for run FAILED; why: {why}; then delete it\n"


def test_tpu_vm_asks_again_for_a_slice_that_was_taken_away(cluster: Cluster, repository: Path) -> None:
    workers_end_with(cluster, "slow 0", "slow 0")
    put(cluster.home / "lose", "")
    put(cluster.home / "state", "ACTIVE ACTIVE SUSPENDED")  # there at first, then lost with the connection
    code, out, err = cluster.run(*tpu(repository, "--spot"), PYTHONPATH="")
    assert code == 0, err
    assert actions(cluster) == ["ssh", "ssh", "delete", "create", "ssh", "ssh"]
    assert "run: exit code 137, restart 1 of at most 100" in out and "run: SUSPENDED" in out


def test_tpu_vm_stop_saves_and_is_not_restarted(cluster: Cluster, repository: Path) -> None:
    workers_end_with(cluster, "wait 0", "wait 0")
    process = cluster.start(*tpu(repository), PYTHONPATH="")
    wait_for(cluster.home / "worker0" / "argv")
    wait_for(cluster.home / "worker1" / "argv")
    assert cluster.run("tpu_vm.sh", "--name=run", "--zone=z", "--stop")[0] == 0
    assert [(cluster.home / f"worker{index}" / "codes").read_text() for index in (0, 1)] == ["0", "0"]
    out, err = process.communicate(timeout=60)
    assert process.returncode == 42 and err.count("saved\n") == 2
    assert "run was stopped; the same command goes on" in out
    code, out, err = cluster.run(*tpu(repository), PYTHONPATH="")
    assert code == 0, err


def test_tpu_vm_started_again_stops_what_runs_and_goes_on(cluster: Cluster, repository: Path) -> None:
    workers_end_with(cluster, "wait 0", "wait 0")
    first = cluster.start(*tpu(repository), PYTHONPATH="")
    for index in (0, 1):
        wait_for(cluster.home / f"worker{index}" / "argv")
    time.sleep(1.3)  # attempts are named by the second
    code, out, err = cluster.run(*tpu(repository), PYTHONPATH="")
    assert code == 0, err
    assert first.wait(timeout=60) == 42 and first.communicate()[1].count("saved\n") == 2


def test_tpu_vm_encodes_on_one_host(cluster: Cluster, repository: Path) -> None:
    code, out, err = cluster.run(*tpu(repository, "--verb=encode", verb=("--out=gs://b/e",)), PYTHONPATH="")
    assert code == 0, err
    assert (cluster.home / "worker0" / "argv").read_text() == "--out=gs://b/e\n"
