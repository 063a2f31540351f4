"""The wheel holds what an installed user needs; the pins satisfy the bounds; README names what exists."""

from __future__ import annotations

import ast
import email
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
COLAB = {"jax": "0.7.2", "flax": "0.11.2", "numpy": "2.1.3", "orbax-checkpoint": "0.12.4", "grain": "0.2.18"}
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci/run"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("ediffi_jax", "launch", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(command, check=True, timeout=300)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "ediffi_jax" and metadata["Requires-Python"] == ">=3.11"
    return [Requirement(line) for line in metadata.get_all("Requires-Dist")]


def pins(*names: str) -> dict[str, str]:
    lines = "\n".join((ROOT / "requirements" / name).read_text() for name in names)
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", lines, re.M)}


def test_the_wheel_holds_every_source_file_and_release(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    expected = {f"ediffi_jax/{path.relative_to(ROOT / 'ediffi_jax')}" for path in (ROOT / "ediffi_jax").rglob("*.py")}
    for kind in ("js", "css", "html"):
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "ediffi_jax").rglob(f"*.{kind}")}
    assert "ediffi_jax/studio_page/painter.js" in expected
    releases = ROOT / "ediffi_jax" / "releases"
    expected |= {str(path.relative_to(ROOT)) for path in releases.rglob("*") if path.is_file()}
    expected |= {f"ediffi_jax/launch/{path.name}" for path in (ROOT / "launch").glob("*.py")}
    expected |= {f"ediffi_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert sorted(expected - inside) == []


def test_nothing_but_the_package_is_put_beside_other_packages(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ediffi_jax"}


def test_a_release_in_the_wheel_is_the_one_in_the_repository(wheel: zipfile.ZipFile) -> None:
    for path in (ROOT / "ediffi_jax" / "releases").rglob("*.json"):
        inside = wheel.read(str(path.relative_to(ROOT)))
        assert hashlib.sha256(inside).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_verbs_start_from_the_installed_package(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for verb in ("train", "sample"):
        command = [sys.executable, "-m", f"ediffi_jax.launch.{verb}", "--help"]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert "--" in result.stdout, result.stderr[-2000:]
        assert "Traceback" not in result.stderr


def test_bounds_admit_the_pins_and_colab(requirements: list[Requirement]) -> None:
    runtime, test = pins("lock.txt"), pins("lock.txt", "test.txt", "docs.txt")
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if requirement.marker is None:
            assert name in runtime, f"{name} has no pin"
            assert requirement.specifier.contains(runtime[name]), requirement
            if name in COLAB:
                assert requirement.specifier.contains(COLAB[name]), requirement
        elif requirement.marker.evaluate({"extra": "test"}):
            assert requirement.specifier.contains(test[name]), requirement
    assert "torch" not in runtime


def test_every_import_of_another_project_is_declared(requirements: list[Requirement]) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements}
    distribution = {
        "PIL": "pillow", "cv2": "opencv-python-headless", "orbax": "orbax-checkpoint", "absl": "absl-py",
        "tensorboardX": "tensorboardx", "jaxlib": "jax",
    }  # fmt: skip
    missing = set()
    for folder in ("ediffi_jax", "launch", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                for top in {name.split(".")[0] for name in names} - {"ediffi_jax", "launch", "configs"}:
                    if top not in sys.stdlib_module_names:
                        name = canonicalize_name(distribution.get(top, top))
                        missing |= {f"{path.relative_to(ROOT)}: {top}"} if name not in declared else set()
    assert not missing


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_valid_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_continuous_integration_runs_exactly_the_test_command() -> None:
    assert (ROOT / ".ci/run").read_text().split("\n")[1] == "exec bash launch/test.sh"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def bash(script: str, cwd: Path, path: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    script = f"source '{ROOT / 'launch/environment.sh'}'; {script}"
    command = [shutil.which("bash"), "-c", script]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_an_installed_environment_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    fake = tmp_path / ".venv/bin/python"
    fake.write_text('#!/bin/sh\n[ "$3" = install ] && touch installed\nexit 0\n')
    fake.chmod(0o755)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    assert bash('environment test && echo "$PYTHON"', tmp_path).stdout.endswith(f"{fake}\n")
    assert (tmp_path / "installed").exists()
    (tmp_path / "installed").unlink()
    assert bash("environment test", tmp_path).stdout == ""
    assert not (tmp_path / "installed").exists()
    with (tmp_path / "requirements/lock.txt").open("a") as lock:
        lock.write("another==1\n")
    assert bash("environment test", tmp_path).returncode == 0
    assert (tmp_path / "installed").exists()


def test_no_suitable_python_is_one_line(tmp_path: Path) -> None:
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = bash("environment test", tmp_path, path=str(old.parent))
    assert result.returncode == 2
    assert result.stderr.strip() == "error: Python 3.11 or newer is needed, and none was found on PATH"


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    verbs = set(re.findall(r"launch\.([a-z_]+)", text))
    assert {"train", "branch", "export", "sample"} <= verbs
    paths = {f"launch/{verb}.py" for verb in verbs}
    paths |= set(re.findall(r"\b((?:launch|configs|docs|ediffi_jax|requirements)/[\w./]*\w)", text))
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
    for cell in re.findall(r"```python\n(.*?)```", text, re.S):
        ast.parse(cell)


def test_the_package_imports_without_jax_or_tensorflow() -> None:
    code = "import sys, ediffi_jax; assert not {'jax', 'tensorflow', 'torch', 'tensorflow_datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
    assert importlib.util.find_spec("ediffi_jax") is not None
