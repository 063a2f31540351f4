"""The floors of docs/architecture.md: imports go down only; files stay short; nothing is left unfinished."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ediffi_jax"
MAX_LINES = 500

# Room -> floor. A module may import its own room and rooms on lower floors; on its own floor it may
# import what BESIDE names. A module or folder that is in no row fails the test: it has to be placed.
FLOORS = {
    "errors": 0, "stores": 0, "copies": 0, "types": 0, "noise": 0, "compilation": 0, "devices": 0,
    "denoiser": 1, "conditioning": 1, "encoders": 1, "models": 1,
    "experts": 2, "guidance": 2, "samplers": 2, "paint": 2,
    "attention_maps": 3, "cascade": 3, "figures": 3, "grids": 3, "listening": 1, "showing": 3, "stage": 3, "request": 3,
    "samples": 3, "release": 3, "pictures": 3, "data": 3,
    "training": 4, "evaluation": 4,
    "studio_page": 5, "planning": 5, "reproduction": 5,
    "launch": 6, "configs": 6,
}  # fmt: skip

# The few imports between rooms of one floor; a cycle among them fails the test.
BESIDE = {
    "noise": {"errors", "types"},
    "compilation": {"errors"},
    "types": {"errors"},
    "stores": {"errors"},
    "copies": {"errors", "stores"},
    "denoiser": {"conditioning"},
    "encoders": {"conditioning"},
    "models": {"conditioning"},
    "guidance": {"experts"},
    "attention_maps": {"stage"},
    "stage": {"release"},
    "data": {"pictures"},
    "request": {"stage", "release", "pictures"},
    "cascade": {"stage", "request", "release"},
    "samples": {"cascade", "request", "stage", "pictures", "release"},
    "grids": {"cascade", "stage", "pictures"},
    "showing": {"pictures"},
    "evaluation": {"training"},
    "launch": {"configs"},
}


def python_files() -> list[Path]:
    folders = [ROOT / PACKAGE, ROOT / "launch", ROOT / "configs"]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def room_of(module: str) -> str | None:
    """The room of a dotted module name, None for the package's own lazy `__init__` and for other projects."""
    parts = module.split(".")
    if parts[0] in ("launch", "configs"):
        return parts[0]
    if parts[0] != PACKAGE or len(parts) == 1:
        return None
    return parts[1]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, also inside its functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", python_files(), ids=identifier)
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if room in (None, "__init__"):
        return
    assert room in FLOORS, f"{room} has no floor"
    for name in imported(path):
        other = room_of(name)
        if other is None or other == room:
            continue
        assert other in FLOORS, f"{identifier(path)} imports {name}, which is in no room"
        allowed = FLOORS[other] < FLOORS[room] or other in BESIDE.get(room, set())
        assert allowed, f"{identifier(path)} ({room}, floor {FLOORS[room]}) imports {name} (floor {FLOORS[other]})"


def test_rooms_beside_each_other_make_no_cycle() -> None:
    done: list[str] = []
    waiting = set(FLOORS)
    while ready := {room for room in waiting if BESIDE.get(room, set()) <= set(done)}:
        done += sorted(ready)
        waiting -= ready
    assert not waiting, f"a cycle among {sorted(waiting)}"


def test_the_package_itself_imports_its_rooms_lazily() -> None:
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    froms = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    plain = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert (froms | plain) <= {"__future__", "importlib", "typing"}


@pytest.mark.parametrize("path", python_files(), ids=identifier)
def test_a_file_is_short_documented_and_finished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), "no module docstring"
    assert not re.search(r"\bNotImplementedError\b|\bTODO\b|\bFIXME\b|\bXXX\b", text)
    assert not re.search(r"^\s*except\s*:", text, re.M), "a bare except"


def test_files_are_short_in_the_median() -> None:
    lengths = sorted(path.read_text(encoding="utf-8").count("\n") for path in python_files())
    assert lengths[len(lengths) // 2] <= 150


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=identifier)
def test_a_verb_is_short(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= 80
