"""docs/model_card.md says of the bundled cascade what its files say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open


def parameters(file: Path) -> int:
    with safe_open(file, "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())


@pytest.fixture(scope="module")
def card(root: Path) -> str:
    return (root / "docs/model_card.md").read_text()


def test_every_stage_is_described_as_it_is(root: Path, card: str) -> None:
    folder = root / "ediffi_jax/releases/scenes"
    described = json.loads((folder / "cascade.json").read_text())
    for stage in described["stages"]:
        experts, cuts, sampler = len(stage["cuts"]) + 1, stage["cuts"], stage["sampler"]
        row = [
            stage["name"],
            f"{stage['low_resolution'] or 'noise'} → {stage['resolution']}",
            stage["model"]["name"],
            f"{experts} × {parameters(folder / stage['file']) / experts / 1e6:.2f} M",
            f"{experts} ({', '.join(map(str, cuts))})" if cuts else "1",
            f"{sampler['name']}, {sampler['steps']} steps",
            f"{sampler['guidance']:g}",
        ]
        assert f"| {' | '.join(row)} |" in card


def test_encoders_size_and_images_are_those_of_the_files(root: Path, card: str) -> None:
    folder = root / "ediffi_jax/releases/scenes"
    for name in ("t5", "clip"):
        size = f"{parameters(folder / f'encoders/{name}/model.safetensors') / 1e6:.2f} M"
        assert size in card, (name, size)
    weights = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert re.search(r"([\d.]+) MB, float16", card)[1] == f"{weights / 1e6:.1f}"
    sittings, images = json.loads((folder / "cascade.json").read_text())["trained"]["base"], 0
    while sittings:
        images += sittings[0]["images"]
        sittings = sittings[0].get("init_from", [])
    assert images == 592_000 + 432_000 and "592,000" in card and "432,000" in card
