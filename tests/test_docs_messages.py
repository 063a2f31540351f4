"""Every message that docs/troubleshooting.md quotes is one that the code can print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_commands import blocks

LEAST = {True: 8, False: 20}  # letters of a pattern that are the code's own, at least: in a raise, and elsewhere


def strings(tree: ast.AST, raised: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every string and f-string, and whether it is part of what is raised."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, raised
        if not isinstance(node, ast.JoinedStr):
            yield from strings(node, raised or isinstance(node, ast.Raise))


def pattern(node: ast.AST, raised: bool) -> re.Pattern | None:
    """The messages that a string can make, what is filled in being anything; None where too little of it is fixed."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
    else:
        parts = [None if re.fullmatch("%[sdr]", part) else part for part in re.split("(%[sdr])", node.value)]
    fixed = sum(len(re.findall(r"[a-z]", part)) for part in parts if part)
    if fixed < LEAST[raised]:
        return None
    return re.compile("".join(".*?" if part is None else re.escape(part) for part in parts))


@pytest.fixture(scope="module")
def known(root: Path) -> list[re.Pattern]:
    found = []
    for path in [*(root / "ediffi_jax").rglob("*.py"), *(root / "launch").glob("*.py")]:
        found += [pattern(*string) for string in strings(ast.parse(path.read_text(encoding="utf-8")))]
    return [made for made in found if made]


def test_every_quoted_message_is_in_the_source(root: Path, known: list[re.Pattern]) -> None:
    quoted = "".join(blocks((root / "docs/troubleshooting.md").read_text(), "text")).splitlines()
    assert len(quoted) >= 25
    assert [message for message in quoted if not any(made.search(message) for made in known)] == []


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("error: runs/base holds no checkpoint; expected the workdir of a launch.train that has saved", True),
        ("error: runs/base has no checkpoint; expected the workdir of a launch.train that has saved", False),
        ("error: config.optimizer has no key 'lrr'", True),
        ("error: config.optimizer lacks a key 'lrr'", False),
        ("error: unknown flag --promt; did you mean 'prompt'?", True),
        ("error: no such flag --promt; did you mean 'prompt'?", False),
    ],
)
def test_a_message_that_the_code_cannot_print_is_found(known: list[re.Pattern], message: str, printed: bool) -> None:
    assert any(made.search(message) for made in known) is printed
