"""The commands in the documentation: found in the pages, and checked with the flags and recipes that there are.

    python tests/doc_commands.py FILE.md …      # prints what is wrong with the commands of these pages, as JSON

A command is what follows `python -m launch.VERB` in a code block or in `inline code`. Its flags are parsed as the verb
would; a recipe is loaded, its changed keys applied, and the config validated. Nothing runs.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Command = tuple[str, list[str]]  # verb, flags


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def lines(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, continued ones joined; and inline code."""
    fenced = [line for block in blocks(text, r"\w*") for line in block.replace("\\\n", " ").splitlines()]
    indented = re.findall(r"^(?: {4}|\t)(.*)$", text.replace("\\\n", " "), re.M)
    yield from (line.strip() for line in [*fenced, *indented])
    yield from re.findall(r"`([^`\n]+)`", text)


def commands(text: str) -> list[Command]:
    """Verbs and their flags; what stands for something (…, $FLAGS) is left out, a run of several verbs is several."""
    found = set()
    for line in lines(text):
        match = re.match(r"(?:\w+=\S+ )*python -m (?:ediffi_jax\.)?launch\.([a-z_]+)\b(.*)", line)
        if not match:
            continue
        words = shlex.split(match[2], comments=True)
        words = words[: next((i for i, word in enumerate(words) if word[0] in "|>&;"), len(words))]
        words = [word for word in words if not word.startswith("$") and word not in ("…", "...")]
        where = words.index("--") if "--" in words else len(words)
        found.add((match[1], *words[:where]))
        if where < len(words):
            found.add(("train", *words[where + 1 :]))
    return [(verb, flags) for verb, *flags in sorted(found)]


def mistakes(pages: list[Path]) -> list[str]:
    """One line for each command that its verb would refuse, or whose recipe or keys are not there."""
    sys.path.insert(0, str(ROOT))
    from absl import flags

    from docs.generate import load_verb
    from ediffi_jax.errors import UserError
    from ediffi_jax.training import config, config_files
    from launch import _main

    by_verb, wrong = defaultdict(list), []
    for page in pages:
        for verb, words in commands(page.read_text(encoding="utf-8")):
            by_verb[verb].append((page.name, words))
    for verb, uses in by_verb.items():
        if not (ROOT / f"launch/{verb}.py").is_file():
            wrong += [f"{page}: there is no launch.{verb}" for page, _ in uses]
            continue
        with load_verb(f"launch.{verb}"):
            for page, words in uses:
                if "--help" in words:
                    continue
                try:
                    flags.FLAGS.unparse_flags()
                    known, overrides = _main.split_overrides([verb, *words])
                    if rest := _main.parse(known):
                        raise UserError(f"unexpected argument {rest[0]!r}")
                    recipe = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
                    if overrides or recipe:
                        made = config_files.load(recipe) if recipe and "$" not in recipe else config.default()
                        config_files.override(made, overrides)
                        config.validate(made)
                except UserError as error:
                    wrong.append(f"{page}: python -m launch.{verb} {shlex.join(words)}: {error}")
    return wrong


if __name__ == "__main__":
    print(json.dumps(mistakes([Path(name) for name in sys.argv[1:]])))
