"""Where a claim is measured: its folder, budget and seeds, and a memory that makes every run resumable.

    value = study.remembered(f"seed{seed}/w{w}", make, n=200, guidance=w)

`make` is called if the part is not there; what it returns is kept as JSON, written whole or not at all. So a killed run
goes on after its last part, and parts should take minutes at most. Longer work, which is training, resumes by itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ediffi_jax.errors import UserError

BUDGETS = ("seconds", "minutes", "hours")
PART = {"settings", "seconds", "value"}  # keys of a part's file


class StudyError(UserError):
    """A folder of another run, or a damaged part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What a claim's `run` is given.

    Attributes:
        folder: the claim's own.
        shared: of all claims: data, embeddings, training runs.
        budget: of `BUDGETS`; each claim says what it does with each.
        seeds: each a whole repetition: of training where something is trained, and of prompts and noise.
        cascade: name or path of the release that the claims without training measure.
        say: tells the reader what is going on.
    """

    folder: Path
    shared: Path
    budget: str
    seeds: tuple[int, ...]
    cascade: str = "scenes"
    say: Callable[[str], None] = print

    def remembered(self, name: str, make: Callable[[], Any], **settings: Any) -> Any:
        """What `make` returned for this name, now or in an earlier run.

        Args:
            name: of the part; may hold folders.
            make: returns what JSON can hold.
            settings: all that the value depends on besides the name, the cascade and the code.

        Raises:
            StudyError: the part was made with other settings, or is damaged.
        """
        path = self.folder / f"{name}.json"
        wanted = json.loads(json.dumps({"cascade": self.cascade, **settings}))
        if path.exists():
            return _read(path, wanted)
        self.say(f"  {self.folder.name}: {name}")
        start = time.monotonic()
        value = make()
        part = {"settings": wanted, "seconds": time.monotonic() - start, "value": value}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(part), encoding="utf-8")
        os.replace(partial, path)
        return json.loads(json.dumps(value))


def seconds_spent(folder: Path) -> float:
    """What a claim's parts took, each in the call that finished it."""
    parts = (json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("*.json"))
    return sum(part["seconds"] for part in parts if isinstance(part, dict) and part.keys() == PART)


def _read(path: Path, wanted: dict[str, Any]) -> Any:
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        held, value = part["settings"], part["value"]
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged; remove it, and the run makes it anew") from error
    for key in sorted({*held, *wanted}):
        if held.get(key) != wanted.get(key):
            was, now = held.get(key), wanted.get(key)
            raise StudyError(f"{path} was made with {key} = {was}, this run has {now}; choose another --out")
    return value
