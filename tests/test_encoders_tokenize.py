"""Token ids equal those of transformers' tokenizers; lengths, masks, truncation, empty prompts."""

import subprocess
import sys

import numpy as np
import pytest
import transformers
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from ediffi_jax.encoders.build_tokenizers import build_clip, build_t5
from ediffi_jax.encoders.encoders import EncoderError
from ediffi_jax.encoders.tokenize import check_prompts, load_clip_tokenizer, load_t5_tokenizer

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart")
CAPTIONS = [
    f"a {a} {s} {relation} two small {b} {t}s on a gray background, in ink"
    for a in COLOURS
    for b in COLOURS
    for s in SHAPES
    for t in SHAPES[::2]
    for relation in ("left of", "above", "inside")
][::7]
HARD = [
    "  Ünïcode  ﬁ ＡＢ １２３ don't  ",
    "a</s> b <extra_id_0> <pad> c",
    "<|endoftext|> hi <|startoftext|>!!",
    "日本語 red\tcircle\n 42nd 🙂",
    "RED Circle's they're   x-ray",
    "e\u0301\u200b \u00a0 .",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    build_t5(CAPTIONS, root / "t5", max_tokens=30)
    build_clip(CAPTIONS, root / "clip", max_tokens=20)
    for name in ("t5", "clip"):  # the same again as tokenizer.json
        cls = transformers.T5Tokenizer if name == "t5" else transformers.CLIPTokenizer
        cls.from_pretrained(root / name).save_pretrained(root / f"{name}_json")
        assert (root / f"{name}_json/tokenizer.json").exists()
    return root


@pytest.fixture(scope="module", params=["t5", "t5_json", "clip", "clip_json"])
def pair(request, folder):
    path = folder / request.param
    if request.param.startswith("t5"):
        return load_t5_tokenizer(path, 30), transformers.T5Tokenizer.from_pretrained(path)
    return load_clip_tokenizer(path, 20), transformers.CLIPTokenizer.from_pretrained(path)


def assert_same(pair, texts):
    ours, theirs = pair
    ids, mask = ours(texts)
    expected = theirs(texts, padding="max_length", truncation=True, max_length=ours.length)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, np.array(expected["attention_mask"], bool))
    assert ids.dtype == np.int32 and mask.dtype == bool


def test_captions_and_hard_texts_give_the_ids_of_transformers(pair):
    assert_same(pair, CAPTIONS[:100] + HARD)


@settings(max_examples=150, deadline=None)
@given(text=st.text(min_size=1, max_size=40))
def test_any_text_gives_the_ids_of_transformers(pair, text):
    if "\x00" not in text:
        assert_same(pair, [text])


@pytest.mark.parametrize("name, load", [("t5", load_t5_tokenizer), ("clip", load_clip_tokenizer)])
def test_every_word_of_a_closed_vocabulary_is_one_token(folder, name, load):
    ids, mask = load(folder / name, 40)(["A Red circle left of two small yellow rings on a gray background"])
    assert mask.sum() == 13 + (1 if name == "t5" else 2)


def test_built_tokenizers_are_the_same_every_time(folder, tmp_path):
    build_t5(CAPTIONS, tmp_path / "t5", max_tokens=30)
    build_clip(CAPTIONS, tmp_path / "clip", max_tokens=20)
    for name in ("t5/spiece.model", "clip/vocab.json", "clip/merges.txt"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_built_vocabulary_sizes_count_the_sentinels(tmp_path):
    size = build_t5(CAPTIONS, tmp_path / "t5", extra_ids=7)
    tokenizer = load_t5_tokenizer(tmp_path / "t5", 30)
    assert tokenizer.backend.get_vocab_size() == size
    assert tokenizer.backend.token_to_id("<extra_id_0>") == size - 1
    size = build_clip(CAPTIONS, tmp_path / "clip")
    assert load_clip_tokenizer(tmp_path / "clip", 30).end == size - 1


def test_truncation_warns_with_what_is_lost_and_keeps_the_end(folder, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
    tokenizer = load_clip_tokenizer(folder / "clip", 8)
    ids, mask = tokenizer(["a red circle above two small Blue stars", "a red circle"])
    assert ids[0, -1] == tokenizer.end and mask[0].all() and mask[1].sum() == 5
    assert said == ["CLIP reads the first 6 tokens of a prompt; lost: 'Blue stars'"]
    load_t5_tokenizer(folder / "t5", 5)(["a red circle above two"])
    assert said[1:] == ["T5 reads the first 4 tokens of a prompt; lost: 'two'"]


@pytest.mark.parametrize("prompts, message", [
    ([], "no prompts"),
    (["a", ""], "prompt 1 is empty"),
    ([" \n"], "prompt 0 is empty"),
    ([3], "prompt 0 is int"),
    ("a red circle", r"write \[prompt\]"),
])  # fmt: skip
def test_prompts_that_cannot_be_used(prompts, message):
    with pytest.raises(EncoderError, match=message):
        check_prompts(prompts)


def test_special_tokens_of_other_folders_are_honoured(folder, tmp_path):
    """Some published CLIPs fill up with "!" (id 0) instead of the end token."""
    import shutil

    copy = shutil.copytree(folder / "clip", tmp_path / "clip")
    (copy / "tokenizer_config.json").unlink()
    (copy / "special_tokens_map.json").write_text(
        '{"pad_token": "!", "eos_token": {"content": "<|endoftext|>", "normalized": true, "lstrip": false,'
        ' "rstrip": false, "single_word": false}}'
    )
    pair = load_clip_tokenizer(copy, 20), transformers.CLIPTokenizer.from_pretrained(copy, pad_token="!")
    assert pair[0].pad != pair[0].end
    assert_same(pair, ["a red circle", "wow! a star"])


@pytest.mark.parametrize("damage, message", [
    (lambda f: (f / "spiece.model").write_bytes((f / "spiece.model").read_bytes()[:5000]), "not a sentencepiece model"),
    (lambda f: (f / "spiece.model").write_bytes(b"nothing of the kind"), "not a sentencepiece model"),
    (lambda f: (f / "spiece.model").unlink(), "no T5 tokenizer"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
    (lambda f: (f / "tokenizer_config.json").write_text("{"), "cannot be read as JSON"),
    (lambda f: (f / "tokenizer_config.json").write_text('{"pad_token": "<nope>"}'), None),
])  # fmt: skip
def test_damaged_t5_tokenizers(folder, tmp_path, damage, message):
    import shutil

    copy = shutil.copytree(folder / "t5", tmp_path / "t5")
    damage(copy)
    if message is None:  # an added token takes a new id; the encoder's table then refuses it
        assert load_t5_tokenizer(copy, 10).pad > load_t5_tokenizer(folder / "t5", 10).end
        return
    with pytest.raises(EncoderError, match=message):
        load_t5_tokenizer(copy, 10)


@pytest.mark.parametrize("damage, message", [
    (lambda f: (f / "merges.txt").write_text("#version: 0.2\na b c\n"), "merge 1 is 'a b c'"),
    (lambda f: (f / "merges.txt").write_text("#version: 0.2\nqq zz\n"), "do not fit"),
    (lambda f: (f / "vocab.json").unlink(), "no CLIP tokenizer"),
])  # fmt: skip
def test_damaged_clip_tokenizers(folder, tmp_path, damage, message):
    import shutil

    copy = shutil.copytree(folder / "clip", tmp_path / "clip")
    damage(copy)
    with pytest.raises(EncoderError, match=message):
        load_clip_tokenizer(copy, 10)


def test_encoders_import_neither_torch_nor_transformers():
    code = "import sys, ediffi_jax.encoders; sys.exit(bool({'torch', 'transformers', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
