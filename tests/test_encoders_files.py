"""Folders and files that cannot be used: each one an EncoderError of one line that names the file and the tensor."""

import json
import os
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ediffi_jax import encoders
from ediffi_jax.encoders import checkpoints, files
from ediffi_jax.encoders.build_tokenizers import build_clip, build_t5
from ediffi_jax.encoders.clip import ClipConfig, ClipTextConfig
from ediffi_jax.encoders.t5 import T5Config

CAPTIONS = ["a red circle left of a blue square", "two green stars above a ring"]
Q = "encoder.block.1.layer.0.SelfAttention.q.weight"


def random_params(shapes):
    import flax.traverse_util

    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return flax.traverse_util.unflatten_dict(flat)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    size = build_t5(CAPTIONS, root / "t5", max_tokens=12)
    t5 = T5Config(vocab_size=size, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2)
    checkpoints.save(random_params(checkpoints.t5_shapes(t5)), t5, root / "t5")
    size = build_clip(CAPTIONS, root / "clip")
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 6,
    }
    text = ClipTextConfig(
        vocab_size=size, max_position_embeddings=12, bos_token_id=size - 2, eos_token_id=size - 1, **sizes
    )
    clip = ClipConfig(text=text)
    checkpoints.save(random_params(checkpoints.clip_shapes(clip)), clip, root / "clip")
    return root


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "encoders")


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder, *words):
    with pytest.raises(encoders.EncoderError) as caught:
        encoders.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_the_undamaged_folder_loads(folder):
    loaded = encoders.load(folder)
    assert loaded.spec.t5_tokens == 12 and loaded.image_size == 0
    with pytest.raises(encoders.EncoderError, match="no image tower"):
        loaded.encode(None, np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop(Q), (Q, "is missing")),
    (lambda t: t.pop("shared.weight"), ("shared.weight", "is missing")),
    (lambda t: t.update({Q.replace(".1.", ".2."): np.zeros((8, 8), np.float32)}), ("encoder.block.2", "is extra")),
    (lambda t: t.update({Q: t[Q][:-1].copy()}), (Q, "[7, 8]", "[8, 8]")),
    (lambda t: t.update({Q: t[Q].astype(np.int32)}), (Q, "int32", "floating point")),
])  # fmt: skip
def test_tensors_missing_extra_misshapen(folder, change, words):
    edit(folder / "t5/model.safetensors", change)
    refused(folder, str(folder / "t5/model.safetensors"), *words)


@pytest.mark.parametrize("left", [0, 5, 200, -1, -5000])
def test_truncated_files(folder, left):
    path = folder / "t5/model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:left])
    refused(folder, str(path), "cut off" if left >= 0 else "the file is cut off: tensor '")


def test_the_first_tensor_lost_is_the_one_named(folder):
    path = folder / "t5/model.safetensors"
    stored = files.open_safetensors(path)[Q]
    path.write_bytes(path.read_bytes()[: stored.end - 1])
    refused(folder, f"tensor {Q!r} ends at byte {stored.end}")


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("header, words", [
    (b"\xff\xfe{", "no JSON"),
    ([1], "no mapping"),
    ({"w": {"dtype": "F32", "shape": [2]}}, "entry of tensor 'w' is damaged"),
    ({"w": 3}, "entry of tensor 'w' is damaged"),
    ({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, "stored as F8_E4M3"),
    ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "has 4 bytes, its shape [2] needs 8"),
    ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "'w'"),
])  # fmt: skip
def test_damaged_headers(folder, header, words):
    write_header(folder / "t5/model.safetensors", header, bytes(64))
    refused(folder, "model.safetensors", words)


def test_a_folder_in_place_of_the_file(folder):
    (folder / "t5/model.safetensors").unlink()
    refused(folder, "no weights; expected model.safetensors")
    (folder / "t5/pytorch_model.bin").write_bytes(b"")
    refused(folder, "pickled", "python -m launch.convert")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(folder):
    (folder / "t5/model.safetensors").chmod(0)
    refused(folder, "model.safetensors", "Permission denied")


def shard(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    (folder / "model.safetensors").unlink()
    placed = {name: file for file, held in parts.items() for name in held}
    (folder / files.INDEX).write_text(json.dumps({"weight_map": placed}))
    return placed


def test_shards(folder, good):
    placed = shard(folder / "t5")
    assert encoders.load(folder).fingerprint == encoders.load(good).fingerprint
    edit(folder / "t5" / placed[Q], lambda tensors: tensors.pop(Q))
    refused(folder, placed[Q], Q, "is missing")
    (folder / "t5/a.safetensors").unlink()
    refused(folder, "a.safetensors", "No such file")
    (folder / "t5" / files.INDEX).write_text("{}")
    refused(folder, files.INDEX, "weight_map")


def test_several_files_without_an_index_are_ambiguous(folder):
    shard(folder / "t5")
    (folder / "t5" / files.INDEX).unlink()
    refused(folder, "found 2 files", "a.safetensors, b.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_stored_half_precision_and_double_are_read_exactly(folder, dtype):
    def narrow(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)

    edit(folder / "t5/model.safetensors", narrow)
    params = encoders.load(folder).params["t5"]
    stored = load_file(folder / "t5/model.safetensors")
    kernel = params["block_1"]["attention"]["q"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, stored[Q].T.astype(np.float32))


@pytest.mark.parametrize("file, content, words", [
    ("t5/config.json", '{"model_type": "t5", "d_model": "wide"}', ("config.json", "d_model is 'wide', expected int")),
    ("t5/config.json", '{"model_type": "t5", "d_model": 9}', ("has shape", "config.json makes it")),
    ("t5/config.json", "[]", ("config.json", "expected a JSON mapping")),
    ("t5/ediffi.json", '{"max_tokens": 1}', ("max_tokens is 1",)),
    ("clip/preprocessor_config.json", '{"image_mean": "gray"}', ("preprocessor_config.json",)),
])  # fmt: skip
def test_settings_that_cannot_be_used(folder, file, content, words):
    (folder / file).write_text(content)
    refused(folder, *words)


def test_unknown_activation_names_the_nearest(folder):
    described = json.loads((folder / "t5/config.json").read_text())
    (folder / "t5/config.json").write_text(json.dumps({**described, "feed_forward_proj": "gelu_nwe"}))
    refused(folder, "unknown activation 'gelu_nwe'; did you mean 'gelu_new'?")


def test_tokenizer_of_another_encoder(folder):
    build_t5([*CAPTIONS, "quite another vocabulary with many more letters, xyz"], folder / "t5", extra_ids=50)
    refused(folder, "they do not belong together")


def test_end_token_of_another_tokenizer(folder):
    described = json.loads((folder / "clip/config.json").read_text())
    (folder / "clip/config.json").write_text(json.dumps({**described, "eos_token_id": 7}))
    refused(folder, "eos_token_id is 7")


def test_length_of_t5_prompts(folder):
    (folder / "t5/ediffi.json").write_text('{"max_tokens": 9}')
    assert encoders.load(folder).spec.t5_tokens == 9
    (folder / "t5/ediffi.json").unlink()
    config = json.loads((folder / "t5/tokenizer_config.json").read_text())
    (folder / "t5/tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 512}))
    assert encoders.load(folder).spec.t5_tokens == encoders.MAX_T5_TOKENS == 113


def test_folders_without_encoders_and_unknown_names(tmp_path, folder):
    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no T5 or CLIP found")
    with pytest.raises(encoders.EncoderError, match="no bundled encoders are called 'scnes'"):
        encoders.bundled("scnes")
    with pytest.raises(encoders.EncoderError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        encoders.load(folder, dtype="bfloat61")


def test_one_encoder_alone(folder):
    shutil.rmtree(folder / "clip")
    loaded = encoders.load(folder)
    cond = loaded.encode(["a red circle"])
    assert cond.t5_mask.any() and not cond.clip_text_mask.any() and cond.clip_text.shape == (1, 1, 1)
    assert encoders.load(folder / "t5").spec == loaded.spec
    with pytest.raises(encoders.EncoderError, match="nothing to encode"):
        loaded.encode(None)
