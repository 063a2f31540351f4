"""The notebooks are what their sources make, stay small, hold Colab's jax, and run from top to bottom.

In an ordinary run with the values of `SMALL`; marked `pod`, as a reader runs them.
"""

from __future__ import annotations

import builtins
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
NAMES = [path.stem for path in sorted(FOLDER.glob("[0-9]*.ipynb"))]
MOST_BYTES = 1_500_000
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiled in half the time

TINY = [
    "model.channels=8", "model.channel_mults=(1,)", "model.attention_resolutions=()",
    "model.cross_attention_resolutions=(16,)", "batch_size=4", "save_every=0",
]  # fmt: skip
SMALL = {
    "01_sample": {"STEPS": {"base": 2, "sr64": 1, "sr256": 1}},
    "02_train_experts": {
        "STEPS": 2, "EXPERT_STEPS": 1, "IMAGES": 4, "LEVELS": 4, "CUTS": (0.5,),
        "LOOK_AT": "experts", "SWITCHES": (0.0, 1.0),
        "CHANGES": [*TINY, "data.num_scenes=48", "data.dir=data", "sampler.steps=2"],
    },
    "03_your_data": {"PICTURES": 40, "STEPS": 1, "SAMPLE_STEPS": 1, "CHANGES": TINY},
    "04_plan_a_pod": {"TOPOLOGY": "cpu:2", "MESHES": [""], "CHANGES": TINY},
}  # fmt: skip


def load_build() -> object:
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    return cell


def run(name: str, folder: Path, values: dict[str, object], flags: str = QUICK) -> nbformat.NotebookNode:
    """Runs a notebook with other values for some of its parameters; a name that it has not fails."""
    notebook = read(name)
    cell = parameters(notebook)
    known: dict[str, object] = {}
    exec(cell.source, known)
    assert set(values) <= set(known), f"{name} has no parameters {sorted(set(values) - set(known))}"
    cell.source = "\n".join([cell.source, *(f"{key} = {value!r}" for key, value in values.items())])
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # pictures are shown
    build.run(notebook, folder, environment | {"XLA_FLAGS": flags})
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many cells show one."""
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in one or "image/jpeg" in one for one in data)


def test_every_source_has_its_notebook() -> None:
    assert NAMES == [path.stem for path in build.sources()] == list(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_source_makes(name: str) -> None:
    found, made = read(name), build.read_source(FOLDER / f"{name}.py")
    nbformat.validate(found)
    assert found.metadata == made.metadata
    for mine, expected in zip(found.cells, made.cells, strict=True):
        assert (mine.id, mine.cell_type, mine.metadata) == (expected.id, expected.cell_type, expected.metadata)
        assert mine.source == expected.source, f"python notebooks/build.py {name} makes it again"


def test_outputs_stay_while_no_code_changes() -> None:
    before, made = read("01_sample"), build.read_source(FOLDER / "01_sample.py")
    build.keep_outputs(made, before)
    assert pictures(made) == pictures(before) > 0
    made = build.read_source(FOLDER / "01_sample.py")
    made.cells[-2].source += "\nprint()"
    build.keep_outputs(made, before)
    assert pictures(made) == 0


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.*")) < MOST_BYTES


def test_all_install_alike() -> None:
    cells = [next(cell.source for cell in read(name).cells if cell.cell_type == "code") for name in NAMES]
    assert len({"\n".join(line for line in cell.split("\n") if "EXTRAS =" not in line) for cell in cells}) == 1


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the first cell where the package is missing; returns pip's command and the constraints."""

    def start(versions: dict[str, str], repository: str) -> tuple[list[str], list[str]]:
        ran: list[list[str]] = []
        there = [type("Found", (), {"name": name, "version": version}) for name, version in versions.items()]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: there)
        monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
        source = next(cell.source for cell in read("03_your_data").cells if cell.cell_type == "code")
        before, after = source.split('REPOSITORY = "git+https://github.com/OWNER/ediffi_jax"')
        exec(f"{before}REPOSITORY = {repository!r}{after}", {"__builtins__": builtins})
        return ran[0], Path("held.txt").read_text().split()

    return start


def test_installing_holds_what_colab_has(install) -> None:
    colab = {"jax": "0.7.2", "jaxlib": "0.7.2", "numpy": "2.1.3", "protobuf": "5.29.6", "flax": "0.11.2"}
    command, held = install(colab, "git+https://example.org/ediffi_jax")
    assert command[:4] == [sys.executable, "-m", "pip", "install"] and "--upgrade" not in command
    assert command[-3:] == ["-c", "held.txt", "ediffi_jax[beam] @ git+https://example.org/ediffi_jax"]
    expected = ["jax==0.7.2", "jaxlib==0.7.2", "numpy==2.1.3", "protobuf==5.29.6", "tensorflow-metadata<=1.17.2"]
    assert held == expected


def test_without_an_address_the_first_cell_asks_for_one(install) -> None:
    with pytest.raises(SystemExit, match="Put the repository's address into REPOSITORY"):
        install({"jax": "0.7.2"}, "git+https://github.com/OWNER/ediffi_jax")


@pytest.mark.parametrize(("name", "shown"), [(name, 1) for name in NAMES if name != "04_plan_a_pod"])
def test_a_notebook_runs(name: str, shown: int, tmp_path: Path) -> None:
    assert pictures(run(name, tmp_path, SMALL[name])) >= shown


def test_the_planner_runs(tmp_path: Path) -> None:
    ran = run("04_plan_a_pod", tmp_path, SMALL["04_plan_a_pod"])
    said = "".join(output.get("text", "") for cell in ran.cells for output in cell.get("outputs", []))
    assert "cpu:2: 2 devices" in said and "mesh expert=1 data=2 fsdp=1" in said


@pytest.mark.pod
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_at_full_length(name: str, tmp_path: Path) -> None:
    own = {"CHANGES": ["data.num_scenes=4000", "data.dir=data"]} if name == "02_train_experts" else {}
    run(name, tmp_path, own, flags="")
