"""docs/config.md and docs/verbs.md are what `python docs/generate.py` makes of the code, and miss nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from ediffi_jax import models
from ediffi_jax.training import config as training_config


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, root / "docs/generate.py", f"--out={out}"], check=True, cwd=root, timeout=300)
    return out


@pytest.mark.parametrize("page", ["config.md", "verbs.md"])
def test_the_tracked_page_is_the_one_the_command_makes(root: Path, made: Path, page: str) -> None:
    expected, tracked = (made / page).read_text(), (root / "docs" / page).read_text()
    assert tracked == expected, f"docs/{page} is not up to date; run: python docs/generate.py"


def keys(config: ConfigDict, prefix: str = "") -> set[str]:
    found = set()
    for key, value in config.items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}"}
    return found


def test_every_key_has_a_row_with_a_meaning_and_a_default(root: Path) -> None:
    page = (root / "docs/config.md").read_text()
    found = re.findall(r"^\| `([\w.]+)`(?: \\\*)? \| (.*?) \| (?:.*?) ?\| (.*?) \|$", page, re.M)
    rows = {key: (meaning, default) for key, meaning, default in found}
    attributes = {name for model in models.MODELS.values() for name in model.__dataclass_fields__} - {"parent", "name"}
    assert (keys(training_config.default()) | attributes) - set(rows) == set()
    assert [key for key, (meaning, default) in rows.items() if not (meaning.strip() and default.strip())] == []


def test_a_range_is_what_validation_says_of_a_value_outside_it(root: Path) -> None:
    page = (root / "docs/config.md").read_text()
    for path, expected, _ in training_config.RANGES:
        config = training_config.default()
        group, _, name = path.rpartition(".")
        with (config[group] if group else config).unlocked() as part:
            part[name] = -1 if path != "steps_per_call" else 0
        with pytest.raises(training_config.ConfigError) as error:
            training_config.validate(config)
        assert f"config.{path}=" in str(error.value) and str(error.value).endswith(f"expected {expected}")
        assert re.search(rf"^\| `{path}`.*\| {re.escape(expected)} \|", page, re.M)


def test_every_verb_has_a_section_and_it_is_what_help_prints(root: Path) -> None:
    page = (root / "docs/verbs.md").read_text()
    verbs = {f"launch.{path.stem}" for path in (root / "launch").glob("[a-z]*.py")}
    assert set(re.findall(r"^## (\S+)$", page, re.M)) == verbs
    command = [sys.executable, "-m", "launch.sample", "--help"]
    printed = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True, timeout=60).stdout
    assert f"## launch.sample\n\n```text\n{printed.rstrip()}\n```" in page
