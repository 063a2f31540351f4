"""Pickled weights to safetensors: values, shards, ties, refusals, nothing half-written."""

import collections
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ediffi_jax.encoders import EncoderError
from ediffi_jax.encoders.checkpoints import load_t5
from ediffi_jax.encoders.convert import convert

SIZES = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 4}


class Bomb:
    """What unpickling must not run."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "spiece.model").write_bytes(b"pieces")
    return folder


@pytest.fixture
def weights(source):
    return torch.load(source / "pytorch_model.bin", weights_only=True)


def test_a_folder_becomes_one_that_both_sides_read(source, weights, tmp_path):
    out = convert(source, tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors", "spiece.model"]
    stored = load_file(out / "model.safetensors")
    assert all(torch.equal(stored[name], weights[name]) for name in stored)
    assert "shared.weight" in stored and "encoder.embed_tokens.weight" not in stored
    load_t5(out)
    _, info = transformers.T5ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (out / "spiece.model").read_bytes() == b"pieces"
    assert not (tmp_path / "out.partial").exists()


def test_shards_index_and_the_encoder_alone(source, tmp_path):
    out = convert(source, tmp_path / "out", max_shard_gb=3e-6, encoder_only=True, dtype="bfloat16")
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2 and (out / "model.safetensors.index.json").exists()
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert not any(name.startswith(("decoder.", "lm_head.")) for name in stored)
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    load_t5(out)
    transformers.T5EncoderModel.from_pretrained(out)


def test_pickled_shards(source, weights, tmp_path):
    import json

    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in parts.items():
        torch.save({name: weights[name].clone() for name in held}, source / file)
    (source / "pytorch_model.bin").unlink()
    placed = {name: file for file, held in parts.items() for name in held}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    load_t5(convert(source, tmp_path / "out"))
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(EncoderError, match="pytorch_model-00002-of-00002.bin"):
        convert(source, tmp_path / "out2")


@pytest.mark.parametrize("nested", ["state_dict", None])
def test_old_formats_views_and_nested_dictionaries(tmp_path, nested):
    base = torch.arange(12.0)
    tensors = collections.OrderedDict(a=base[:6].view(2, 3), b=base.view(3, 4).T, c=torch.tensor(3))
    torch.save(
        {nested: tensors, "epoch": 3} if nested else tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    stored = load_file(convert(tmp_path / "old.pth", tmp_path / "out") / "model.safetensors")
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)


def test_a_pickle_that_runs_code_is_refused_and_nothing_is_left(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2), "more": Bomb()}, source / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="refused: the pickle holds more than tensors"):
        convert(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.parametrize("content, words", [
    (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "cannot be read|refused"),
    (lambda path: path.write_bytes(b""), "cannot be read|refused"),
    (lambda path: torch.save([torch.zeros(2)], path), "a mapping from names to tensors"),
    (lambda path: torch.save({"a": 3}, path), "a mapping from names to tensors"),
    (lambda path: torch.save({}, path), "holds no tensors"),
    (lambda path: path.unlink(), "found none"),
])  # fmt: skip
def test_files_that_cannot_be_used(source, tmp_path, content, words):
    content(source / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=words) as caught:
        convert(source, tmp_path / "out")
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out*"))


def test_arguments_that_cannot_be_used(source, tmp_path):
    with pytest.raises(EncoderError, match="exists already"):
        convert(source, tmp_path)
    with pytest.raises(EncoderError, match="unknown dtype 'bf16'"):
        convert(source, tmp_path / "out", dtype="bf16")
    with pytest.raises(EncoderError, match="expected more than 0"):
        convert(source, tmp_path / "out", max_shard_gb=0)
    with pytest.raises(EncoderError, match="no such file or folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(EncoderError, match="cannot be written"):
        convert(source, tmp_path / "file" / "out")


def test_without_torch_the_extra_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EncoderError, match=r"reading pickled weights needs torch: pip install .*\[convert\]"):
        convert(source, tmp_path / "out")


def verb(*args):
    return subprocess.run([sys.executable, "-m", "launch.convert", *args], capture_output=True, text=True, check=False)


def test_the_verb(source, tmp_path):
    done = verb(f"--input={source}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0 and "GB of safetensors in" in done.stdout
    again = verb(f"--input={source}", f"--output={tmp_path / 'out'}")
    assert (
        again.returncode == 2
        and again.stderr.strip().startswith("error: ")
        and len(again.stderr.strip().splitlines()) == 1
    )
    assert "python -m launch.convert" in verb("--help").stdout
