"""The wheel holds what an installed user needs; the pins satisfy the bounds; README names what exists."""

from __future__ import annotations

import ast
import email
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

from ediffi_jax.errors import install

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "tensorflow", "gradio", "apache-beam", "matplotlib", "transformers", "diffusers", "libtpu"}
EXTRAS = {"tpu", "cuda", "studio", "beam", "eval", "plan", "convert", "gcp", "wandb", "docs", "dev", "test"}
SCENES = "--config=configs/scenes.py:stage=base,tiny"
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


def elsewhere(wheel: zipfile.ZipFile, folder: Path, *without: str) -> Callable[..., subprocess.CompletedProcess]:
    """Runs verbs of the wheel's contents, from another folder, as if the modules `without` were not installed."""
    wheel.extractall(folder / "site")
    for name in without:
        (folder / "site" / f"{name}.py").write_text(f"raise ImportError('No module named {name}')\n")
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    (folder / "empty").mkdir()

    def run(verb: str, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", f"ediffi_jax.launch.{verb}", *words]
        return subprocess.run(
            command, cwd=folder / "empty", env=environment, capture_output=True, text=True, timeout=400
        )

    return run


@pytest.mark.pod
def test_the_wheel_samples_away_from_the_repository(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    run = elsewhere(wheel, tmp_path, "matplotlib", "torch", "gradio", "apache_beam")
    done = run("sample", "--prompt=a red circle", "--steps=base=2,sr64=1,sr256=1", "--out=out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert Image.open(tmp_path / "empty/out/0000.png").size == (256, 256)


def test_the_wheel_opens_its_cascade_and_recipes_away_from_the_repository(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """The narrow twin: nothing is compiled."""
    run = elsewhere(wheel, tmp_path, "matplotlib", "torch", "gradio", "apache_beam")
    refused = run("sample", "--prompt=a red circle", "--sampler=base=eular", "--out=out")  # once the cascade is there
    assert refused.returncode == 2 and "did you mean 'euler'" in refused.stderr, refused.stderr[-2000:]
    refused = run("train", SCENES, "--config.batch_sise=2", "--workdir=run")  # once the recipe is read
    assert refused.returncode == 2 and "did you mean 'batch_size'" in refused.stderr, refused.stderr[-2000:]


@pytest.mark.parametrize(
    ("verb", "module", "needs"),
    [
        ("evaluate --out=out", "matplotlib", "launch.evaluate needs matplotlib: pip install 'ediffi_jax[eval]'"),
        ("prepare --input=i --out=o", "apache_beam", "launch.prepare needs apache-beam: pip install 'ediffi_jax[beam]'"),
        (
            "plan --config=configs/base64.py --topology=cpu:8 --plot=a.png",
            "matplotlib",
            "launch.plan --plot needs matplotlib: pip install 'ediffi_jax[plan]'",
        ),
    ],
)
def test_a_missing_extra_is_one_line(
    wheel: zipfile.ZipFile, tmp_path: Path, verb: str, module: str, needs: str
) -> None:
    done = elsewhere(wheel, tmp_path, module)(*verb.split())
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (2, f"error: {needs}"), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_a_clone_that_is_not_installed_is_told_to_install_from_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert install("beam") == "pip install '.[beam]'"


def test_a_plain_install_is_small_and_extras_bring_the_rest(requirements: list[Requirement]) -> None:
    plain = {canonicalize_name(requirement.name) for requirement in requirements if requirement.marker is None}
    assert not plain & HEAVY
    brought = {(str(requirement.marker), requirement.name) for requirement in requirements if requirement.marker}
    for extra, name in {"eval": "matplotlib", "studio": "gradio", "beam": "apache-beam", "convert": "torch"}.items():
        assert (f'extra == "{extra}"', name) in brought
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {marker for marker, _ in brought} == {f'extra == "{extra}"' for extra in EXTRAS}
    assert sorted(extra for extra in EXTRAS if f"`[{extra}]`" not in readme) == []


def test_every_pin_admits_the_first_python_3_11() -> None:
    """A system's Python may be 3.11.2, say, while these tests run on a later one."""
    for name in pins("lock.txt", "test.txt", "docs.txt", "gcp.txt", "test_bare.txt"):
        asked = importlib.metadata.metadata(name)["Requires-Python"] or ""
        assert SpecifierSet(asked).contains("3.11.0"), f"{name} asks for Python {asked}"


def test_bounds_admit_the_pins_and_colab(requirements: list[Requirement]) -> None:
    runtime, test, colab = pins("lock.txt"), pins("lock.txt", "test.txt", "docs.txt"), pins("colab.txt")
    assert {"jax", "flax", "numpy", "orbax-checkpoint", "grain"} <= set(colab)
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if requirement.marker is None:
            assert name in runtime, f"{name} has no pin"
            assert requirement.specifier.contains(runtime[name]), requirement
            if name in colab:
                assert requirement.specifier.contains(colab[name]), requirement
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


def stack(name: str, home: Path, path: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": path, "PYENV_ROOT": str(home)}
    command = [shutil.which("bash"), str(ROOT / "launch/test.sh"), f"--stack={name}"]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=60)


def test_a_stack_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dirname").symlink_to(shutil.which("dirname"))
    unknown = stack("colba", tmp_path, os.environ["PATH"])
    without = stack("colab", tmp_path, str(tmp_path / "bin"))
    assert (unknown.returncode, unknown.stderr) == (2, "error: --stack=colba; choices: colab, latest, lock\n")
    assert (without.returncode, without.stderr) == (77, "stack colab: not run, there is no Python 3.13 here\n")


def test_the_core_tests_exist() -> None:
    (names,) = re.findall(r"^core=\(\n(.*?)^\)", (ROOT / "launch/stack.sh").read_text(), re.S | re.M)
    assert len(names.split()) > 10
    assert all((ROOT / "tests" / f"test_{name}.py").exists() for name in names.split())


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
