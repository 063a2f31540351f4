"""Configs as files and flags: recipes in Python, overrides on the command line, `config.json` in a workdir.

    --config=configs/scenes.py:stage=base,tiny  --config.optimizer.lr=1e-4  --config.phases.0.steps=200
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
import types
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

import ediffi_jax
from ediffi_jax import stores
from ediffi_jax.errors import nearest
from ediffi_jax.training.config import default
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.storage import writing

PACKAGE = Path(ediffi_jax.__file__).resolve().parent
# Keys that may differ when a run goes on: they change what is observed and where it runs, not what is learned.
FREE = ("log_every", "eval_every", "eval_batches", "save_every", "sample_every", "keep", "profile", "wandb",
        "nonfinite", "rollbacks", "hang_minutes", "mesh", "accumulate", "steps_per_call", "data.dir", "data.workers",
        "data.embeddings", "data.record_ids", "data.max_bad_fraction", "sampler", "aug.level")  # fmt: skip


def load(spec: str) -> ConfigDict:
    """Runs `get_config` of a recipe.

    Args:
        spec: ``FILE.py`` or ``FILE.py:arguments``; FILE relative to the current folder or the project. It may
            share modules with its neighbours: ``from . import _paper``.

    Raises:
        ConfigError: no such file (the nearest one is named), or a file without `get_config`.
    """
    name, _, arguments = spec.partition(":")
    roots = (Path(), PACKAGE.parent, PACKAGE)
    path = next((root / name for root in roots if (root / name).is_file()), None)
    if path is None:
        known = {f"configs/{file.name}" for root in roots[1:] for file in (root / "configs").glob("[a-z]*.py")}
        raise ConfigError(f"--config: no file {name!r}{nearest(name, known)}")
    package = _package_of(path.parent)
    module_spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"--config: {name!r} is not a Python file; expected a recipe such as configs/scenes.py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config: {name!r} has no get_config(arguments)")
    return module.get_config(arguments)


def _package_of(folder: Path) -> str:
    """The name of a package made of a folder's recipes, in which they share modules by `from . import`.

    Unlike an entry in `sys.path`, it cannot make a recipe hide a module of the same name (such as base64).
    """
    name = f"recipes_{zlib.crc32(os.fsencode(folder.resolve())):08x}"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder.resolve())]
        sys.modules[name] = package
    return name


def parse_arguments(text: str, **choices: Sequence[str] | bool) -> dict[str, Any]:
    """Parses what follows the colon of ``--config=FILE:stage=base,tiny``.

    Args:
        text: comma-separated ``name=value`` or, for switches, ``name``.
        choices: per argument its valid values, of which the first is the default, or False for a switch.

    Raises:
        ConfigError: an unknown name or value, with the nearest.
    """
    result: dict[str, Any] = {name: valid[0] if valid else False for name, valid in choices.items()}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if name not in choices:
            raise ConfigError(f"unknown config argument {name!r}{nearest(name, choices)}")
        valid = choices[name]
        if not valid:
            valid = ("true", "false")
            value = value if equals else "true"
        if value not in valid:
            raise ConfigError(f"config argument {name}={value!r} is unknown{nearest(value, valid)}")
        result[name] = value == "true" if not choices[name] else value
    return result


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
    """Applies ``a.b=value`` assignments in place; a value takes the type of what it replaces.

    Raises:
        ConfigError: an unknown key (with the nearest), or a value of another type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--config.{path} needs a value: --config.{path}=VALUE")
        names = path.replace("[", ".").replace("]", "").split(".")
        node: Any = config
        for depth, name in enumerate(names):
            if isinstance(node, tuple):
                valid = [str(i) for i in range(len(node))]
            else:
                valid = list(node) if isinstance(node, Mapping | ConfigDict) else []
            if name not in valid:
                where = ".".join(("config", *names[:depth]))
                raise ConfigError(f"{where} has no key {name!r}{nearest(name, valid)}")
            parent, key = node, int(name) if isinstance(node, tuple) else name
            node = node[key]
        if isinstance(parent, tuple):
            raise ConfigError(f"--config.{path}: name a key, such as --config.{path}.steps=100")
        try:
            value = _typed(path, text, node)
            if path == "model.blocks" and isinstance(value, tuple):  # an int, or one a level
                del parent[key]  # and with it the key's type
            parent[key] = value
        except TypeError as error:  # a config dict that holds its key to one type
            raise ConfigError(f"--config.{path}={text!r} is not {type(node).__name__}; it was {node!r}") from error


def _typed(path: str, text: str, old: Any) -> Any:
    """Reads `text` as the type of `old`."""
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, tuple):
        value = value if isinstance(value, tuple | list) else (value,)
        if path == "phases" and not all(isinstance(item, dict) for item in value):
            raise ConfigError(f"--config.{path}={text!r} is no list of {{'steps': 1000, ...}}; it was {to_json(old)}")
        return tuple(ConfigDict(item) if isinstance(item, dict) else item for item in value)
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if old is None or type(value) is type(old) or path == "model.blocks" and isinstance(value, tuple):
        return value
    raise ConfigError(f"--config.{path}={text!r} is not {type(old).__name__}; it was {old!r}")


def to_json(config: ConfigDict) -> dict[str, Any]:
    """A config as plain JSON data: dicts, lists, numbers, strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, ConfigDict | Mapping):
            return {key: plain(value[key]) for key in value}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(config)


def from_json(data: Mapping[str, Any]) -> ConfigDict:
    """Inverse of `to_json`: lists become tuples, dicts inside them config dicts."""

    def rich(value: Any) -> Any:
        if isinstance(value, Mapping):
            return ConfigDict({key: rich(item) for key, item in value.items()})
        return tuple(rich(item) for item in value) if isinstance(value, list | tuple) else value

    return rich(data)


def read_workdir(workdir: str | epath.Path) -> ConfigDict | None:
    """The config a workdir was made with, or None for a new one.

    Keys that came after the version which wrote it have their defaults.

    Raises:
        ConfigError: its `config.json` cannot be read.
        StoreError: it is in an object store that refused or did not answer.
    """
    path = stores.at(workdir) / "config.json"
    try:
        with stores.reaching(path):
            if not path.exists():
                return None
            text = path.read_text()
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"it holds {type(data).__name__}, not the keys of a config")
        return from_json(with_defaults(data))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the default of every key it lacks; `model` and `phases` stay as they are."""
    filled = to_json(default()) | dict(data)
    for key, defaults in to_json(default()).items():
        if key != "model" and isinstance(defaults, dict) and isinstance(filled[key], Mapping):
            filled[key] = defaults | dict(filled[key])
    return filled


def write_workdir(workdir: str | epath.Path, config: ConfigDict) -> None:
    """Stores the config in a workdir; a kill at any moment leaves the old `config.json` or the new one.

    Raises:
        ConfigError: the folder cannot be made or written.
        StorageError, RestartError: the object store failed.
    """
    folder = stores.at(workdir)
    text = json.dumps(to_json(config), indent=2) + "\n"
    if stores.is_remote(folder):
        with writing(folder / "config.json"):
            (folder / "config.json").write_text(text)
        return
    temporary = folder / f"config.json.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text)
            temporary.replace(folder / "config.json")
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir: {folder} cannot be written: {error}") from error


def check_same_run(workdir: str | epath.Path, config: ConfigDict) -> None:
    """Refuses to go on in a workdir that was made with another config.

    Keys in `FREE` may differ; so may how the run ends: the steps of the last phase and the cool-down, and
    further phases may follow.

    Raises:
        ConfigError: naming the first key that differs and both values.
    """
    old = read_workdir(workdir)
    if old is None:
        return
    before, now = (_flatten(_phases_in_full(to_json(each))) for each in (old, config))
    last = f"phases.{len(old.phases) - 1}.steps"
    for key in sorted(before.keys() | now.keys(), key=lambda key: (key != "stage", key)):
        extends = key in (last, "optimizer.cooldown") or key.startswith("phases.") and int(key.split(".")[1]) >= len(old.phases)
        if extends or any(key == free or key.startswith(free + ".") for free in FREE):
            continue
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{workdir} holds another run: config.{key} is {before.get(key)!r} there and {now.get(key)!r} here;"
                " expected the same config or a new --workdir"
            )


def _phases_in_full(data: dict[str, Any]) -> dict[str, Any]:
    """A config whose phases name every key: `launch.branch` writes those that a recipe leaves out."""
    absent = {"cuts": [], "parents": [], "expert": -1}
    phases = [absent | phase if isinstance(phase, dict) else phase for phase in data["phases"]]
    return {**data, "phases": phases}


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as {dotted path: value}; lists of numbers stay whole."""
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        data = {str(index): item for index, item in enumerate(data)}
    if not isinstance(data, dict):
        return {prefix[:-1]: data}
    return {path: value for key, item in data.items() for path, value in _flatten(item, f"{prefix}{key}.").items()}
