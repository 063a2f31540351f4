"""Which records a run was trained on: part files, what a restart removes, and what the loader says it read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from etils import epath
from training_fakes import small_config

from ediffi_jax.data import views
from ediffi_jax.data.loader import Part, make_loader
from ediffi_jax.data.scenes.builder import ScenesConfig, prepare
from ediffi_jax.data.sources import open_scenes
from ediffi_jax.training import records
from ediffi_jax.training.errors import TrainingError
from ediffi_jax.training.records import Records


def note(workdir: Path, start: int, steps: list[int], save: bool = True) -> None:
    log = Records(epath.Path(workdir), start)
    for step in steps:
        log.drawn(step, np.array([[step, 10 * step]]))
    if save:
        log.saved(steps[-1])


def test_what_no_checkpoint_kept_is_not_written_and_what_comes_again_is_written_once(tmp_path: Path) -> None:
    assert records.read(tmp_path) == {}
    note(tmp_path, 0, [1, 2])
    note(tmp_path, 2, [3, 4], save=False)  # killed before it saved
    note(tmp_path, 2, [3])
    note(tmp_path, 3, [4, 5])  # killed, or damaged, while its checkpoint was written
    note(tmp_path, 3, [4])
    assert records.read(tmp_path) == {step: [step, 10 * step] for step in range(1, 5)}
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == [
        "000000001-000000002.0.json", "000000003-000000003.0.json", "000000004-000000004.0.json",
    ]  # fmt: skip


def test_parts_of_several_processes_are_joined_and_a_damaged_one_is_named(tmp_path: Path, monkeypatch) -> None:
    logs = [Records(epath.Path(tmp_path), 0) for _ in range(2)]
    for process, log in enumerate(logs):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        log.drawn(1, np.array([[7 - process], [3 + process]]))
        log.saved(1)
    assert records.read(tmp_path) == {1: [3, 4, 6, 7]}
    (tmp_path / "records" / "000000001-000000001.1.json").write_text('{"1": 3')
    with pytest.raises(TrainingError, match=r"001.1.json cannot be read \(.*\); expected what launch") as caught:
        records.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_loader_names_the_records_whose_pictures_it_gives(tmp_path: Path) -> None:
    prepare(tmp_path, ScenesConfig(resolution=64, num_scenes=16))
    data = {**small_config().data, "name": "scenes", "dir": str(tmp_path), "num_scenes": 16, "source_resolution": 64,
            "resolution": 64, "record_ids": True}  # fmt: skip
    common = {"seed": 0, "num_experts": 2, "batch_size": 4}
    batch = make_loader(data, split="train", **common).batch(8)
    source = open_scenes(str(tmp_path), "train", 64, 16, False)
    for number, image in zip(batch["record_id"].ravel(), batch["image"].reshape(8, 64, 64, 3), strict=True):
        assert np.array_equal(views.decode(source.read([int(number)])[0].encoded), image)
    part = make_loader(data, split="train", expert_part=Part(count=2, held=(1,)), **common).batch(8)
    assert np.array_equal(part["record_id"], batch["record_id"][1:])
    assert "record_id" not in make_loader(data, split="test", **common).batch(0)
    assert "record_id" not in make_loader({**data, "record_ids": False}, split="train", **common).batch(0)
