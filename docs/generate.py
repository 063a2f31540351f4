"""Writes the pages that are made from the code: docs/config.md and docs/verbs.md.

    python docs/generate.py              # run it after changing a config key, a network's field or a verb's flag
    python docs/generate.py --out=DIR    # beside the tracked ones, to compare

The meaning of a key is the comment beside it in `ediffi_jax/training/config.py`, its range what the validation there
expects; networks and phases are described by their docstrings.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from absl import flags  # noqa: E402

from ediffi_jax import compilation, models, samplers  # noqa: E402
from ediffi_jax.data.degrade import PRESETS  # noqa: E402
from ediffi_jax.training import config, config_files, schedule, state  # noqa: E402
from launch import _main  # noqa: E402

CONFIG_INTRO = """# Every config key

Made by `python docs/generate.py` from `ediffi_jax/training/config.py`; not edited by hand. A recipe (`configs/*.py`)
starts from these defaults, and `--config.path.to.key=value` changes any key on the command line of a verb that takes a
recipe. Keys marked \\* may be changed when a run goes on in its workdir; any other change is refused there. What is
measured in pixels is a side of a square picture; noise levels sigma are on the scale of pictures in [-1, 1].

## The run

"""
VERBS_INTRO = """# Every verb's `--help`

Made by `python docs/generate.py`; not edited by hand. In a clone a verb is run as `python -m launch.NAME`, installed as
`python -m ediffi_jax.launch.NAME`.
"""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "model.name": tuple(models.MODELS),
    "data.degrade": ("", *PRESETS),
    "optimizer.name": state.OPTIMIZERS,
    "optimizer.decay": state.DECAYS,
    "compute_dtype": compilation.DTYPES,
    "nonfinite": config.POLICIES,
    "sampler.name": tuple(samplers.SAMPLERS),
    "dtype": models.DTYPES,  # of a network
    "sampler.threshold": ("None", *config.THRESHOLDS),
}


def main(out: Path) -> None:
    """Writes both pages into a folder."""
    (out / "config.md").write_text(config_page(), encoding="utf-8")
    (out / "verbs.md").write_text(verbs_page(), encoding="utf-8")


def config_page() -> str:
    """The tables of all keys, as Markdown. Raises KeyError naming a key without a comment."""
    meanings = comments(Path(config.__file__).read_text(encoding="utf-8"), "DEFAULTS")
    ranges = {path: expected for path, expected, _ in config.RANGES}
    rows = [(path, meanings[path], ranges.get(path, choices(path)), value) for path, value in leaves(config.DEFAULTS)]
    pages = [CONFIG_INTRO + table(rows)]
    for title, described in (
        ("A phase of `phases`", schedule.Phase),
        ("`model` with `name=unet`", models.UNet),
        ("`model` with `name=efficient_unet`", models.EfficientUNet),
    ):
        pages.append(f"## {title}\n\n" + table(list(fields(described))))
    return "\n".join(pages)


def table(rows: list[tuple[str, str, str, Any]]) -> str:
    """Rows of (key, meaning, range, default)."""
    lines = ["| key | meaning | range | default |", "|---|---|---|---|"]
    for path, meaning, expected, value in rows:
        free = " \\*" if any(path == key or path.startswith(f"{key}.") for key in config_files.FREE) else ""
        shown = "required" if value is ... else f"`{value!r}`".replace("'", '"')
        lines.append(f"| `{path}`{free} | {meaning} | {expected or kind(value)} | {shown} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def choices(path: str) -> str:
    """The values a key may have, where they are few."""
    return ", ".join(f"`{choice}`" if choice else '`""`' for choice in CHOICES.get(path, ()))


def kind(value: Any) -> str:
    """What a key without a range takes, from its default."""
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", tuple: "list"}
    return names.get(type(value), "")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) of everything that is no mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def comments(source: str, name: str) -> dict[str, str]:
    """Maps "a.b" to the comment beside that key of the nested dict `name`, or alone on the lines above it."""
    beside, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = token.line.lstrip().startswith("#")
            (alone if own_line else beside)[token.start[0]] = token.string.lstrip("# ")
    found: dict[str, str] = {}

    def visit(node: ast.Dict, prefix: str) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            path = f"{prefix}{ast.literal_eval(key)}"
            if isinstance(value, ast.Dict) and (len(value.keys) > 1 or value.lineno != value.end_lineno):
                visit(value, f"{path}.")
                continue
            line, above = key.lineno, []
            while line - 1 in alone:
                line -= 1
                above.insert(0, alone[line])
            text = beside.get(value.end_lineno) or " ".join(above)
            path = f"{path}.{ast.literal_eval(value.keys[0])}" if isinstance(value, ast.Dict) else path
            found.update({path: text} if text else {})

    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            visit(node.value, "")
    return found


def fields(described: type) -> Iterator[tuple[str, str, str, Any]]:
    """Rows of a dataclass: its fields, their meaning in the docstring's "Attributes:", and defaults."""
    text = re.sub(r"\n {8,}", " ", inspect.cleandoc(described.__doc__).partition("Attributes:")[2])
    meaning = {}
    for names, words in re.findall(r"^ {4}([\w, ]+): (.*)$", text, re.M):
        meaning |= dict.fromkeys(names.split(", "), words.rstrip("."))
    for field in described.__dataclass_fields__.values():
        if field.name not in ("parent", "name"):
            default = ... if field.default is field.default_factory else field.default
            yield field.name, meaning[field.name], choices(field.name), default


def verbs_page() -> str:
    """Every verb's help, imported one after the other in one process; absl's flags are taken away in between."""
    parts = [VERBS_INTRO]
    for path in sorted((ROOT / "launch").glob("[a-z]*.py")):
        name = f"launch.{path.stem}"
        with load_verb(name) as module:
            parts.append(f"## {name}\n\n```text\n{_main.help_text(module.__doc__, name).rstrip()}\n```\n")
    return "\n".join(parts)


@contextlib.contextmanager
def load_verb(name: str) -> Iterator[Any]:
    """A verb's module, its flags known to absl within the block only."""
    known = set(flags.FLAGS)
    try:
        yield importlib.import_module(name)
    finally:
        for flag in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, flag)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write, default docs/")
    main(parser.parse_args().out)
