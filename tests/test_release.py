"""The release format: what is written is read back bit for bit, and what is damaged is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cascade_fakes as fakes
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from ediffi_jax import cascade, release
from ediffi_jax.errors import UserError
from ediffi_jax.release import Release, ReleaseError, StageSpec
from ediffi_jax.training import checkpoint
from ediffi_jax.training import config as training_config
from ediffi_jax.training import state as training_state
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.config_files import to_json
from ediffi_jax.training.saving import Checkpoints
from ediffi_jax.training.schedule import Phase


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return fakes.make_release(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def written(made: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.write_release(tmp_path_factory.mktemp("written") / "release", made)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "release"))


def equal(a: object, b: object) -> bool:
    a, b = release.flatten(a), release.flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_release_reads_back_bit_for_bit(made: Release, written: Path) -> None:
    read = release.read_release(written)
    assert [spec.to_json() | {"file": ""} for spec in read.specs] == [spec.to_json() for spec in made.specs]
    assert all(equal(a, b) for a, b in zip(read.params, made.params, strict=True))
    assert read.trained == made.trained and read.versions["ediffi_jax"]
    assert sorted(path.name for path in written.iterdir()) == [
        "base.safetensors",
        "cascade.json",
        "encoders",
        "sr16.safetensors",
    ]
    assert str(made.encoders.parent) not in (written / "cascade.json").read_text()


def test_a_stage_goes_through_json_unchanged() -> None:
    sampler = release.SamplerSpec(name="heun", interval=(0.1, 5.0), guidance=2.0)
    spec = fakes.with_stage(fakes.SR, sampler=sampler, cuts=(0.5,), noise={"mean": -0.5, "std": 1.0})
    assert StageSpec.from_json(json.loads(json.dumps(spec.to_json())), "here") == spec


@pytest.mark.parametrize(("dtype", "kind"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_half_precision_rounds_once_and_halves_the_file(
    made: Release, written: Path, tmp_path: Path, dtype: str, kind: type
) -> None:
    half = release.write_release(tmp_path / "half", made, dtype=dtype)
    read = release.read_release(half)
    for name, value in release.flatten(read.params[0]).items():
        assert value.dtype == np.float32
        assert np.array_equal(value, release.flatten(made.params[0])[name].astype(kind).astype(np.float32))
    assert (half / "base.safetensors").stat().st_size < 0.7 * (written / "base.safetensors").stat().st_size


def test_weights_that_half_precision_cannot_hold_are_refused(made: Release, tmp_path: Path) -> None:
    huge = jax.tree.map(lambda leaf: leaf * 1e6, made.params[0])
    with pytest.raises(ReleaseError, match="is not finite as float16"):
        release.write_release(
            tmp_path / "out", Release(specs=made.specs[:1], params=(huge,), encoders=made.encoders), dtype="float16"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_cascade_keeps_its_fingerprint_however_it_is_stored(written: Path, tmp_path: Path) -> None:
    loaded = cascade.load(written)
    again = cascade.load(loaded.save(tmp_path / "again"))
    assert again.fingerprint == loaded.fingerprint
    linked = cascade.load(loaded.save(tmp_path / "linked", copy_encoders=False))
    assert linked.fingerprint == loaded.fingerprint and not (tmp_path / "linked" / "encoders").exists()
    half = cascade.load(loaded.save(tmp_path / "half", dtype="float16"))
    assert half.fingerprint != loaded.fingerprint


def test_bundled_encoders_are_referred_to_by_name(
    made: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = tmp_path / "releases" / "tiny"
    shutil.copytree(made.encoders, bundled / "encoders")
    monkeypatch.setattr(release.places, "RELEASES", tmp_path / "releases")
    here = Release(specs=made.specs, params=made.params, encoders=bundled / "encoders")
    out = release.write_release(tmp_path / "out", here, copy_encoders=False)
    assert json.loads((out / "cascade.json").read_text())["encoders"] == "bundled:tiny"
    assert release.read_release(out).encoders == bundled / "encoders"


def test_other_encoders_than_those_of_the_training_are_refused(written: Path, tmp_path: Path) -> None:
    linked = cascade.load(written).save(tmp_path / "linked", copy_encoders=False)
    shutil.copytree(written / "encoders", tmp_path / "encoders")
    edit_json(lambda d: d.update(encoders="../encoders"))(linked)
    cascade.load(linked)
    fakes.make_encoders(tmp_path / "encoders", seed=1)
    with pytest.raises(ReleaseError, match="was trained with encoders"):
        cascade.load(linked)


def test_a_folder_that_is_taken_is_left_alone(made: Release, written: Path) -> None:
    before = (written / "cascade.json").read_bytes()
    with pytest.raises(ReleaseError, match="is taken"):
        release.write_release(written, made)
    assert (written / "cascade.json").read_bytes() == before


def test_a_failed_write_leaves_nothing(made: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(ReleaseError, match="No space left on device"):
        release.write_release(tmp_path / "out", made)
    assert list(tmp_path.iterdir()) == []


def edit_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        described = json.loads((folder / "cascade.json").read_text())
        change(described)
        (folder / "cascade.json").write_text(json.dumps(described))

    return damage


def edit_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = safetensors.numpy.load_file(folder / "base.safetensors")
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / "base.safetensors")

    return damage


def cut(share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = (folder / "base.safetensors").read_bytes()
        (folder / "base.safetensors").write_bytes(whole[: int(share * len(whole))])

    return damage


DAMAGES = {
    "later format": (edit_json(lambda d: d.update(format=2)), "has format 2; this ediffi_jax .* reads format 1"),
    "no format": (edit_json(lambda d: d.pop("format")), "has format None"),
    "unknown key": (edit_json(lambda d: d.update(stagez=1)), "unknown key 'stagez'; did you mean 'stages'"),
    "unknown stage key": (
        edit_json(lambda d: d["stages"][0].update(cutz=[])),
        "stage 0 has the unknown key 'cutz'; did you mean 'cuts'",
    ),
    "missing stage key": (edit_json(lambda d: d["stages"][1].pop("resolution")), "stage 1 lacks the key 'resolution'"),
    "unknown sampler key": (edit_json(lambda d: d["stages"][0]["sampler"].update(step=1)), "did you mean 'steps'"),
    "no stages": (edit_json(lambda d: d.update(stages=[])), "describes no stages"),
    "bad cuts": (edit_json(lambda d: d["stages"][0].update(cuts=[0.7, 0.2])), "cuts"),
    "bad model": (edit_json(lambda d: d["stages"][0]["model"].update(name="unett")), "did you mean 'unet'"),
    "text for a number": (edit_json(lambda d: d["stages"][0].update(resolution="8")), "resolution is '8'; expected"),
    "cuts no list": (edit_json(lambda d: d["stages"][0].update(cuts=0.5)), "cuts is 0.5; expected a list of numbers"),
    "no such noise": (edit_json(lambda d: d["stages"][0]["noise"].update(men=0.0)), "unknown key 'men'.* 'mean'"),
    "half an interval": (edit_json(lambda d: d["stages"][0]["sampler"].update(interval=[1.0])), "interval is .1.0."),
    "no model": (edit_json(lambda d: d["stages"][0].update(model=3)), "model is 3"),
    "no encoders": (lambda f: shutil.rmtree(f / "encoders"), "names it as the encoders"),
    "unknown bundled encoders": (
        edit_json(lambda d: d.update(encoders="bundled:scenez")),
        "unknown bundled encoders 'scenez'",
    ),
    "no JSON": (lambda f: (f / "cascade.json").write_text("{"), "cascade.json is unreadable"),
    "no dictionary": (lambda f: (f / "cascade.json").write_text("[]"), "holds list"),
    "missing file": (lambda f: (f / "sr16.safetensors").unlink(), "sr16.safetensors does not exist"),
    "cut in the tensors": (cut(0.6), "is truncated or no safetensors"),
    "cut in the header": (cut(0.01), "is truncated or no safetensors"),
    "empty file": (cut(0.0), "is truncated or no safetensors"),
    "pickle": (
        lambda f: (f / "base.safetensors").write_bytes(pickle.dumps({"a": 1})),
        "is truncated or no safetensors",
    ),
    "missing tensor": (edit_tensors(lambda t: t.pop("conv_out/bias")), "lacks tensor 'conv_out/bias' of stage 'base'"),
    "extra tensor": (
        edit_tensors(lambda t: t.update({"b": np.zeros(3), "a/c": np.zeros(3)})),
        "holds tensor 'a/c' and 1 more unknown",
    ),
    "misshapen tensor": (
        edit_tensors(lambda t: t.update({"conv_out/bias": np.zeros((3, 4), np.float32)})),
        r"'conv_out/bias' has shape \(3, 4\); expected \(3, 3\) for 3 experts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_release_is_refused_in_one_line(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        cascade.load(folder)
    assert "\n" not in str(error.value)


def test_nothing_is_ever_unpickled(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(np, "load", refuse)
    cascade.load(written)


def test_unknown_names_name_the_nearest(monkeypatch: pytest.MonkeyPatch, written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "releases" / "scenes")
    monkeypatch.setattr(release.places, "RELEASES", tmp_path / "releases")
    assert release.find("scenes") == tmp_path / "releases" / "scenes"
    with pytest.raises(ReleaseError, match="no cascade 'scene': .*did you mean 'scenes'"):
        cascade.load("scene")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReleaseError, match="is a file"):
        cascade.load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReleaseError, match="cascade.json does not exist"):
        cascade.load(tmp_path / "empty")


# Training workdirs.


def write_workdir(
    workdir: Path, spec: StageSpec, params: dict, encoders: Path, *, step: int = 3, expert: int = -1
) -> Path:
    """A workdir as launch.train leaves it, with `params` as the EMA and other parameters."""
    config = training_config.default()
    config.stage = spec.name
    config.model = dict(spec.model)
    config.encoders = str(encoders)
    config.data.update({"resolution": spec.resolution, "low_resolution": spec.low_resolution})
    config.aug.update({"max_level": 0.3, "level": spec.aug_level})
    config.phases = ({"steps": 5, "cuts": spec.cuts, "expert": expert},)
    phase = Phase(steps=5, cuts=spec.cuts, expert=expert)
    ema = jax.tree.map(lambda leaf: np.asarray(leaf)[list(phase.expert_ids)], params)
    optimizer = training_state.make_optimizer(config.optimizer, 5)
    state = training_state.create(jax.tree.map(lambda leaf: leaf + 1.0, ema), optimizer)
    state = state.replace(ema=jax.tree.map(jax.numpy.asarray, ema), step=jax.numpy.int32(step))
    coded = cascade.encoders.load(encoders)
    position = Position(
        step=step, images=step * 8, phase=0, phase_step=step, cuts=spec.cuts, expert_ids=phase.expert_ids,
        encoders=coded.fingerprint, config=to_json(config),
    )  # fmt: skip
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, position)
    checkpoints.wait()
    return workdir


@pytest.fixture(scope="module")
def workdirs(made: Release, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("workdirs")
    found = {
        spec.name: write_workdir(root / spec.name, spec, params, made.encoders)
        for spec, params in zip(made.specs, made.params, strict=True)
    }
    for expert in range(3):
        found[f"expert{expert}"] = write_workdir(
            root / f"expert{expert}", made.specs[0], made.params[0], made.encoders, expert=expert
        )
    return found


@pytest.fixture(scope="module")
def one_expert_runs(workdirs: dict[str, Path]) -> list[release.Run]:
    """Three runs of the base, each of one expert, lowest noise first."""
    return [release.read_workdir(workdirs[f"expert{expert}"]) for expert in range(3)]


def test_the_state_of_a_run_comes_out_of_its_export_bit_for_bit(
    made: Release, workdirs: dict[str, Path], tmp_path: Path
) -> None:
    runs = {name: [release.read_workdir(workdirs[name])] for name in ("sr16", "base")}
    out = release.write_release(tmp_path / "out", release.release_of_runs(runs))
    read = release.read_release(out)
    assert [spec.name for spec in read.specs] == ["base", "sr16"]
    assert all(equal(a, b) for a, b in zip(read.params, made.params, strict=True))
    assert read.specs[0].cuts == made.specs[0].cuts and read.specs[1].aug_level == made.specs[1].aug_level
    assert str(tmp_path.parent) not in (out / "cascade.json").read_text()
    cascade.load(out)


def test_only_the_ema_is_read(workdirs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []
    load = ocp.load_checkpointables

    def spy(path: object, tree: dict) -> object:
        asked.append({name for name, part in tree["state"].items() if ocp.PLACEHOLDER not in jax.tree.leaves(part)})
        return load(path, tree)

    monkeypatch.setattr(ocp, "load_checkpointables", spy)
    release.read_workdir(workdirs["base"])
    assert asked == [{"ema"}]


def test_a_base_workdir_is_a_cascade_of_one_stage(made: Release, workdirs: dict[str, Path]) -> None:
    loaded = cascade.load(workdirs["base"])
    assert [stage.spec.name for stage in loaded.stages] == ["base"]
    assert equal(loaded.to_release().params[0], made.params[0])


def test_a_super_resolution_workdir_alone_asks_for_its_base(workdirs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="'sr16' is a super-resolution stage from 8x8 and needs a base.*launch.export"):
        cascade.load(workdirs["sr16"])


def test_runs_of_one_expert_each_are_stacked_in_the_order_of_their_noise(
    made: Release, one_expert_runs: list[release.Run]
) -> None:
    spec, params = release.stack_runs("base", [one_expert_runs[expert] for expert in (2, 0, 1)])
    assert spec.cuts == made.specs[0].cuts
    assert equal(params, made.params[0])


@pytest.mark.parametrize(("experts", "message"), [
    ((0, 2), "a gap of quantiles between 0.25 and 0.75"),
    ((0, 1), "no expert for quantiles 0.75 to 1"),
    ((1, 2), "a gap of quantiles between 0 and 0.25"),
    ((0, 1, 1, 2), "an overlap of quantiles between 0.25 and 0.75"),
])  # fmt: skip
def test_gaps_and_overlaps_are_refused(
    one_expert_runs: list[release.Run], experts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ReleaseError, match=message):
        release.release_of_runs({"base": [one_expert_runs[expert] for expert in experts]})


def test_runs_of_another_network_are_not_stacked(one_expert_runs: list[release.Run]) -> None:
    low, middle, high = one_expert_runs
    for change in ({"model": {**middle.spec.model, "context_width": 8}}, {"sigma_data": 1.0}, {"noise": {"mean": 0}}):
        strange = dataclasses.replace(middle, spec=fakes.with_stage(middle.spec, **change))
        with pytest.raises(ReleaseError, match=f"differ in {next(iter(change))}"):
            release.stack_runs("base", [low, strange, high])
    elsewhere = dataclasses.replace(middle, fingerprint="0" * 16)
    with pytest.raises(ReleaseError, match="different encoders"):
        release.release_of_runs({"base": [low, elsewhere, high]})


def test_a_damaged_newest_checkpoint_is_passed_over(made: Release, workdirs: dict[str, Path], tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(workdirs["base"], tmp_path / "run"))
    write_workdir(workdir, made.specs[0], jax.tree.map(lambda leaf: 2 * leaf, made.params[0]), made.encoders, step=9)
    assert release.read_workdir(workdir).trained["step"] == 9
    for path in (workdir / "checkpoints" / "9").rglob("*"):
        if path.is_file() and "ocdbt" in str(path):
            path.write_bytes(b"")
    assert release.read_workdir(workdir).trained["step"] == 3
    shutil.rmtree(workdir / "checkpoints" / "3")
    with pytest.raises(ReleaseError, match="every checkpoint in .* is damaged: 9"):
        cascade.load(workdir)
    shutil.rmtree(workdir / "checkpoints" / "9")
    with pytest.raises(ReleaseError, match="holds no checkpoint"):
        cascade.load(workdir)


@pytest.mark.parametrize(("parts", "expected"), [
    (["base=a", "b", "c", "sr=d"], {"base": ["a", "b", "c"], "sr": ["d"]}),
    (["base=x=y"], {"base": ["x=y"]}),
])  # fmt: skip
def test_workdirs_are_parsed(parts: list[str], expected: dict) -> None:
    assert release.parse_workdirs(parts) == expected


@pytest.mark.parametrize("parts", [["a"], ["base="], ["=a"], ["base=a", "base=b"], ["base=a", ""]])
def test_unreadable_workdirs_are_refused(parts: list[str]) -> None:
    with pytest.raises(ReleaseError, match="--workdirs: "):
        release.parse_workdirs(parts)


def test_how_to_sample_may_be_changed_after_training(workdirs: dict[str, Path], tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(workdirs["sr16"], tmp_path / "sr16"))
    position = release.read_workdir(workdir)
    config = json.loads(json.dumps(checkpoint.read_position(checkpoint.newest(workdir)).config))
    config["sampler"]["steps"], config["aug"]["level"] = 77, 0.25
    (workdir / "config.json").write_text(json.dumps(config))
    changed = release.read_workdir(workdir)
    assert (changed.spec.sampler.steps, changed.spec.aug_level) == (77, 0.25)
    assert changed.spec.model == position.spec.model
    (workdir / "config.json").write_text("{")
    with pytest.raises(ReleaseError, match="config.json cannot be read"):
        release.read_workdir(workdir)
