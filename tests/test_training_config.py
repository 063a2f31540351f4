"""Configs: overrides, recipes, schedules, meshes, and every mistake in one line that names what is near."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from ediffi_jax.errors import UserError
from ediffi_jax.training import config as training_config
from ediffi_jax.training import config_files as files
from ediffi_jax.training.errors import ConfigError, TrainingError
from ediffi_jax.training.mesh import check_batch_size, leaf_spec, make_mesh
from ediffi_jax.training.schedule import Phase, parse_phases, warn_of_strangers


@pytest.fixture
def config() -> ConfigDict:
    return training_config.default()


def test_overrides_take_the_type_of_what_they_replace(config: ConfigDict) -> None:
    config.phases = ({"steps": 1, "cuts": (), "parents": ()}, {"steps": 1, "cuts": (0.5,), "parents": (0, 0)})
    words = ["optimizer.lr=1", "ema.warmup=false", "data.name=synthetic", "phases.1.cuts=0.1,0.9", "phases[0].steps=7",
             "sampler.interval=0.1,5.0", "init_from=", "optimizer.decay=cosine"]  # fmt: skip
    files.override(config, words)
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)
    assert config.ema.warmup is False
    assert config.data.name == "synthetic"
    assert config.phases[1]["cuts"] == (0.1, 0.9)
    assert config.phases[0]["steps"] == 7
    assert config.sampler.interval == (0.1, 5.0)
    files.override(config, ["phases.1.cuts=0.25"])
    assert config.phases[1]["cuts"] == (0.25,)


def test_blocks_may_be_one_a_level() -> None:
    config = files.load("configs/scenes.py:stage=base")
    files.override(config, ["model.blocks=(1,2,1)"])
    assert config.model.blocks == (1, 2, 1)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.ler=1", "config.optimizer has no key 'ler'; did you mean 'lr'?"),
        ("optimzer.lr=1", "config has no key 'optimzer'; did you mean 'optimizer'?"),
        ("phases.3.steps=1", "config.phases has no key '3'"),
        ("seed.x=1", "config.seed has no key 'x'"),
        ("batch_size=many", "'many' is not int"),
        ("batch_size=1.5", "'1.5' is not int"),
        ("ema.warmup=3", "'3' is not bool"),
        ("seed", "needs a value"),
        ("phases.0=3", "name a key"),
        ("batch_size=(1,2)", "'(1,2)' is not int"),
        ("phases=5", "--config.phases='5' is no list of"),
    ],
)
def test_overrides_that_cannot_be(config: ConfigDict, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=".*") as caught:
        files.override(config, [word])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["ema.decay=1.0"], "config.ema.decay=1.0; expected"),
        (["conditioning.t5=1.5"], "config.conditioning.t5=1.5; expected a probability"),
        (["batch_size=0"], "config.batch_size=0; expected 1 or more"),
        (["steps_per_call=0"], "config.steps_per_call=0; expected a number of steps, 1 or more"),
        (["steps_per_call=3"], "config.log_every=50; expected a multiple of config.steps_per_call=3"),
        (["accumulate=0"], "config.accumulate=0; expected a number of parts, 1 or more"),
        (["profile=9:3"], "expected FIRST:LAST"),
        (["save_every=-1"], "config.save_every=-1"),
        (["eval_batches=0"], "config.eval_batches=0; expected 1 or more, or config.eval_every=0"),
        (["aug.level=-1"], "config.aug.level=-1.0; expected 0 or more"),
        (["sampler.name=eular"], "unknown sampler 'eular'; did you mean 'euler'?"),
        (["sampler.steps=0"], "steps is 0; expected a whole number >= 1"),
        (["sampler.threshold=dinamic"], "'dinamic' is unknown; did you mean 'dynamic'?"),
        (["sampler.sigma_min=90.0"], "expected 0 < sigma_min < sigma_max"),
        (["phases=()"], "config.phases is empty"),
    ],
)
def test_values_that_cannot_be(config: ConfigDict, changes: list[str], message: str) -> None:
    files.override(config, changes)
    with pytest.raises(ConfigError) as caught:
        training_config.validate(config)
    assert message in str(caught.value)


def test_without_evaluation_no_batches_are_asked_for(config: ConfigDict) -> None:
    config.eval_every = config.eval_batches = 0
    training_config.validate(config)


def test_unknown_and_missing_keys_are_named(config: ConfigDict) -> None:
    extra = config.copy_and_resolve_references()
    extra.lock = False
    with extra.unlocked():
        extra.batchsize = 3
    with pytest.raises(ConfigError, match="unknown key 'batchsize'; did you mean 'batch_size'"):
        training_config.validate(extra)
    with config.unlocked():
        del config.seed
    with pytest.raises(ConfigError, match="lacks key 'seed'"):
        training_config.validate(config)


@pytest.mark.parametrize("stage", ["base", "sr64", "sr256"])
@pytest.mark.parametrize("tiny", ["", ",tiny"])
def test_every_recipe_is_valid(stage: str, tiny: str) -> None:
    config = files.load(f"configs/scenes.py:stage={stage}{tiny}")
    phases = training_config.validate(config)
    assert config.stage == stage
    assert phases[0].num_experts == 1
    again = files.from_json(json.loads(json.dumps(files.to_json(config))))
    assert files.to_json(again) == files.to_json(config)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("configs/scene.py", "no file 'configs/scene.py'; did you mean 'configs/scenes.py'"),
        ("configs/scenes.py:stage=sr46", "stage='sr46' is unknown; did you mean 'sr64'"),
        ("configs/scenes.py:stge=base", "unknown config argument 'stge'; did you mean 'stage'"),
        ("configs/scenes.py:tiny=maybe", "tiny='maybe' is unknown"),
    ],
)
def test_recipes_that_are_not_there(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        files.load(spec)
    assert message in str(caught.value)


def test_a_workdir_belongs_to_one_run(tmp_path: Path, config: ConfigDict) -> None:
    files.write_workdir(tmp_path, config)
    config.log_every, config.mesh.data = 1, 2  # what is watched, and where it runs
    config.phases = (*config.phases, {"steps": 5, "cuts": (0.5,), "parents": (0, 0)})  # and what comes after
    config.phases[0]["steps"] = 3
    files.check_same_run(tmp_path, config)
    files.write_workdir(tmp_path, config)
    config.optimizer.lr = 0.5
    with pytest.raises(ConfigError, match=r"config.optimizer.lr is 0.0003 there and 0.5 here"):
        files.check_same_run(tmp_path, config)
    config.optimizer.lr = 3e-4
    config.phases[0]["steps"] = 4
    with pytest.raises(ConfigError, match=r"config.phases.0.steps is 3 there and 4 here"):
        files.check_same_run(tmp_path, config)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        files.read_workdir(tmp_path)


def test_a_workdir_of_another_stage_says_so_first(config: ConfigDict, tmp_path: Path) -> None:
    files.write_workdir(tmp_path, config)
    config.aug.max_level, config.stage = 0.5, "sr64"
    with pytest.raises(ConfigError, match="config.stage is 'base' there and 'sr64' here"):
        files.check_same_run(tmp_path, config)


def test_phases_say_who_starts_from_whom() -> None:
    grown = [{"steps": 3, "cuts": (0.5,), "parents": (0, 0)}, {"steps": 2, "cuts": (0.2, 0.5), "parents": (0, 1, 1)}]
    phases = parse_phases([{"steps": 5}, *grown])
    assert [phase.num_experts for phase in phases] == [1, 2, 3]
    assert phases[2].rows == (0, 1, 1)
    alone = Phase(steps=1, cuts=(0.2, 0.5), parents=(0, 1, 1), expert=2)
    assert (alone.rows, alone.expert_ids) == ((1,), (2,))
    interval = alone.intervals[0]
    assert (interval.low, interval.high) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("before", "phase", "warnings"),
    [
        ({}, {"cuts": (0.25,)}, []),
        ({"cuts": (0.5,)}, {"cuts": (0.25, 0.5), "parents": (0, 0, 1)}, []),
        ({"cuts": (0.5,)}, {"cuts": (0.25,), "parents": (0, 0)}, []),  # half of what it takes on is new to it
        ({"cuts": (0.5,)}, {"cuts": (0.25, 0.5), "parents": (0, 1, 1)}, ["expert 1 of cuts (0.25, 0.5)"]),
        ({"cuts": (0.5,)}, {"cuts": (0.25, 0.5), "parents": (0, 1, 1), "expert": 2}, []),
        ({"cuts": (0.5,), "expert": 1}, {"cuts": (0.5,)}, ["expert 0 of cuts (0.5,)"]),
        ({"cuts": (0.5,)}, {"cuts": (0.5,)}, ["expert 1 of cuts (0.5,)"]),
    ],
)
def test_an_expert_that_starts_from_a_stranger_is_warned_of(before: dict, phase: dict, warnings: list, caplog) -> None:
    with caplog.at_level("WARNING", logger="absl"):
        warn_of_strangers(parse_phases([{"steps": 1, **before}, {"steps": 1, **phase}]))
    assert len(caplog.messages) == len(warnings)
    for message, start in zip(caplog.messages, warnings, strict=True):
        assert message.startswith(start) and "never saw these noise levels" in message


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "config.phases is empty"),
        ([{"cuts": ()}], "expected steps"),
        ([{"steps": 1, "cut": ()}], "expected steps and some of"),
        ([{"steps": -1}], "steps is -1"),
        ([{"steps": 1}, {"steps": 1, "cuts": (0.5,), "parents": (0,)}], "1 parents for 2 experts"),
        ([{"steps": 1}, {"steps": 1, "cuts": (0.5,), "parents": (0, 1)}], "parent 1 does not exist; expected 0 to 0"),
        ([{"steps": 1, "cuts": (0.5, 0.2)}], "increasing"),
        ([{"steps": 1, "cuts": (1.5,)}], "inside"),
        ([{"steps": 1, "cuts": (0.5,), "expert": 2}], "expert 2 does not exist"),
    ],
)
def test_schedules_that_cannot_be(phases: list[dict], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_phases(phases)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "experts", "shape"),
    [
        ({"expert": 1, "data": -1, "fsdp": 1}, 3, (1, 8, 1)),
        ({"expert": 2, "data": -1, "fsdp": 2}, 4, (2, 2, 2)),
        ({"expert": -1, "data": 1, "fsdp": -1}, 4, (4, 1, 2)),
        ({"expert": 4, "data": 2, "fsdp": 1}, 1, (1, 8, 1)),  # a single model takes every device
        ({"expert": -1, "data": -1, "fsdp": 1}, 3, (1, 8, 1)),
    ],
)
def test_meshes(sizes: dict, experts: int, shape: tuple) -> None:
    assert tuple(make_mesh(sizes, experts).shape.values()) == shape


@pytest.mark.parametrize(
    ("sizes", "experts", "message"),
    [
        ({"expert": 3, "data": -1}, 3, "mesh.expert=3 does not divide 8 devices and 3 experts; choices: 1"),
        ({"expert": 8, "data": -1}, 4, "choices: 1, 2, 4"),
        ({"expert": 2, "data": 3, "fsdp": 1}, 2, "data x fsdp must be 4"),
        ({"expert": 1, "data": -1, "fsdp": -1}, 2, "both -1"),
        ({"expert": 1, "data": -1, "fsdp": 16}, 2, "does not use 8 devices"),
    ],
)
def test_meshes_that_do_not_fit(sizes: dict, experts: int, message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        make_mesh(sizes, experts)
    assert message in str(caught.value)


def test_a_batch_the_devices_do_not_divide() -> None:
    with pytest.raises(TrainingError, match="next fitting: 16"):
        check_batch_size(make_mesh({"data": 8}, 1), 12)


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 3, 8, 12, 64, 512]), min_size=0, max_size=4), st.sampled_from([1, 2, 8]))
def test_a_leaf_is_cut_on_its_largest_axis_that_divides(shape: list[int], fsdp: int) -> None:
    spec = leaf_spec("params/conv/kernel", [2, *shape], fsdp)
    assert spec[0] == "expert"
    cut = [axis for axis, name in enumerate(spec) if name == "fsdp"]
    assert len(cut) <= 1
    fitting = [size for size in shape if size % fsdp == 0]
    if cut:
        assert [2, *shape][cut[0]] == max(fitting)
    elif fsdp > 1 and fitting:
        assert math.prod(shape) < 4096
    assert leaf_spec("params/conv/bias", [2, 4096], fsdp) == P("expert", None)
    assert leaf_spec("step", [], fsdp) == P()


def test_a_config_of_an_older_version_gets_the_keys_that_came_later(tmp_path: Path) -> None:
    config = files.to_json(training_config.default())
    del config["optimizer"]["cooldown"], config["wandb"]
    config["optimizer"]["lr"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = files.read_workdir(tmp_path)
    assert read is not None and (read.optimizer.cooldown, read.optimizer.lr, read.wandb) == (0, 0.5, "")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="it holds list"):
        files.read_workdir(tmp_path)


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_a_config_that_cannot_be_rewritten_stays_as_it_was(tmp_path: Path, config: ConfigDict, monkeypatch, step: str) -> None:
    """A full disk halfway through the text, and a rename that fails: nothing but the old file is left."""
    files.write_workdir(tmp_path, config)
    before = (tmp_path / "config.json").read_bytes()
    place = type(epath.Path(tmp_path))

    def fails(path: Path, argument: object) -> None:
        Path(path).write_bytes(b'{"seed"')
        raise OSError("no space left on device")

    config.seed = 1
    with monkeypatch.context() as patch:
        patch.setattr(place, step, fails)
        with pytest.raises(ConfigError, match="cannot be written: no space left on device"):
            files.write_workdir(tmp_path, config)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before
    files.write_workdir(tmp_path, config)
    assert files.read_workdir(tmp_path).seed == 1
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
