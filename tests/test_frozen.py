"""A run's frozen encoders: in parts on a mesh they change nothing; with embeddings they may be on another machine."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_training_step import collectives, crossing
from training_fakes import EMA, make_adamw, make_batch, make_objective, make_state, small_config

from ediffi_jax import encoders, models, release
from ediffi_jax.data.scenes.builder import ScenesConfig, prepare
from ediffi_jax.encoders.sharding import leaf_spec, weight_axes
from ediffi_jax.errors import UserError
from ediffi_jax.release import ReleaseError
from ediffi_jax.training import config_files, embedder, encode, loop
from ediffi_jax.training.evaluate import make_quantile_loss
from ediffi_jax.training.frozen import encoder_params, open_encoders
from ediffi_jax.training.mesh import make_mesh, put_batch, state_shardings
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.step import make_train_step

TWO = Phase(steps=10, cuts=(0.5,))
TEXTS = ["a red circle", "a blue square left of a green moon"] * 8
MESHES = [{"expert": 2, "data": 2, "fsdp": 2}, {"expert": 2, "data": 4, "fsdp": 1}, {"expert": 1, "data": 2, "fsdp": 4}]


class Net(nn.Module):
    """A network that every encoder's output reaches."""

    @nn.compact
    def __call__(self, x, c_noise, cond, train=False):
        told = nn.Dense(8, name="level")(c_noise[:, None])
        for name in ("t5", "clip_text"):
            told += nn.Dense(8, name=name)((getattr(cond, name) * getattr(cond, f"{name}_mask")[..., None]).mean(1))
        told += nn.Dense(8, name="image")(cond.clip_image * cond.clip_image_mask[:, None])
        h = nn.silu(nn.Conv(8, (3, 3), name="first")(x) + told[:, None, None, :])
        return nn.Conv(3, (1, 1), name="last")(h)


def whole(mesh):
    """The same weights, a copy on every device."""
    return jax.device_put(encoders.load("scenes").params, NamedSharding(mesh, P()))


def in_parts(mesh):
    config = small_config()
    config.encoders = "scenes"
    return encoder_params(config, mesh)


def per_device(params) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))


@functools.cache
def objective():
    return make_objective(Net(), encoders=encoders.load("scenes", weights=False))


@functools.cache
def batch():
    tokens = objective().encoders.tokenize(TEXTS)
    rows = {name: np.asarray(getattr(tokens, name)) for name in ("t5_ids", "t5_mask", "clip_ids", "clip_mask")}
    rows["clip_pixels"] = np.random.default_rng(1).integers(256, size=(16, 32, 32, 3), dtype=np.uint8)
    return make_batch(2) | {name: values.reshape(2, 8, *values.shape[1:]) for name, values in rows.items()}


@functools.cache
def start():
    return jax.tree.map(np.array, make_state(objective(), make_adamw(), TWO))


def on_mesh(mesh):
    return jax.device_put(start(), state_shardings(mesh, start())), put_batch(batch(), mesh)


@functools.cache  # a program is compiled once for all tests
def compiled(mesh, place):
    step = make_train_step(objective=objective(), optimizer=make_adamw(), ema=EMA, phase=TWO, mesh=mesh, seed=7)
    return step.lower(*on_mesh(mesh), place(mesh)).compile()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES[:1])
def test_steps_and_held_out_losses_with_encoders_in_parts_are_those_with_copies(sizes: dict) -> None:
    mesh = make_mesh(sizes, 2)
    loss = make_quantile_loss(
        objective=objective(), phase=TWO, mesh=mesh, batches=[{k: v[:1] for k, v in batch().items()}], seed=0
    )
    results = []
    for place in (whole, in_parts):
        (state, rows), frozen = on_mesh(mesh), place(mesh)
        for _ in range(2):
            state, metrics = compiled(mesh, place)(state, rows, frozen)
        results.append((jax.device_get(metrics), loss(state.ema, frozen), jax.device_get(state.params)))
    (metrics, curve, params), (metrics_parts, curve_parts, params_parts) = results
    np.testing.assert_allclose(metrics_parts["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(curve_parts, curve, rtol=1e-4)
    for x, y in zip(jax.tree.leaves(params_parts), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sizes", MESHES)
def test_each_device_of_an_expert_holds_one_part(sizes: dict) -> None:
    mesh = make_mesh(sizes, 2)
    group = sizes["data"] * sizes["fsdp"]
    frozen, copies = in_parts(mesh), encoders.load("scenes").params
    table = frozen["t5"]["embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(table.shape[0], table.shape[1] // group)}
    assert "expert" not in str(table.sharding.spec)
    for part, copy in zip(jax.tree.leaves(frozen), jax.tree.leaves(copies), strict=True):
        assert part.dtype == copy.dtype and np.array_equal(part, copy)
    assert per_device(frozen) < 1.2 / group * per_device(copies)


def test_the_compiled_step_holds_parts_and_gathers_them_within_one_expert() -> None:
    mesh = make_mesh(MESHES[0], 2)
    programs = {"whole": compiled(mesh, whole), "parts": compiled(mesh, in_parts)}
    bytes_of = {name: program.memory_analysis().argument_size_in_bytes for name, program in programs.items()}
    saved = per_device(whole(mesh)) - per_device(in_parts(mesh))
    assert bytes_of["whole"] - bytes_of["parts"] == pytest.approx(saved, rel=0.02)
    texts = {name: program.as_text() for name, program in programs.items()}
    assert crossing(texts["parts"]) == crossing(texts["whole"])
    assert set(crossing(texts["parts"])) <= {"f32[2]"}  # metrics
    added = [result for result, groups in collectives(texts["parts"]) if len(groups[0]) == 4]
    cut = [leaf for leaf in jax.tree.leaves(in_parts(mesh)) if not leaf.sharding.is_fully_replicated]
    sizes = sorted(math.prod(map(int, re.findall(r"\d+", result[3:]))) for result in added if result.startswith("f32"))
    assert set(sizes) >= {math.prod(leaf.shape) for leaf in cut}  # weights are gathered, captions are not
    assert not re.search(r" all-(gather|reduce)(-start)?\(.*op_name=\"[^\"]*(T5Encoder|Clip)", texts["parts"])


@pytest.mark.parametrize(
    ("shape", "parts", "spec"),
    [
        ((4096, 4096), {"data": 2, "fsdp": 4}, P(None, ("data", "fsdp"))),
        ((4096, 4096), {"data": 8, "fsdp": 1}, P(None, "data")),
        ((4099, 1028), {"data": 8, "fsdp": 4}, P(None, "fsdp")),  # 1028 is no multiple of 32
        ((4096, 1028), {"data": 8, "fsdp": 4}, P(("data", "fsdp"), None)),
        ((4099, 1021), {"data": 8, "fsdp": 4}, P(None, None)),
        ((4096, 4096), {}, P(None, None)),
    ],
)
def test_leaves_are_cut_along_as_many_axes_as_divide_them(shape: tuple, parts: dict, spec: P) -> None:
    assert leaf_spec("t5/block_0/attention/q/kernel", shape, parts) == spec


def test_weights_are_cut_within_slices_only() -> None:
    """Two slices of four chips, along `expert` or along `data`."""
    names = ("expert", "data", "fsdp")
    chips = np.array([SimpleNamespace(slice_index=i // 4) for i in range(8)])
    for shape, axes in (((2, 2, 2), ("data", "fsdp")), ((1, 2, 4), ("fsdp",)), ((1, 8, 1), ("fsdp",))):
        assert weight_axes(SimpleNamespace(devices=chips.reshape(shape), axis_names=names)) == axes
    assert weight_axes(make_mesh(MESHES[0], 2)) == ("data", "fsdp")


# Embeddings made ahead, and no encoders.

NUMBER = 16


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run's config, whose embeddings are there and whose encoders are not any more."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(encoders.bundled(), folder / "encoders")
    prepare(folder / "data", ScenesConfig(resolution=64, num_scenes=NUMBER))
    config = small_config()
    config.encoders = str(folder / "encoders")
    data = {"name": "scenes", "dir": str(folder / "data"), "num_scenes": NUMBER, "source_resolution": 64}
    config.data.update({**data, "resolution": 8, "clip_resolution": 32, "captions": 1})
    config.phases = ({"steps": 2, "cuts": (), "parents": ()},)
    config.update({"sample_every": 2, "eval_every": 2})
    config.sampler.steps = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "LENGTHS", (48,))
        patch.setattr(models, "build", lambda config: Net())
        encode.encode(config, encode.Options(out=str(folder / "embeddings"), batch_size=8), say=lambda line: None)
        config.data.embeddings = str(folder / "embeddings")
        assert loop.train(config, folder / "here") == loop.FINISHED
        (folder / "encoders").rename(folder / "elsewhere")
        yield config


def losses(workdir: Path) -> list:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: row[key] for key in row if "loss" in key or "held_out" in key} for row in rows]


def test_training_without_encoders_is_that_with_them(prepared, tmp_path, caplog) -> None:
    folder = Path(prepared.encoders).parent
    assert loop.train(prepared, tmp_path / "run") == loop.FINISHED
    said = [record.getMessage() for record in caplog.records if "not on this machine" in record.getMessage()]
    assert len(said) == 1 and prepared.encoders in said[0] and "\n" not in said[0]
    assert losses(tmp_path / "run") == losses(folder / "here")
    samples = "samples/samples_0000002.png"  # captions come from the embeddings: samples need no encoders either
    assert (tmp_path / "run" / samples).read_bytes() == (folder / "here" / samples).read_bytes()


def test_a_run_begun_with_encoders_goes_on_without(prepared, tmp_path) -> None:
    shutil.copytree(Path(prepared.encoders).parent / "here", tmp_path / "run")
    config = config_files.read_workdir(tmp_path / "run")
    config.phases[0]["steps"] = 3
    assert loop.train(config, tmp_path / "run") == loop.FINISHED


def test_an_export_without_encoders_says_that_it_needs_them(prepared, tmp_path) -> None:
    folder = Path(prepared.encoders).parent
    runs = {"base": [release.read_workdir(folder / "here")]}
    with pytest.raises(ReleaseError, match=r"which are not on this machine.*launch.export --encoders=DIR") as caught:
        release.release_of_runs(runs)
    assert "\n" not in str(caught.value)
    made = release.release_of_runs(runs, folder / "elsewhere")
    assert made.encoders_fingerprint == encoders.load(made.encoders, weights=False).fingerprint


def test_what_is_there_but_damaged_is_not_passed_over(prepared, tmp_path) -> None:
    wrong = prepared.copy_and_resolve_references()
    wrong.encoders = str(tmp_path)
    with pytest.raises(UserError, match="no T5 or CLIP found"):
        open_encoders(wrong)
    wrong.encoders, wrong.data.embeddings = "/no/such", ""
    with pytest.raises(UserError, match="no bundled encoders are called '/no/such'"):
        open_encoders(wrong)
    wrong.data.embeddings = str(tmp_path)
    with pytest.raises(UserError, match="no embeddings in"):
        open_encoders(wrong)


def test_a_run_in_bfloat16_holds_its_encoders_in_bfloat16() -> None:
    config = small_config()
    config.encoders = "scenes"
    mesh = make_mesh({"data": 1}, 1, jax.devices()[:1])
    held = {}
    for config.compute_dtype in ("float32", "bfloat16"):
        encoder = open_encoders(config)
        params = encoder_params(config, mesh)
        tokens = encoder.tokenize(TEXTS)
        pixels = np.tile(batch()["clip_pixels"][0].astype(np.float32) / 255, (2, 1, 1, 1))
        held[config.compute_dtype] = per_device(params), jax.jit(encoder.apply)(params, tokens, pixels)
    (whole_bytes, exact), (half_bytes, rounded) = held["float32"], held["bfloat16"]
    assert half_bytes < 0.65 * whole_bytes  # norms, biases and T5's W_2 stay float32
    for name in ("t5", "clip_text", "clip_pooled", "clip_image"):
        x, y = (np.asarray(getattr(found, name), np.float64) for found in (exact, rounded))
        error = np.linalg.norm(x - y) / np.linalg.norm(x)
        assert 1e-5 < error < 0.03, (name, error)
