"""Paint-with-words: phrases found in both tokenizations, masks of any kind, and what they do to the pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cascade_fakes as fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ediffi_jax import encoders, paint, release, samples
from ediffi_jax.cascade import Cascade, load
from ediffi_jax.encoders import Encoders
from ediffi_jax.errors import UserError
from ediffi_jax.models.attention import Context, CrossAttention
from ediffi_jax.paint import PaintError, painting, spans
from ediffi_jax.request import make_request

BOTH = ("t5", "clip_text", "clip_image")
PROMPT = "A red circle, above a Blue square; beside it a RED circle."
SAMPLED = fakes.CAPTIONS[:2]  # "a red circle left of a blue square", "two green stars on a gray background"


@pytest.fixture(scope="module")
def readers(root: Path) -> Encoders:
    return encoders.load(root / "ediffi_jax" / "releases" / "scenes" / "encoders")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paint")
    return release.write_release(root / "release", fakes.make_release(root))


@pytest.fixture(scope="module")
def both(folder: Path) -> Cascade:
    return load(folder)


@pytest.fixture(scope="module")
def cascade(both: Cascade) -> Cascade:
    """The base alone, which is what is painted."""
    return dataclasses.replace(both, stages=both.stages[:1])


def png(array: np.ndarray, path: Path) -> Path:
    Image.fromarray(array).save(path)
    return path


# Spans


def spelled(prompt: str, found: tuple[int, ...], readers: Encoders) -> tuple[str, str]:
    """What the tokens in these columns spell, by their ids alone: CLIP's and T5's."""
    tokens, first = readers.tokenize([prompt]), readers.spec.clip_tokens
    clip = [readers.clip_tokenizer.backend.id_to_token(int(tokens.clip_ids[0, c])) for c in found if c < first]
    t5 = [readers.t5_tokenizer.backend.id_to_token(int(tokens.t5_ids[0, c - first])) for c in found if c >= first]
    return "".join(clip).replace("</w>", " ").strip(), "".join(t5).replace("\u2581", " ").strip()


WORDS = ["red", "bored", "blue", "circle", "circles", "a", "thing", "left", "of", "of.", "Square,", "RED", '"moon"']
MARKS = [" ", "  ", ", ", "-", "\n", ". ", " ; "]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_phrase_is_where_str_find_finds_it_and_its_tokens_spell_it(readers: Encoders, data: st.DataObject) -> None:
    given_words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))
    gaps = data.draw(st.lists(st.sampled_from(MARKS), min_size=len(given_words), max_size=len(given_words)))
    prompt = "".join(word + gap for word, gap in zip(given_words, gaps))
    keys = [word.strip('".,').lower() for word in given_words]
    begin = data.draw(st.integers(0, len(keys) - 1))
    wanted = keys[begin : begin + data.draw(st.integers(1, 3))]
    text, phrase = f" {' '.join(keys)} ", " ".join(wanted)
    # All occurrences in the normalised text, by str.find, as numbers of words.
    starts, at = [], text.find(f" {phrase} ")
    while at >= 0:
        starts.append(text[:at].count(" "))
        at = text.find(f" {phrase} ", at + len(phrase) + 1)
    for number, start in enumerate(starts, 1):
        shouted = f"  {phrase.upper()}! #{number}" if number > 1 else phrase.title()
        low, high = spans.find(prompt, shouted)
        assert re.findall("[a-z]+", prompt[low:high].lower()) == wanted
        assert len(re.findall("[a-z]+", prompt[:low].lower())) == start
        clip, t5 = spelled(prompt, painting.columns(prompt, shouted, readers, BOTH), readers)
        for said in (clip, t5):
            assert "".join(filter(str.isalpha, said.replace("<unk>", ""))) == "".join(wanted)
    with pytest.raises(PaintError, match="occurs"):
        spans.find(prompt, f"{phrase}#{len(starts) + 1}")


def test_occurrences_case_punctuation_and_borders() -> None:
    def text(phrase: str) -> str:
        low, high = spans.find(PROMPT, phrase)
        return f"{low}:{PROMPT[low:high]}"

    assert text("red circle") == text("Red, CIRCLE!") == text("red circle#1") == "2:red circle"
    assert text("red circle#2") == "47:RED circle"
    assert text("circle above") == "6:circle, above"
    assert spans.find("a bored red robin", "red") == (8, 11)
    assert spans.find("C# sharp", "C# sharp") == (0, 8)
    assert spans.find("ein Ｒｅｄ e\u0301tude", "RED ÉTUDE") == (4, 14)
    assert spans.find("red red red", "red red") == (0, 7)


def test_columns_are_in_clips_part_and_in_t5s(readers: Encoders) -> None:
    found = painting.columns("a red circle", "red circle", readers, BOTH)
    assert found == (2, 3, 48 + 1, 48 + 2)  # CLIP begins with a start token
    assert painting.columns("a red circle", "red circle", readers, ("t5",)) == found[2:]
    strange = "the 日本語 🙂 sofa, <|endoftext|> couch"
    assert spelled(strange, painting.columns(strange, "sofa", readers, BOTH), readers) == ("sofa", "sofa")
    assert spelled(strange, painting.columns(strange, "couch", readers, BOTH), readers) == ("couch", "couch")


@pytest.mark.parametrize(("phrase", "message"), [
    ("red cirle", "'red cirle' is not in the prompt .*; closest there: 'red circle'"),
    ("xyzzy", "nothing there is like it"),
    ("ed circle", "closest there"),
    ("red circle#3", "occurs 2 times"),
    ("blue square#2", "occurs once"),
    ("red circle#0", "ends in '#0'; expected a whole number from 1"),
    ("red circle#two", "ends in '#two'"),
    ("red circle#", "ends in '#'"),
    ("  ,. ", "holds no word"),
    (3, "is int; expected text"),
])  # fmt: skip
def test_phrases_that_cannot_be_found(phrase: Any, message: str) -> None:
    with pytest.raises(PaintError, match=message) as error:
        spans.find(PROMPT, phrase)
    assert "\n" not in str(error.value)


def test_what_an_encoder_does_not_read_cannot_be_painted(readers: Encoders) -> None:
    long = "a red circle and " + "blue square , " * 15 + "a green moon"
    assert painting.columns(long, "red circle", readers, BOTH)
    with pytest.raises(PaintError, match="'green moon' is cut off: CLIP reads the first 46 tokens"):
        painting.columns(long, "green moon", readers, BOTH)
    with pytest.raises(PaintError, match="T5 reads the first 47 tokens"):
        painting.columns(long, "green moon", readers, ("t5",))
    with pytest.raises(PaintError, match="neither is in use"):
        painting.columns(long, "red circle", readers, ("clip_image",))


# What the network is given


def test_attention_is_the_papers_formula_with_the_phrases_own_columns(readers: Encoders) -> None:
    """A small layer against NumPy in float64, A built by hand from the words."""
    prompts = ["a red circle and a blue square", "a green moon"]
    weights, sigma = [0.7, 2.0], np.array([5.0, 0.3])
    plan = painting.make_plan(
        prompts, [{"red circle": "left", "circle": "top", "blue square": "right"}, {"moon": "bottom"}], weights,
        ("base",), size=4, encoders=readers, used=BOTH,
    )  # fmt: skip
    given_paint = plan.painting().at(jnp.asarray(np.log(sigma) / 4, jnp.float32))
    t, first = plan.tokens, readers.spec.clip_tokens
    a = np.zeros((2, 4, 4, t))
    for word, columns, rows in (("red", slice(0, 2), slice(0, 4)), ("circle", slice(0, 2), slice(0, 4)),
                                ("circle", slice(0, 4), slice(0, 2)), ("blue", slice(2, 4), slice(0, 4)),
                                ("square", slice(2, 4), slice(0, 4))):  # fmt: skip
        number = prompts[0].split().index(word)
        for column in (1 + number, first + number):
            a[0, rows, columns, column] += 1
    a[1, 2:, :, [1 + 2, first + 2]] += 1
    rng = np.random.default_rng(0)
    layer, x = CrossAttention(head_channels=4), rng.standard_normal((2, 4, 4, 8)).astype(np.float32)
    mask = np.asarray(np.concatenate([m for m in _masks(readers, prompts)], axis=1))
    context = Context(tokens=rng.standard_normal((2, t, 6)).astype(np.float32), mask=mask)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        layer.init(jax.random.key(0), x, context)["params"],
    )
    ours = layer.apply({"params": params}, x, context, given_paint)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    grouped = x.reshape(2, 16, 8).astype(np.float64)
    parts = grouped.reshape(2, 16, -1, 8 // _groups(params, x))
    mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    normed = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(2, 16, 8) * p["norm"]["scale"] + p["norm"]["bias"]
    q = (normed @ p["query"]["kernel"] + p["query"]["bias"]).reshape(2, 16, 2, 4)
    kv = np.asarray(context.tokens, np.float64) @ p["key_value"]["kernel"] + p["key_value"]["bias"]
    k, v = np.split(kv, 2, axis=-1)
    raw = np.einsum("bnhd,bthd->bhnt", q, k.reshape(2, t, 2, 4))
    raw[~np.broadcast_to(mask[:, None, None], raw.shape)] = -np.inf
    w = np.array(weights) * np.log(1 + sigma) * raw.max((1, 2, 3))
    logits = (raw + w[:, None, None, None] * a.reshape(2, 1, 16, t)) / 2
    e = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bhnt,bthd->bnhd", e / e.sum(-1, keepdims=True), v.reshape(2, t, 2, 4)).reshape(2, 4, 4, 8)
    expected = x + mixed @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=2e-4, atol=2e-4)


def _masks(readers: Encoders, prompts: list[str]) -> list[np.ndarray]:
    tokens = readers.tokenize(prompts)
    return [tokens.clip_mask, tokens.t5_mask, np.zeros((2, 1), bool), np.ones((2, 1), bool)]


def _groups(params: Any, x: np.ndarray) -> int:
    """Groups of the layer's norm, as seen from what changes when one channel does."""
    from ediffi_jax.models.blocks import GroupNorm

    plain = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    out = GroupNorm().apply({"params": plain}, x)
    ramp = np.indices((4, 4), np.float32)[0][..., None]
    moved = GroupNorm().apply({"params": plain}, x + 3 * ramp * np.eye(8, dtype=np.float32)[0])
    return 8 // int((np.abs(out - moved).max((0, 1, 2)) > 1e-4).sum())


class Spy:
    """A network that answers with the weight it was given, and remembers what else it saw."""

    cross_attention_resolutions = (4,)

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def apply(self, variables: Any, x: Any, c_noise: Any, cond: Any, paint: Any = None) -> Any:
        self.seen.append(paint)
        value = jnp.zeros(x.shape[0]) if paint is None else paint.weight * paint.masks[:, 0, 0, 2]
        return jnp.broadcast_to(value[:, None, None, None], x.shape)


def test_the_weight_follows_the_noise_and_the_null_pass_is_not_painted(cascade: Cascade) -> None:
    base, spy = dataclasses.replace(cascade.stages[0]), Spy()
    base.__dict__["network"] = spy
    plan = cascade.request(SAMPLED, paint=[{"red circle": "left"}, None], paint_weight=0.5).paint
    cond, x = cascade.encoders.encode(SAMPLED), jnp.zeros((2, 8, 8, 3))
    for sigma in (30.0, 0.5):
        expected = 0.5 * math.log(1 + sigma)
        c_out = sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
        for guidance in (0.0, 1.5):  # D_0 = 0, so D = (1 + w) D_c
            d = base.denoise_fn(cond, guidance, paint=plan.painting())(x, sigma)
            np.testing.assert_allclose(d[0] / c_out, (1 + guidance) * expected, rtol=1e-4)
            assert not d[1].any()
    assert {p.masks.shape[0] for p in spy.seen} == {2, 4}
    spy.seen.clear()
    assert not base.denoise_fn(cond, 1.5)(x, 1.0).any()
    assert all(p is None for p in spy.seen)


def test_a_painting_must_fit_its_conditioning(cascade: Cascade) -> None:
    cond = cascade.encoders.encode(SAMPLED)
    wrong = paint.Painting(masks=np.zeros((2, 8, 8, 7), np.float32), weight=np.ones(2, np.float32))
    with pytest.raises(PaintError, match=r"masks \[2, 8, 8, 7\] and weight \[2\]; expected \[2, h, w, 34\] and \[2\]"):
        cascade.stages[0].denoise_fn(cond, paint=wrong)


# Whole pictures


PAINTS = [{"red circle": "left", "blue square": "right"}, {"two green stars": "top"}]
STRONG = 20.0  # the untrained network listens little


def sample(cascade: Cascade, prompts: Any = SAMPLED, **wishes: Any) -> np.ndarray:
    return cascade.sample(prompts, seed=3, progress=False, **{"num": 2, **wishes})


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.fixture(scope="module")
def plain(cascade: Cascade) -> np.ndarray:
    return sample(cascade)


@pytest.fixture(scope="module")
def painted(cascade: Cascade) -> np.ndarray:
    return sample(cascade, paint=PAINTS, paint_weight=STRONG)


def test_weight_zero_is_the_unpainted_picture_and_program(cascade: Cascade, plain: np.ndarray) -> None:
    programs = cascade.stages[0]._program._cache_size()
    assert np.array_equal(sample(cascade, paint=PAINTS, paint_weight=0), plain)
    for empty in ({}, None, [None, None], [{}, None]):
        assert np.array_equal(sample(cascade, paint=empty), plain)
    assert cascade.stages[0]._program._cache_size() == programs


def test_a_painting_changes_its_own_prompts_pictures_alone(
    cascade: Cascade, plain: np.ndarray, painted: np.ndarray
) -> None:
    assert difference(painted[:2], plain[:2]) > 2 and difference(painted[2:], plain[2:]) > 2
    half = sample(cascade, paint=[None, PAINTS[1]], paint_weight=STRONG)
    assert difference(half[:2], plain[:2]) <= 1 and difference(half[2:], painted[2:]) <= 1
    assert np.array_equal(sample(cascade, paint=PAINTS, paint_weight=[0.0, STRONG]), half)


def test_a_painted_image_is_the_same_alone_and_among_other_paintings(cascade: Cascade, painted: np.ndarray) -> None:
    one_by_one = sample(cascade, paint=PAINTS, paint_weight=STRONG, batch_size=1)
    assert difference(one_by_one, painted) <= 1
    alone = sample(cascade, SAMPLED[0], num=1, paint=PAINTS[0], paint_weight=STRONG)
    assert np.array_equal(alone[0], one_by_one[0])


def test_only_the_asked_stages_are_painted(both: Cascade, plain: np.ndarray) -> None:
    wishes = {"paint": PAINTS, "paint_weight": 200.0, "return_stages": True}
    only_sr = sample(both, **wishes, paint_stages="sr16")
    assert np.array_equal(only_sr["base"], plain)
    assert difference(only_sr["sr16"], sample(both)) > 1


def test_the_record_holds_all_that_a_painting_is(cascade: Cascade, tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 20)[None].repeat(9, 0)
    mask = png(np.uint8(255 * ramp), tmp_path / "ramp.png")
    wishes = {"paint": [{"red circle": mask, "blue square": ramp}, None], "paint_weight": [0.5, 1.0]}
    request = cascade.request(SAMPLED, num=2, seed=3, **wishes)
    out = samples.write_samples(tmp_path / "out", cascade, request)
    lines = samples.read_records(out)
    first, second = lines[0]["paint"]
    assert first["phrase"] == "red circle" and first["mask"] == str(mask) and first["weight"] == 0.5
    assert len(first["sha256"]) == 64 and second["mask"].startswith("data:image/png;base64,")
    assert lines[2]["paint"] == []
    again = cascade.sample(SAMPLED, progress=False, **lines[0]["settings"])
    for line in lines:
        assert np.array_equal(again[line["index"]], np.asarray(Image.open(out / line["file"])))


NO_CROSS = fakes.with_stage(fakes.BASE, model={**fakes.BASE.model, "cross_attention_resolutions": []})
CIRCLES = Path(__file__).parent.parent / "docs" / "images" / "samples.png"  # some picture
WRONG = [
    ({"paint": {"red cirle": "left"}}, "'red cirle' is not in the prompt"),
    ({"paint": {"red circle": np.zeros((4, 4))}}, "paint 'red circle': the mask is empty"),
    ({"paint": {"red circle": 7}}, r"the mask is int64\[\]; expected \[height, width\]"),
    ({"paint": ["left"]}, "paint is list; expected {phrase: mask}"),
    ({"paint": [{"red circle": "left"}] * 2}, "2 paintings for 1 prompts"),
    ({"paint": "left"}, "paint is str"),
    ({"paint": {"red circle": "left"}, "paint_weight": -0.1}, "paint_weight is -0.1; expected a finite number >= 0"),
    ({"paint": {"red circle": "left"}, "paint_weight": math.nan}, "paint_weight is nan"),
    ({"paint": {"red circle": "left"}, "paint_weight": math.inf}, "paint_weight is inf"),
    ({"paint": {"red circle": "left"}, "paint_weight": "much"}, "paint_weight is 'much'"),
    ({"paint": {"red circle": "left"}, "paint_weight": [1, 2]}, "2 paint weights for 1 prompts"),
    ({"paint": {"red circle": "left"}, "paint_stages": ["bse"]}, "unknown stage 'bse'; did you mean 'base'"),
    ({"paint": {"red circle": "left"}, "encoders": ["clip_image"], "style": np.ones((4, 4, 3), np.uint8)}, "neither"),
    ({"paint_weight": 1.0}, "paint_weight without paint"),
    ({"paint": {"red circle": f"#00ff00@{CIRCLES}"}}, "paint 'red circle': the canvas has nothing of the .* #00ff00"),
]  # fmt: skip


@pytest.mark.parametrize(("wishes", "message"), WRONG)
def test_impossible_paintings_are_refused_in_one_line(readers: Encoders, wishes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_request([fakes.BASE, fakes.SR], 16, SAMPLED[0], readers=readers, **wishes)
    assert "\n" not in str(error.value)


def test_a_stage_without_cross_attention_cannot_be_painted(readers: Encoders) -> None:
    with pytest.raises(PaintError, match="stage 'base' has no cross-attention"):
        make_request([NO_CROSS], 16, SAMPLED[0], readers=readers, paint={"red circle": "left"})


# The command line


@pytest.mark.parametrize(("flags", "expected"), [
    (([], None, None), None),
    ((["red circle=left", "blue square = box:0,0,1,0.5"], None, None),
     {"red circle": "left", "blue square": "box:0,0,1,0.5"}),
    ((["red circle#2=a=b.png"], None, None), {"red circle#2": "a=b.png"}),
    ((["moon=top"], "c.png", "#ff0000=red circle, blue=square"),
     {"moon": "top", "red circle": "#ff0000@c.png", "square": "#0000ff@c.png"}),
])  # fmt: skip
def test_flags_are_parsed(flags: tuple, expected: dict | None) -> None:
    assert paint.parse(*flags) == expected


@pytest.mark.parametrize(("flags", "message"), [
    ((["red circle"], None, None), "--paint has 'red circle'; expected such as"),
    ((["=left"], None, None), "--paint has '=left'"),
    (([], "c.png", None), "--canvas and --legend belong together"),
    (([], None, "red=a"), "belong together"),
    (([], "c.png", "#ff0000"), "--legend has '#ff0000'"),
    (([], "c.png", "#ff000=a"), "is no colour"),
    (([], "c.png", "red=a,#fe0000=b"), "too alike"),
    ((["a=left", "a=right"], None, None), "'a' is painted twice"),
])  # fmt: skip
def test_flags_that_cannot_be(flags: tuple, message: str) -> None:
    with pytest.raises(PaintError, match=message):
        paint.parse(*flags)


@pytest.mark.slow
def test_the_verb_paints_and_records_it(cascade: Cascade, tmp_path: Path) -> None:
    folder = cascade.save(tmp_path / "base")
    canvas = np.zeros((6, 6, 3), np.uint8)
    canvas[:, 3:] = (0, 0, 255)
    png(canvas, tmp_path / "canvas.png")
    environment = {**os.environ, "XLA_FLAGS": "", "EDIFFI_CACHE": str(tmp_path / "cache")}

    command = [sys.executable, "-m", "launch.sample", f"--cascade={folder}", f"--prompt={SAMPLED[0]}", "--steps=1"]
    flags = ["--paint=red circle=left", f"--canvas={tmp_path / 'canvas.png'}", "--legend=#0000ff=blue square"]
    command += [*flags, "--paint_weight=1.5", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / "out" / "samples.jsonl").read_text())
    assert [(each["phrase"], each["weight"]) for each in line["paint"]] == [("red circle", 1.5), ("blue square", 1.5)]
    assert line["paint"][1]["mask"] == f"#0000ff@{tmp_path / 'canvas.png'}"
