"""Embeddings prepared ahead: the same batches, conditioning and losses as live; every mix-up refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fakes import make_objective

from ediffi_jax import encoders as encoders_room
from ediffi_jax.conditioning import ConditioningSpec, DropRates
from ediffi_jax.data import embeddings, sources
from ediffi_jax.data.embedding_rows import RowFormat, dequantize, digest, quantize
from ediffi_jax.data.loader import LoaderError, Part, make_loader
from ediffi_jax.data.scenes.builder import ScenesConfig, prepare
from ediffi_jax.errors import UserError
from ediffi_jax.training import config as training_config
from ediffi_jax.training import embedder, encode
from ediffi_jax.training.encode_forecast import Forecast, check_room
from ediffi_jax.training.mesh import make_mesh
from ediffi_jax.training.objective import encode_batch

NUMBER, CAPTIONS, CLIP = 40, 2, 32
SPEC = ConditioningSpec(clip_tokens=5, clip_width=3, pooled_width=4, t5_tokens=7, t5_width=6)


def options(out: Path, **changes) -> encode.Options:
    fields = {"out": str(out), "batch_size": 16, "shard_records": 16, "mesh": {"data": -1, "fsdp": 1}, **changes}
    return encode.Options(**fields)


@pytest.fixture(scope="module", autouse=True)
def _one_program_for_all_lengths():
    """Compiling is what takes the time here; `test_encoders_sharding` has several lengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "LENGTHS", (48,))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, ScenesConfig(resolution=64, num_scenes=NUMBER))
    config = training_config.default()
    changes = {"dir": str(folder), "resolution": 16, "num_scenes": NUMBER, "clip_resolution": CLIP}
    config.data.update({**changes, "captions": CAPTIONS})
    return config


@pytest.fixture(scope="module")
def live():
    return encoders_room.load("scenes")


@pytest.fixture(scope="module")
def stored(config, tmp_path_factory):
    """Folders by what they store."""
    folders = {}
    for name, kind in (("float32", {"dtype": "float32"}), ("bfloat16", {}), ("int8", {"int8": True})):
        folders[name] = tmp_path_factory.mktemp(name)
        encode.encode(config, options(folders[name], **kind), say=lambda line: None)
    return folders


def batch(config, encoders, start=0, split="train", seed=0, experts=1, size=8, index=0, count=1, **data):
    loader = make_loader(
        {**config.data, **data},
        split=split,
        seed=seed,
        num_experts=experts,
        batch_size=size,
        tokenizer=encoders,
        image_part=Part(count=count, held=(index,)),
    )
    return loader.batch(start)


def first(rows):
    return {name: values[0] for name, values in rows.items()}


def close(a, b, tolerance):
    for name in a.__dataclass_fields__:
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        assert x.shape == y.shape and x.dtype == y.dtype, name
        if x.dtype == bool:
            assert np.array_equal(x, y), name
        else:
            assert np.max(np.abs(x - y)) <= tolerance * np.max(np.abs(x)), name


@functools.cache
def live_conditioning(live):
    return jax.jit(lambda params, rows: encode_batch(live, params, rows))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=3),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    int8=st.booleans(),
    pictures=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_row_comes_back_as_it_was_written(lengths, dtype, int8, pictures, seed) -> None:
    rows = RowFormat(spec=SPEC, dtype=dtype, int8=int8, pictures=pictures)
    rng = np.random.default_rng(seed)
    number = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[dtype]
    written, keys, encoded = [], [], []
    for t5, clip in lengths:
        arrays = {name: rng.normal(size=4).astype(number) for name in rows.vectors}
        for name, shape in (("t5", (t5, 6)), ("clip_text", (clip, 3))):
            whole = rng.integers(-127, 128, shape).astype(np.int8)
            arrays[name] = whole if int8 else rng.normal(size=shape).astype(number)
            arrays |= {f"{name}_scale": rng.random(shape[0], np.float32)} if int8 else {}
        keys.append(digest(f"caption {t5}", ""))
        encoded.append(rows.encode(keys[-1], arrays))
        written.append(arrays)
        assert len(encoded[-1]) == rows.row_bytes(t5, clip)
    read = rows.decode(encoded, keys)
    for index, (arrays, (t5, clip)) in enumerate(zip(written, lengths, strict=True)):
        for name, values in arrays.items():
            assert np.array_equal(read[name][index][: len(values)], values)
            assert not np.any(read[name][index][len(values) :])
        assert list(read["t5_mask"][index]) == [i < t5 for i in range(7)]
        assert list(read["clip_text_mask"][index]) == [i < clip for i in range(5)]
    assert ("clip_image" in read) == pictures
    with pytest.raises(LoaderError, match="another caption"):
        rows.decode(encoded[:1], [digest("other", "")])


def test_int8_is_within_half_a_step_of_each_token() -> None:
    x = np.random.default_rng(0).normal(size=(4, 9, 33)).astype(np.float32)
    x[1, 2] = 0
    x[2, 3, 5] = 300  # an outlier costs its own token, no other
    values, scale = (np.asarray(part) for part in quantize(jnp.asarray(x)))
    assert values.dtype == np.int8 and np.abs(values).max() == 127
    np.testing.assert_allclose(scale, np.abs(x).max(-1) / 127, rtol=1e-6)
    error = np.abs(np.asarray(dequantize(values, scale)) - x)
    assert (error <= scale[..., None] * 0.5001).all() and not error[1, 2].any()


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 2e-6), ("bfloat16", 2**-8), ("int8", 0.006)])
def test_conditioning_is_that_of_live_encoding(config, live, stored, kind, tolerance) -> None:
    second = {"index": 1, "count": 2, "size": 16}  # of two processes
    ways = ({"start": 0}, {"start": 1000, "seed": 3}, {"start": 7, "split": "test"}, {"start": 64, **second})
    for way in ways:
        plain = batch(config, live, **way)
        prepared = batch(config, live, embeddings=str(stored[kind]), **way)
        assert np.array_equal(plain["image"], prepared["image"])
        assert not {"t5_ids", "clip_pixels"} & prepared.keys()
        expected = live_conditioning(live)(live.params, first(plain))
        close(expected, encode_batch(live, {}, first(prepared)), tolerance)
        assert np.asarray(expected.clip_image_mask).all()


def test_phrasings_are_chosen_among_those_stored(config, live) -> None:
    source = sources.open_scenes(config.data.dir, "train", 64, NUMBER, False)
    loader = make_loader(config.data, split="train", seed=0, num_experts=1, batch_size=4 * NUMBER, tokenizer=live)
    drawn = set(loader.captions(0))
    records = source.read(range(NUMBER))
    kept = {record.phrasing(number, c) for number, record in enumerate(records) for c in range(CAPTIONS)}
    assert drawn <= kept and len(drawn) > 0.8 * len(kept)
    assert records[0].phrasing(0, 1) == records[0].phrasing(0, 1) != records[0].phrasing(0, 0)


class Net(nn.Module):
    """A network that every part of the conditioning reaches, padding only if it is not masked."""

    @nn.compact
    def __call__(self, x, c_noise, cond, train=False):
        told = nn.Dense(8, name="level")(c_noise[:, None])
        for name in ("t5", "clip_text"):
            shown = getattr(cond, f"{name}_mask")[..., None]
            told += (jnp.tanh(nn.Dense(8, name=name)(getattr(cond, name))) * shown).sum(1)
        told += nn.Dense(8, name="pooled")(cond.clip_pooled)
        told += nn.Dense(8, name="image")(cond.clip_image * cond.clip_image_mask[:, None])
        h = nn.silu(nn.Conv(8, (3, 3), name="first")(x) + told[:, None, None, :])
        return nn.Conv(3, (1, 1), name="last")(h)


def test_losses_and_gradients_are_those_of_live_encoding(config, live, stored) -> None:
    objective = make_objective(Net(), encoders=live, drop=DropRates(clip_image=0.3))
    rows = {kind: first(batch(config, live, embeddings=str(folder))) for kind, folder in stored.items()}
    rows["live"] = first(batch(config, live))
    params = objective.init(jax.random.key(0), rows["live"])
    assert jax.tree.structure(params) == jax.tree.structure(objective.init(jax.random.key(0), rows["int8"]))
    sigma = jnp.geomspace(0.05, 20.0, 8)

    @jax.jit
    def value_and_gradient(params, encoder_params, rows, key):
        def loss(params):
            cond = objective.conditioning(encoder_params, rows, objective.draw_kept(rows, key))  # with its drops
            noises = objective.draw_noises(rows, jax.random.key(2))
            return objective.losses(params, rows, cond, sigma, 0.0, jnp.inf, *noises).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    def step(rows, key=1):
        return value_and_gradient(params, live.params if "t5_ids" in rows else {}, rows, jax.random.key(key))

    loss, gradient = step(rows["live"])
    for kind, tolerance in (("float32", 1e-6), ("bfloat16", 1e-3), ("int8", 2e-3)):
        found = step(rows[kind])
        assert abs(found[0] - loss) <= tolerance * loss, kind
        assert jnp.linalg.norm(found[1] - gradient) <= 10 * tolerance * jnp.linalg.norm(gradient), kind
    assert abs(step(rows["float32"], key=3)[0] - loss) > 1e-2 * loss  # other drops: it does depend on them


def test_the_measured_error_is_the_error(config, live, stored) -> None:
    worst = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.02}
    for kind, folder in stored.items():
        markers = [json.loads(path.read_text()) for path in sorted((folder / "train").glob("0*.json"))]
        assert len(markers) == 3 and sum(marker["rows"] for marker in markers) == NUMBER * CAPTIONS
        assert all(marker["t5"]["worst"] <= worst[kind] for marker in markers)
        assert all(marker["t5"]["worst"] > worst[kind] / 8 for marker in markers) or kind == "float32"
    lost, held = (sum(marker["t5"][name] for marker in markers) for name in ("lost", "held"))
    source = sources.open_scenes(config.data.dir, "train", 64, NUMBER, False)
    texts = [record.phrasing(n, c) for n, record in enumerate(source.read(range(NUMBER))) for c in range(CAPTIONS)]
    exact = np.asarray(live.encode(texts).t5)
    reader = embeddings.Reader(embeddings.Store.open(stored["int8"] / "train"))
    wanted = [(n, c) for n in range(NUMBER) for c in range(CAPTIONS)]
    keys = [digest(record.caption, record.scene) for record in source.read(range(NUMBER)) for _ in range(CAPTIONS)]
    rows = reader.read(wanted, keys)
    error = rows["t5"].astype(np.float32) * rows["t5_scale"][..., None] - exact
    np.testing.assert_allclose((error**2).sum() / (exact**2).sum(), lost / held, rtol=1e-2)


def test_several_processes_write_the_files_of_one(config, stored, tmp_path) -> None:
    for index in (1, 0):
        lines = []
        encode.encode(config, options(tmp_path, process_index=index, process_count=2), say=lines.append)
        assert any(line.startswith("train with") for line in lines) == (index == 0)
    assert files(tmp_path) == files(stored["bfloat16"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_there_is_not_made_again_and_what_is_lost_is(config, stored, tmp_path) -> None:
    shutil.copytree(stored["bfloat16"], tmp_path, dirs_exist_ok=True)
    before = files(tmp_path)
    path = tmp_path / "train" / "00001.array_record"
    path.write_bytes(path.read_bytes()[:-1000])  # cut off
    (tmp_path / "train" / "00002.json").unlink()  # killed between the file and its marker
    (tmp_path / "train" / "00002.123.tmp").write_bytes(b"left")
    kept = (tmp_path / "train" / "00000.array_record").stat().st_mtime_ns
    lines = []
    encode.encode(config, options(tmp_path, splits=("train",)), say=lines.append)
    assert files(tmp_path) == before and sum("written" in line for line in lines) == 2
    assert (tmp_path / "train" / "00000.array_record").stat().st_mtime_ns == kept
    lines.clear()
    encode.encode(config, options(tmp_path, splits=("train",)), say=lines.append)
    assert not any("forecast" in line or "written" in line for line in lines)


def test_the_forecast_is_what_comes_out(config, stored, live) -> None:
    mesh = make_mesh({"data": -1, "fsdp": 1}, 1)
    part = encode.make_part(config, options(stored["bfloat16"]), live, "train")
    loaded = encoders_room.load("scenes", mesh=mesh)
    machine = encode.Embedder(loaded, mesh, part.store.about.rows, 16)
    forecast = Forecast.measure(part, machine, range(part.store.about.shards))
    size = sum(path.stat().st_size for path in part.store.folder.glob("*.array_record"))
    assert abs(forecast.size - size) < 0.1 * size
    assert forecast.captions == NUMBER * CAPTIONS and forecast.rate > 1
    texts = [r.phrasing(n, c) for n, r in enumerate(part.source.read(range(NUMBER))) for c in range(CAPTIONS)]
    lengths = live.tokenize(texts).t5_mask.sum(1)
    assert forecast.t5[:3] == (lengths.mean(), np.percentile(lengths, 95), lengths.max())
    with pytest.raises(LoaderError, match="are needed and .* are free; make room, or store tokens as --int8"):
        check_room(stored["bfloat16"] / "new", [dataclasses.replace(forecast, size=1e18)], int8=False)


@pytest.mark.slow
def test_worker_processes_read_the_same(config, live, stored) -> None:
    data = {**config.data, "embeddings": str(stored["bfloat16"])}
    settings = {"split": "train", "seed": 0, "num_experts": 2, "batch_size": 4, "tokenizer": live}
    threads, processes = (make_loader({**data, "workers": n}, **settings).iterate(8) for n in (0, 1))
    for _ in range(3):
        a, b = next(threads), next(processes)
        assert a.keys() == b.keys()
        assert all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a)
    processes.close()


def test_few_shards_are_open_at_once(stored, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "OPEN_SHARDS", 1)
    reader = pickle.loads(pickle.dumps(embeddings.Reader(embeddings.Store.open(stored["bfloat16"] / "train"))))
    rows = [reader._row(shard, 0) for shard in (0, 1, 2, 0)]
    assert rows[0] == rows[3] != rows[1] and len(reader._open) == 1


class Other:
    """Encoders with another fingerprint."""

    fingerprint = "0123456789abcdef"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": "/no/such"}, r"no embeddings in '/no/such/train'; make them with launch.encode"),
        ({"captions": 0}, r"hold 2 captions a record, here they are drawn without end; set config.data.captions=2"),
        ({"captions": 3}, r"here they are drawn from 3; set config.data.captions=2"),
        ({"captions": -1}, r"data.captions is -1"),
        ({"clip_resolution": 16}, r"pictures of 64 pixels, seen at 32; .* are \(64, 16\)"),
        ({"name": "synthetic"}, r"synthetic pictures have none"),
        ({"num_scenes": NUMBER + 1}, r"were made from other data \(fingerprint \w{16}\) than config.data"),
    ],
)
def test_embeddings_that_are_not_of_this_run_are_refused(config, live, stored, changes, message) -> None:
    with pytest.raises(LoaderError, match=message) as caught:
        make_loader(
            {**config.data, "embeddings": str(stored["bfloat16"]), **changes},
            split="train",
            seed=0,
            num_experts=1,
            batch_size=2,
            tokenizer=live,
        )
    assert "\n" not in str(caught.value)


def test_other_encoders_or_none_are_refused(config, stored) -> None:
    with pytest.raises(LoaderError, match="made by other encoders .* than config.encoders .0123456789abcdef"):
        batch(config, Other(), embeddings=str(stored["bfloat16"]))
    with pytest.raises(LoaderError, match="config.encoders is empty"):
        batch(config, None, embeddings=str(stored["bfloat16"]))


def test_damaged_or_unfinished_embeddings_are_refused(config, live, stored, tmp_path) -> None:
    shutil.copytree(stored["bfloat16"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train" / "00001.array_record"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(LoaderError, match="00001.array_record is cut off or changed: it has 5000 bytes; run the same"):
        batch(config, live, embeddings=str(tmp_path))
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(LoaderError, match="00001.array_record is damaged"):
        batch(config, live, size=64, embeddings=str(tmp_path))
    path.unlink()
    with pytest.raises(LoaderError, match="not complete: 1 of 3 shards are missing; run the same launch.encode"):
        batch(config, live, embeddings=str(tmp_path))
    (tmp_path / "train" / "embeddings.json").write_text("{}")
    with pytest.raises(LoaderError, match="embeddings.json cannot be read"):
        batch(config, live, embeddings=str(tmp_path))


def test_a_limited_set_is_for_looking_not_for_training(config, live, stored, tmp_path) -> None:
    shutil.copytree(stored["bfloat16"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train" / "embeddings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "records": 5}))
    with pytest.raises(LoaderError, match="are of the first 5 of 40 records; encode without --limit"):
        batch(config, live, embeddings=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"int8": True}, {}, r"holds other embeddings: rows.int8 is False there and True here"),
        ({"limit": 3}, {}, r"holds other embeddings: records is 40 there and 3 here"),
        ({}, {"clip_resolution": 0}, r"holds other embeddings: source_resolution is 64 there and 0 here"),
        ({"dtype": "bfloat"}, {}, r"--dtype='bfloat' is unknown; did you mean 'bfloat16'"),
        ({"splits": ("trian",)}, {}, r"no split 'trian'; did you mean 'train'"),
        ({"batch_size": 12, "out": "new"}, {}, r"--batch_size=12 is not a multiple of the 8 devices; next fitting: 16"),
        ({"mesh": {"data": 3, "fsdp": 1}, "out": "new"}, {}, r"does not use 8 devices"),
        ({"out": "/proc/embeddings"}, {}, r"'/proc/embeddings/train' cannot be written"),
        ({"process_index": 2, "process_count": 2}, {}, r"--process_index=2 is not below --process_count=2"),
        ({}, {"name": "synthetic"}, r"--data=synthetic"),
        ({}, {"name": "scnes"}, r"unknown data 'scnes'; did you mean 'scenes'"),
    ],
)
def test_mistakes_in_encoding_are_one_line(config, stored, tmp_path, monkeypatch, changes, data, message) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = config.copy_and_resolve_references()
    wrong.data.update(data)
    with pytest.raises(UserError, match=message) as caught:
        encode.encode(wrong, options(changes.pop("out", stored["bfloat16"]), **changes), say=lambda line: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("scene", "did you mean 'scenes'"), ("", "config.encoders is empty")])
def test_unknown_encoders_are_named(config, tmp_path, name, message) -> None:
    wrong = config.copy_and_resolve_references()
    wrong.encoders = name
    with pytest.raises(UserError, match=message):
        encode.encode(wrong, options(tmp_path))


def test_mesh_words() -> None:
    assert encode.mesh_sizes(["fsdp=4"]) == {"data": 1, "fsdp": 4}
    assert encode.mesh_sizes(["data=2", "fsdp=-1"]) == {"data": 2, "fsdp": -1}
    for word, message in (("fspd=2", "did you mean 'fsdp'"), ("fsdp=two", "expected fsdp=NUMBER"), ("data=0", "data=")):
        with pytest.raises(UserError, match=message):
            encode.mesh_sizes([word])
