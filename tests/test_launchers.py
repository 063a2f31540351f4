"""The launchers' words: shellcheck, help, mistakes in one line, what they would run, JobSet's YAML, the Dockerfile."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml
from launcher_fakes import ROOT, VERB, Cluster, put
from packaging.version import Version

TOOLS = Path(sysconfig.get_path("scripts"))
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
LAUNCHERS = ("jobset.sh", "slurm.sh", "tpu_vm.sh", "xpk.sh")
WORKDIR = "--workdir=gs://bucket/run"
TPU = ("--name=run", "--zone=us-west4-a", "--type=v5litepod-16", "--repo=https://host/repo")
XPK = ("--cluster=pods", "--name=run", "--type=v5litepod-16", "--image=host/image:1")
JOBSET = ("--name=run", "--nodes=4", "--gpus=8", "--image=host/image:cuda")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_shellcheck_finds_nothing() -> None:
    command = [TOOLS / "shellcheck", "--shell=bash", "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_names_every_flag(script: str, cluster: Cluster) -> None:
    code, out, err = cluster.run(script, "--help")
    assert (code, err) == (0, "") and "SBATCH" not in out
    options, switches = re.search(r'^read_flags "(.*?)" "(.*?)"', (ROOT / "launch" / script).read_text(), re.M).groups()
    for flag in [*options.split(), *switches.split()]:
        assert f"--{flag}" in out.replace("dry-run", "dry_run"), flag


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("tpu_vm.sh", ("--nmae=run",), "unknown flag --nmae; expected --name, --zone, "),
        ("tpu_vm.sh", ("run",), "unexpected argument 'run'; flags are written --name=value"),
        ("tpu_vm.sh", ("--name",), "--name has no value; expected --name=VALUE"),
        ("tpu_vm.sh", ("--spot=yes",), "--spot takes no value"),
        ("tpu_vm.sh", ("--name=run",), "--zone is missing; for example --zone=us-west4-a"),
        ("tpu_vm.sh", ("--name=Run", "--zone=z"), "--name=Run; expected at most 40 of a-z, 0-9 and -"),
        ("tpu_vm.sh", (*TPU, "--type=v5e-16", "--", WORKDIR), "--type=v5e-16; expected v4-N, v5litepod-N, v5p-N or"),
        ("tpu_vm.sh", (*TPU, "--slices=0", "--", WORKDIR), "--slices=0; expected a whole number, 1 or more"),
        ("tpu_vm.sh", (*TPU, "--max_restarts=x", "--", WORKDIR), "--max_restarts=x; expected a whole number, 0 or"),
        ("tpu_vm.sh", (*TPU, "--verb=sample", "--", WORKDIR), "--verb=sample; expected train or encode"),
        ("tpu_vm.sh", (*TPU, "--verb=encode", "--slices=2"), "--slices=2 with --verb=encode; expected 1"),
        ("tpu_vm.sh", TPU, "--workdir is missing after --; for example -- --config=configs/base64.py"),
        ("tpu_vm.sh", (*TPU, "--", "--workdir=runs/a"), "--workdir=runs/a would be another folder on every host"),
        ("xpk.sh", (*XPK, "--grace=0", "--", WORKDIR), "--grace=0; expected a whole number, 1 or more"),
        ("xpk.sh", XPK[1:], "--cluster is missing; for example --cluster=pods"),
        ("jobset.sh", (*JOBSET, "--env=A", "--", WORKDIR), "--env=A; expected KEY=VALUE,KEY=VALUE"),
        ("jobset.sh", (*JOBSET, "--selector=gpu", "--", WORKDIR), "--selector=gpu; expected KEY=VALUE,KEY=VALUE"),
        ("slurm.sh", ("--max-restarts=-1", "--", WORKDIR), "--max_restarts=-1; expected a whole number, 0 or more"),
        ("slurm.sh", ("--", WORKDIR), "this is not a Slurm job; expected sbatch launch/slurm.sh, or --dry-run"),
    ],
)
def test_mistakes_are_one_line(script: str, words: tuple[str, ...], message: str, cluster: Cluster) -> None:
    code, out, err = cluster.run(script, *words)
    assert (code, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1
    assert not (cluster.home / "calls").exists()


def documented() -> list[str]:
    """Every launcher's command line in the docs and in the launchers' own openings, on one line each."""
    texts = [(ROOT / "docs" / name).read_text() for name in ("tpu.md", "clusters.md")]
    texts += [re.sub(r"^# ?", "", (ROOT / "launch" / name).read_text(), flags=re.M) for name in LAUNCHERS]
    joined = [re.sub(r"\\\n\s*", " ", text) for text in texts]
    found = [re.findall(r"bash launch/(?:tpu_vm|xpk|jobset|slurm)\.sh .*?(?= [|>#]|\n|$)", text) for text in joined]
    return sorted({line for lines in found for line in lines})


@pytest.mark.parametrize("line", documented())
def test_what_the_docs_say_to_type_is_understood(line: str, cluster: Cluster) -> None:
    line = line.replace("WORKDIR", "/shared").replace("…", "").replace(" REPO", " https://host/repo")
    if "jobset" not in line:
        line = line.replace(".sh ", ".sh --dry-run ", 1)
    if "tpu_vm" in line and "--repo" not in line:
        line = line.replace(" --dry-run", " --dry-run --repo=https://host/repo", 1)
    environment = {**cluster.environment, "IMAGE": "host/image:1", "expert": "low"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    assert not cluster.calls("gcloud")


def test_tpu_vm_prints_the_gcloud_commands(cluster: Cluster) -> None:
    words = (*TPU, "--slices=3", "--spot", "--project=p", "--extra=--service-account=s", "--setup=echo 'a b'")
    code, out, err = cluster.run(
        "tpu_vm.sh", *words, "--delete", "--dry-run", "--", "--config=configs/base64.py", WORKDIR
    )
    assert (code, err) == (0, "") and not (cluster.home / "calls").exists()
    said = shlex.split(out)
    starts = [index for index, word in enumerate(said) if word == "gcloud"]
    commands = [said[start:end] for start, end in zip(starts, [*starts[1:], len(said)], strict=True)]
    common = ["run", "--zone=us-west4-a", "--project=p"]
    assert [command[:4] for command in commands] == [["gcloud", "compute", "tpus", "queued-resources"]] * 5
    describe, create, install, run, delete = (command[4:] for command in commands)
    assert describe == ["describe", *common, "--format=value(state.state)"]
    assert create == [
        *["create", *common, "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"],
        *["--node-count=3", "--node-prefix=run", "--service-account=s", "--spot"],
    ]
    assert install[:7] == run[:7] == ["ssh", *common, "--node=all", "--worker=all", "--batch-size=all"]
    assert install[7].endswith("\necho 'a b'") and "git clone --quiet https://host/repo ediffi_jax" in install[7]
    assert "-m launch.train --distributed --config=configs/base64.py --workdir=gs://bucket/run" in run[7]
    assert delete == ["delete", *common, "--force", "--quiet"]


@pytest.mark.parametrize(
    ("chips", "runtime"),
    [("v4-32", "tpu-ubuntu2204-base"), ("v5p-128", "v2-alpha-tpuv5"), ("v6e-256", "v2-alpha-tpuv6e")],
)
def test_each_generation_has_its_software(chips: str, runtime: str, cluster: Cluster) -> None:
    out = cluster.run("tpu_vm.sh", *TPU, f"--type={chips}", "--dry-run", "--", WORKDIR)[1]
    assert f"--accelerator-type={chips} --runtime-version={runtime} --node-id=run\n" in out


def test_xpk_passes_sigterm_and_the_exit_code(cluster: Cluster) -> None:
    """The recorded --command in a shell like that of XPK's container (xpk 1.16, core/docker_container.py)."""
    options = ("--slices=2", "--grace=300", "--extra=--storage=disk")
    code, out, err = cluster.run("xpk.sh", *XPK, *options, "--", "--config=a.py:b,c", WORKDIR)
    assert (code, out, err) == (0, "", "")
    (words,) = cluster.calls("xpk")
    assert words[:2] == ["workload", "create"]
    flags = dict(word[2:].split("=", 1) for word in words[2:])
    assert flags.pop("command") == f"exec python -u -m launch.train --distributed --config=a.py:b,c {WORKDIR}"
    assert flags == {
        **{"cluster": "pods", "workload": "run", "tpu-type": "v5litepod-16", "num-slices": "2"},
        **{"docker-image": "host/image:1", "max-restarts": "100", "termination-grace-period-seconds": "300"},
        **{"storage": "disk"},
    }
    put(cluster.home / "bin" / "python", f"#!{TOOLS / 'python'}\n{VERB}")
    (cluster.home / "codes").write_text("wait")
    command = next(word for word in words if word.startswith("--command=")).partition("=")[2]
    container = f"trap 'kill -TERM $PID' TERM; ({command}) & PID=$!"
    container += "; while kill -0 $PID 2>/dev/null; do sleep 0.1; done; wait $PID"
    environment = {**cluster.environment, "HOME": str(cluster.home)}
    process = subprocess.Popen(["bash", "-c", container], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    assert process.wait(timeout=30) == 42


def rendered(cluster: Cluster, *words: str, verb: tuple[str, ...] = (WORKDIR,)) -> dict:
    code, out, err = cluster.run("jobset.sh", *JOBSET, *words, "--", *verb)
    assert (code, err) == (0, "")
    return yaml.safe_load(out)


def after_exit(jobset: dict, code: int) -> str:
    """What Kubernetes does with a pod's exit code: Job's podFailurePolicy, backoffLimit, JobSet's failurePolicy."""
    spec, reason = jobset["spec"]["replicatedJobs"][0]["template"]["spec"], "BackoffLimitExceeded"
    container = spec["template"]["spec"]["containers"][0]["name"]
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule["onExitCodes"]
        assert codes["containerName"] == container and codes["operator"] == "In"
        assert rule["action"] in ("FailJob", "Count")
        if code in codes["values"]:
            reason = "PodFailurePolicy" if rule["action"] == "FailJob" else reason
            break
    assert spec["backoffLimit"] == 0 and spec["template"]["spec"]["restartPolicy"] == "Never"
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def test_jobset_restarts_on_42_and_signals_not_on_mistakes(cluster: Cluster) -> None:
    jobset = rendered(cluster, "--max-restarts=7")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert [after_exit(jobset, code) for code in (1, 2)] == ["FailJobSet"] * 2
    assert [after_exit(jobset, code) for code in (42, 134, 137, 143)] == ["RestartJobSet"] * 4


def test_jobset_has_the_fields_that_kubernetes_requires(cluster: Cluster) -> None:
    """Against the schemas of JobSet v1alpha2 and batch/v1."""
    words = ("--claim=data", "--selector=cloud.google.com/gke-accelerator=h100", "--env=NCCL_DEBUG=INFO,A=b=c")
    jobset = rendered(cluster, *words, "--grace=9", verb=("--workdir=/data/run", '--x=$(HOME) "a"\\\nb'))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"} and jobset["metadata"] == {"name": "run"}
    assert set(jobset["spec"]) == {"network", "failurePolicy", "replicatedJobs"}
    (job,) = jobset["spec"]["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"} and job["replicas"] == 1
    spec = job["template"]["spec"]
    assert set(spec) == {"completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy", "template"}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 9
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "h100"}
    (container,) = pod["containers"]
    assert container["image"] == "host/image:cuda" and container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert container["env"] == [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "A", "value": "b=c"}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "data"}} in pod["volumes"]
    # The address of pod 0: <jobset>-<replicated job>-<job>-<pod>.<jobset>, where JobSet makes such names.
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    host = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    assert container["command"] == ["python"] and container["args"] == [
        *["-u", "-m", "launch.train", "--distributed", f"--coordinator={host}:8476", "--num_processes=4"],
        *["--process_id=$(JOB_COMPLETION_INDEX)", "--workdir=/data/run", '--x=$$(HOME) "a"\\\nb'],
    ]
    assert container["ports"] == [{"containerPort": 8476}]


def test_jobset_without_extras(cluster: Cluster) -> None:
    pod = rendered(cluster)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod
    assert [volume["name"] for volume in pod["volumes"]] == ["memory"]
    assert pod["containers"][0]["env"] == [{"name": "NCCL_DEBUG", "value": "WARN"}]


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "launch" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([TOOLS / "hadolint", "launch/Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_has_a_python_new_enough_and_what_a_verb_reads() -> None:
    steps = instructions()
    base = dict(steps)["FROM"]
    required = re.search(r'python_requires=">=(.*?)"', (ROOT / "setup.py").read_text())[1]
    assert Version(re.fullmatch(r"python:([\d.]+)-slim-\w+", base)[1]) >= Version(required)
    copied = {word for name, words in steps if name == "COPY" for word in words.split()[:-1]}
    assert {"requirements/lock.txt", "requirements/gcp.txt", "ediffi_jax", "configs", "launch"} == copied
    kept = set((ROOT / "launch" / "Dockerfile.dockerignore").read_text().split())
    assert {f"!{name}" for name in copied} <= kept and all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("accelerator", ["tpu", "cuda", "gpu"])
def test_the_image_installs_for_one_accelerator(accelerator: str, cluster: Cluster) -> None:
    """The Dockerfile's own shell words, with a pip that only takes notes."""
    environment = {**cluster.environment, "ACCELERATOR": accelerator}
    done = subprocess.run(["sh", "-ec", dict(instructions())["RUN"]], env=environment, capture_output=True, text=True)
    if accelerator == "gpu":
        assert (done.returncode, done.stderr) == (2, "error: ACCELERATOR=gpu; expected tpu or cuda\n")
        assert not cluster.calls("pip")
        return
    assert done.returncode == 0
    extra = re.search(rf'"{accelerator}": \["(.*?)>=', (ROOT / "setup.py").read_text())[1]
    assert cluster.calls("pip") == [["install", "--no-cache-dir", "-r", "requirements/gcp.txt", extra]]
