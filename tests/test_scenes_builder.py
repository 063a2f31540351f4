"""Scenes as records: written without TensorFlow, the same whoever writes them, and never half-written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ediffi_jax.data import scenes
from ediffi_jax.data.scenes import builder
from ediffi_jax.data.scenes.builder import ScenesConfig


def rows(path, split):
    source = tfds.builder_from_directory(path).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return sorted(source, key=lambda row: row["id"])


def test_records_are_what_was_drawn(tmp_path):
    path = builder.prepare(tmp_path, ScenesConfig(resolution=64, num_scenes=40, seed=5))
    assert "tensorflow" not in sys.modules
    assert len(rows(path, "train")) == 40 and len(rows(path, "validation")) == 16
    for split in builder.SPLITS:
        for row in rows(path, split):
            scene = scenes.Scene.from_json(row["scene"].decode())
            picture = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            np.testing.assert_array_equal(picture, scenes.render(scene, 64))
            assert scenes.held_out(scene) == (split == "heldout")
            assert scene.objects[0].colour in row["caption"].decode()


def test_preparing_again_writes_nothing(tmp_path):
    config = ScenesConfig(resolution=16, num_scenes=8)
    path = builder.prepare(tmp_path, config)
    before = {file: file.stat().st_mtime_ns for file in Path(path).iterdir()}
    assert builder.prepare(tmp_path, config) == path == builder.location(tmp_path, config)
    assert before == {file: file.stat().st_mtime_ns for file in Path(path).iterdir()}


def test_other_settings_are_another_folder(tmp_path):
    configs = [
        ScenesConfig(resolution=16, num_scenes=8),
        ScenesConfig(resolution=32, num_scenes=8),
        ScenesConfig(resolution=16, num_scenes=9),
        ScenesConfig(resolution=16, num_scenes=8, seed=1),
        ScenesConfig(resolution=16, num_scenes=8, num_held=3),
    ]
    assert len({builder.location(tmp_path, config) for config in configs}) == len(configs)


def test_records_do_not_depend_on_the_number_of_processes():
    one, two = (ScenesConfig(resolution=16, num_scenes=300, processes=n) for n in (1, 2))
    assert list(builder.records(one, "train")) == list(builder.records(two, "train"))


def test_a_seed_shows_the_same_scenes_at_every_resolution():
    small, large = (builder.draw("train", 3, 7, resolution) for resolution in (16, 64))
    assert small["scene"] == large["scene"] and small["caption"] == large["caption"]
    assert builder.draw("train", 3, 8, 16)["scene"] != small["scene"]
    assert builder.draw("validation", 3, 7, 16)["scene"] != small["scene"]


def test_an_error_on_the_way_leaves_no_data_set(tmp_path, monkeypatch):
    config = ScenesConfig(resolution=16, num_scenes=20)
    draw = builder.draw

    def stops(split, index, *rest):
        if index == 11:
            raise KeyboardInterrupt
        return draw(split, index, *rest)

    monkeypatch.setattr(builder, "draw", stops)
    with pytest.raises(KeyboardInterrupt):
        builder.prepare(tmp_path, config)
    assert not builder.location(tmp_path, config).exists()
    monkeypatch.setattr(builder, "draw", draw)
    assert len(rows(builder.prepare(tmp_path, config), "train")) == 20


def test_a_killed_process_leaves_no_data_set(tmp_path):
    config = ScenesConfig(resolution=256, num_scenes=3000)
    code = (
        "from ediffi_jax.data.scenes import builder; "
        f"builder.prepare({str(tmp_path)!r}, builder.ScenesConfig(resolution=256, num_scenes=3000, processes=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("scenes/*/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert list(tmp_path.glob("scenes/*/incomplete.*"))  # it had begun
    assert not builder.location(tmp_path, config).exists()


def test_old_leftovers_are_removed_and_fresh_ones_kept(tmp_path):
    config = ScenesConfig(resolution=16, num_scenes=8)
    parent = Path(builder.location(tmp_path, config)).parent
    old, fresh = parent / "incomplete.OLD_1.0.0", parent / "incomplete.NEW_1.0.0"
    for leftover in (old, fresh):
        leftover.mkdir(parents=True)
    day_ago = time.time() - 86400
    os.utime(old, (day_ago, day_ago))
    builder.prepare(tmp_path, config)
    assert not old.exists() and fresh.exists()


def test_bad_sizes_and_folders_are_refused(tmp_path):
    with pytest.raises(scenes.SceneError, match="num_scenes >= 1"):
        ScenesConfig(num_scenes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(scenes.SceneError, match="cannot write"):
        builder.prepare(tmp_path / "file", ScenesConfig(resolution=16, num_scenes=8))
