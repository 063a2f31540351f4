"""Sweeps over guidance: numbers, resuming, refusals, pictures; a run really killed; the verb as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cascade_fakes as fakes
import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from ediffi_jax import cascade as cascades
from ediffi_jax import encoders, release, stores
from ediffi_jax.encoders import build_tokenizers
from ediffi_jax.evaluation import curve_picture, curves, features, inputs, picture_folder, reference, tradeoff
from ediffi_jax.evaluation.clip_score import ClipScore
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.protocols import Protocol

N = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    return release.write_release(root / "release", fakes.make_release(root))


@pytest.fixture(scope="module")
def cascade(folder):
    return cascades.load(folder)


@pytest.fixture(scope="module")
def network():
    return features.of_encoders(encoders.load("scenes"))


@pytest.fixture(scope="module")
def clip(network):
    return ClipScore(encoders.load("scenes"))


@pytest.fixture(scope="module")
def asked():
    """Prompts in the words that the fake encoders know, with noise as real pictures."""
    prompts = tuple(f"{fakes.CAPTIONS[i % 3]} on a gray background" for i in range(2 * N))
    real = np.random.default_rng(0).integers(0, 256, (2 * N, 16, 16, 3), dtype=np.uint8)
    return Protocol(name="noise", prompts=prompts, picture=lambda i: real[i], described={"seed": 0})


@pytest.fixture(scope="module")
def real(network, asked):
    return reference.make(network, asked, 16, N, progress=False)


@pytest.fixture
def sweep(cascade, asked, real, network, clip, tmp_path):
    def call(**changes):
        given = {"guidance": (0.0, 2.0), "seeds": (0, 1), "num": N, "out": tmp_path / "out", "save_every": 8}
        parts = {"cascade": cascade, "protocol": asked, "reference": real, "network": network, "clip": clip}
        given, parts = given | changes, parts | {k: changes.pop(k) for k in list(changes) if k in parts}
        for name in parts:
            given.pop(name, None)
        return tradeoff.sweep(**parts, **given, batch_size=8, progress=False)

    return call


@pytest.fixture(scope="module")
def finished(cascade, asked, real, network, clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    curve = tradeoff.sweep(
        cascade, asked, real, network, clip, guidance=(0.0, 2.0), seeds=(0, 1), num=N, out=out, save_every=8,
        batch_size=8, progress=False, label="fake", dump=True,
    )  # fmt: skip
    return curve, out


def test_a_sweep_measures_what_the_cascade_samples(finished, cascade, asked, real, network, clip):
    curve, out = finished
    assert curve.guidance == [0, 2] and curve.seeds == [0, 1] and len(curve.points) == 4
    point = next(p for p in curve.points if (p.guidance, p.seed) == (2, 1))
    prompts = list(asked.prompts[:N])
    images = cascade.sample(prompts, seed=1, guidance=2.0, batch_size=8, progress=False)
    from ediffi_jax.evaluation.frechet import frechet_distance, moments
    from ediffi_jax.evaluation.kid import kid

    rows = network(images)
    assert point.fid == pytest.approx(frechet_distance(moments(rows), moments(real.features)), rel=1e-4)
    assert point.kid == pytest.approx(kid(rows, real.features).mean, rel=1e-3, abs=1e-5)
    assert point.clip_score == pytest.approx(clip(prompts, images).mean(), abs=1e-5)
    dumped = [np.asarray(Image.open(file)) for file in sorted((out / "pictures" / "w2_seed1").iterdir())]
    assert np.abs(np.stack(dumped).astype(int) - images).max() <= 1  # rounding: batches of other sizes


def test_every_number_carries_its_conditions(finished):
    curve, out = finished
    stored = json.loads((out / "curve.json").read_text())
    for point in stored["points"]:
        assert point["n"] == N and point["reference_n"] == N and point["seed"] in (0, 1)
        assert point["sampler"] == {"base": "deis_kutta3", "sr16": "deis_kutta3"}
        assert point["steps"] == {"base": 4, "sr16": 2}
        assert point["resize"] == "pil_bicubic" and point["right"] is None
    row = next(row for row in stored["over_seeds"] if row["guidance"] == 2)
    values = [p["fid"] for p in stored["points"] if p["guidance"] == 2]
    assert row["fid"]["mean"] == pytest.approx(np.mean(values))
    assert row["fid"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert stored["settings"]["network"]["name"].endswith("(not Inception)")
    assert stored["settings"]["cascade"]["fingerprint"]
    assert curves.read(out) == dataclasses.replace(curve, settings=stored["settings"])
    assert not list((out / "points").glob("*.npz"))  # features go once their point is written


def test_few_pictures_are_warned_about(sweep, caplog):
    sweep(guidance=(0.0,), seeds=(0,))
    assert f"n = {N} < 10,000: FID is biased" in caplog.text


def test_what_is_there_is_not_measured_again_and_more_may_be_added(sweep, cascade, tmp_path, monkeypatch):
    first = sweep(seeds=(0,))
    sampled, run = [], type(cascade).run

    def watched(self, request, **how):
        sampled.append(request.seed)
        return run(self, request, **how)

    monkeypatch.setattr(type(cascade), "run", watched)
    again = sweep(seeds=(0,))
    assert again.points == first.points and not sampled
    more = sweep(guidance=(2.0, 0.0), seeds=(0, 1))
    assert set(sampled) == {1} and {p for p in map(str, first.points)} < {p for p in map(str, more.points)}


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_an_interrupted_sweep_goes_on_to_the_same_numbers(
    sweep, finished, cascade, monkeypatch, tmp_path, place, store
):
    run, calls, out = type(cascade).run, [], tmp_path / "out" if place == "disk" else stores.at("gs://bucket/out")

    def stopping(self, request, **how):
        calls.append(request.first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, request, **how)

    monkeypatch.setattr(type(cascade), "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(out=out)
    assert sorted(p.name for p in (out / "points").iterdir()) == ["w0_seed0_00000000.npz"]
    monkeypatch.setattr(type(cascade), "run", run)
    assert sweep(out=out).points == finished[0].points
    assert sorted(p.name for p in (out / "points").iterdir()) == [
        "w0_seed0.json", "w0_seed1.json", "w2_seed0.json", "w2_seed1.json"
    ]  # fmt: skip
    curve_picture.write([curves.read(out)], out)
    assert {p.name for p in out.iterdir()} >= {"run.json", "curve.json", "curve.md", "curve.png", "curve.svg"}
    assert store.refused == [] and (place == "bucket") == bool(store.names("bucket/out/points"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num": N - 1}, f"holds another run: n = {N}, this run n = {N - 1}; name a new --out"),
        ({"steps": 3}, "stages.base.steps = 4, this run stages.base.steps = 3"),
        ({"save_every": 16}, "part = 8, this run part = 16"),
    ],
)
def test_a_folder_of_another_run_is_refused(sweep, tmp_path, changes, message):
    sweep(guidance=(0.0,), seeds=(0,))
    with pytest.raises(EvaluationError, match=re.escape(message)):
        sweep(**changes)


def test_wishes_that_cannot_be_are_refused_before_sampling(sweep, network, real, tmp_path):
    with pytest.raises(EvaluationError, match="noise has 32 pictures, 41 are asked for"):
        sweep(num=41)
    with pytest.raises(EvaluationError, match="each only once"):
        sweep(guidance=(1.0, 1.0))
    with pytest.raises(EvaluationError, match="the reference statistics have resize = pil_bicubic, this run"):
        sweep(network=dataclasses.replace(network, filter="tf1_bilinear"))
    other = dataclasses.replace(real, described={**real.described, "resolution": 64})
    with pytest.raises(EvaluationError, match="resolution = 64, this run resolution = 16"):
        sweep(reference=other)
    with pytest.raises(EvaluationError, match="9 generated pictures are too few"):
        sweep(num=9)
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_named(sweep, tmp_path, cascade, monkeypatch):
    sweep(guidance=(0.0,), seeds=(0,), keep_features=True)
    points = tmp_path / "out/points"
    (points / "w0_seed0.json").unlink()
    part = points / "w0_seed0_00000008.npz"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(EvaluationError, match="w0_seed0_00000008.npz is damaged; remove it"):
        sweep(guidance=(0.0,), seeds=(0,))


def test_reference_statistics_are_kept_and_refused_where_they_are_of_something_else(network, asked, real, tmp_path):
    path = tmp_path / "deep" / "real.npz"
    reference.save(real, path)
    again = reference.load(path, network, asked, 16, N)
    np.testing.assert_array_equal(again.features, real.features)
    assert again.fingerprint == real.fingerprint
    lanczos, weights = dataclasses.replace(network, filter="pil_lanczos"), dataclasses.replace(network, fingerprint="0")
    seed = dataclasses.replace(asked, described={"seed": 1})
    for given, message in (
        ((lanczos, asked, 16, N), "resize = pil_bicubic, this run resize = pil_lanczos"),
        ((weights, asked, 16, N), "network.fingerprint = "),
        ((network, asked, 32, N), "resolution = 16, this run resolution = 32"),
        ((network, asked, 16, N + 1), f"n = {N}, this run n = {N + 1}"),
        ((network, seed, 16, N), "source.seed = 0, this run source.seed = 1"),
    ):
        with pytest.raises(EvaluationError, match=re.escape(message)) as caught:
            reference.load(path, *given)
        assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EvaluationError, match="damaged"):
        reference.load(path, network, asked, 16, N)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))  # as pytorch-fid writes them
    with pytest.raises(EvaluationError, match="do not say which network"):
        reference.load(path, network, asked, 16, N)


def test_features_and_scores_do_not_depend_on_the_devices(network, clip, asked):
    assert len(jax.devices()) == 8
    pictures = np.stack([asked.picture(i) for i in range(19)])
    over_all = features.of_encoders(encoders.load("scenes"), devices=jax.devices())
    np.testing.assert_allclose(over_all(pictures), network(pictures), atol=1e-5)
    scores = ClipScore(clip.encoders, tuple(jax.devices()))(asked.prompts[:19], pictures)
    np.testing.assert_allclose(scores, clip(asked.prompts[:19], pictures), atol=1e-6)
    with pytest.raises(EvaluationError, match="2 prompts for 3 pictures"):
        clip(["a", "b"], pictures[:3])


def test_clip_score_is_transformers_own_of_a_vit_g_layout(tmp_path):
    """The shape of CLIP ViT-g/14: exact GELU, patches of 14, towers of different widths, heads of 88 / 2."""
    size = build_tokenizers.build_clip(fakes.CAPTIONS, tmp_path, max_tokens=16)
    text = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text |= {"num_hidden_layers": 2, "max_position_embeddings": 16, "hidden_act": "gelu"}
    text |= {"bos_token_id": size - 2, "eos_token_id": size - 1}
    vision = {"hidden_size": 88, "intermediate_size": 384, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision |= {"image_size": 28, "patch_size": 14, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    transformers.set_seed(0)
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    score = ClipScore(encoders.load(tmp_path))
    import torch

    tokens = score.encoders.tokenize(list(fakes.CAPTIONS))
    mean, std = np.array(score.encoders.mean), np.array(score.encoders.std)
    small = [np.asarray(Image.fromarray(p).resize((28, 28), Image.Resampling.BICUBIC)) / 255 for p in pictures]
    pixels = torch.tensor((np.stack(small) - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        ids = torch.tensor(np.asarray(tokens.clip_ids), dtype=torch.long)
        found = model(input_ids=ids, pixel_values=pixels)
        expected = (found.text_embeds * found.image_embeds).sum(-1).numpy()
    np.testing.assert_allclose(score(fakes.CAPTIONS, pictures), expected, atol=1e-5)


def test_reference_statistics_in_a_bucket_are_made_once(store, network, asked, real):
    path, looked_at = "gs://bucket/statistics/real.npz", []
    for _ in range(2):
        found = inputs.real(path, network, asked, 16, N, before=lambda: looked_at.append(1))
        assert found.fingerprint == real.fingerprint
    assert looked_at == [1] and store.names("") == ["bucket/statistics/real.npz"] and store.refused == []


def test_curves_become_a_table_and_pictures(finished, tmp_path):
    curve, _ = finished
    text = curve_picture.write([curve, dataclasses.replace(curve, label="other")], tmp_path)
    lines = text.splitlines()
    assert lines[0] == "| run | w | n | seeds | FID | KID | CLIP score | precision | recall |"
    assert len([line for line in lines if line.startswith(("| fake |", "| other |"))]) == 4
    assert f"n = {N}, seeds 0, 1" in text and "pil_bicubic" in text and "±" in lines[2]
    assert Image.open(tmp_path / "curve.png").size[0] > 500
    svg = (tmp_path / "curve.svg").read_text()
    curve_picture.plot([curve, dataclasses.replace(curve, label="other")], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == svg
    with pytest.raises(EvaluationError, match="expected .png or .svg"):
        curve_picture.plot([curve], tmp_path / "curve.gif")
    with pytest.raises(EvaluationError, match="unknown measure 'fidd'; did you mean 'fid'"):
        curve_picture.plot([curve], tmp_path / "curve.png", "fidd")
    other = dataclasses.replace(curve, label="b", settings={**curve.settings, "resize": "tf1_bilinear"})
    with pytest.raises(EvaluationError, match="b has another resize than fake"):
        curve_picture.plot([curve, other], tmp_path / "curve.png")


def test_curves_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no curve in .*expected a finished launch.evaluate"):
        curves.read(tmp_path)
    (tmp_path / "curve.json").write_text("{}")
    with pytest.raises(EvaluationError, match="not a curve, or damaged"):
        curves.read(tmp_path)


def test_a_folder_of_pictures_is_measured(network, clip, asked, real, tmp_path):
    for i in range(N):
        Image.fromarray(asked.picture(i)).save(tmp_path / f"{i:04d}.png")
    found = picture_folder.read(tmp_path)
    measured = picture_folder.measure_pictures(found, real, network, clip)
    assert measured["fid"] == pytest.approx(0, abs=1e-3) and measured["precision"] == measured["recall"] == 1
    assert measured["clip_score"] is None and measured["reference"]["n"] == N
    lines = [{"file": f"{i:04d}.png", "prompt": asked.prompts[i]} for i in range(N)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with_prompts = picture_folder.measure_pictures(picture_folder.read(tmp_path), real, network, clip)
    pictures = np.stack([asked.picture(i) for i in range(N)])
    assert with_prompts["clip_score"] == pytest.approx(clip(asked.prompts[:N], pictures).mean(), abs=1e-6)
    with pytest.raises(EvaluationError, match=f"has {N} pictures, {N + 1} are asked for"):
        picture_folder.read(tmp_path, N + 1)


def test_a_stage_can_be_the_last(cascade):
    assert [s.spec.name for s in inputs.up_to(cascade, "base").stages] == ["base"]
    assert inputs.up_to(cascade, None) is cascade
    with pytest.raises(cascades.CascadeError, match="unknown stage 'sr61'; did you mean 'sr16'"):
        inputs.up_to(cascade, "sr61")


def test_a_piece_of_the_prompts_makes_the_same_pictures(cascade):
    prompts = [fakes.CAPTIONS[i % 3] for i in range(16)]
    whole = cascade.sample(prompts, seed=3, guidance=2.0, batch_size=8, progress=False)
    piece = cascade.request(prompts[8:], seed=3, guidance=2.0, batch_size=8, first=8)
    (batch,) = cascade.run(piece, progress=False)
    np.testing.assert_array_equal(batch.images["sr16"], whole[8:])
    with pytest.raises(cascades.CascadeError, match="first is -1"):
        cascade.request("a", first=-1)


# The verb.


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "launch.evaluate", *flags]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "EDIFFI_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": ""}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_equal_numbers(folder, tmp_path):
    flags = [f"--cascade={folder}", "--stage=base", "--num=48", "--guidance=0", "--seeds=4,5", "--save_every=8"]
    flags += [f"--reference={tmp_path / 'real.npz'}", "--keep_features"]
    env = environment(tmp_path / "cache")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(*flags, f"--out={killed}"), env=env, stderr=subprocess.PIPE, text=True)
    first = killed / "points" / "w0_seed4_00000000.npz"
    deadline = time.monotonic() + 240
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert first.exists() and not (killed / "curve.json").exists()
    written = first.stat().st_mtime_ns
    for out in (killed, whole):
        done = subprocess.run(command(*flags, f"--out={out}"), env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == written  # kept, not made again
    numbers = [json.loads((out / "curve.json").read_text()) for out in (killed, whole)]
    assert numbers[0] == numbers[1]
    assert not list(killed.rglob("*.tmp")) and (whole / "curve.png").exists() and "| 0 | 48 | 2 |" in done.stdout


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--guidance=1:0:1"], "--guidance=1:0:1; expected numbers"),
        (["--seeds=a"], "--seeds=a; expected whole numbers"),
        (["--stage=sr17"], "unknown stage 'sr17'; did you mean 'sr16'"),
        (["--protocol=coc"], "unknown protocol 'coc'; did you mean 'coco'"),
        (["--resize=bilinear"], "unknown resize filter 'bilinear'"),
        (["--inception=nothing.pth"], "no Inception weights in nothing.pth"),
        (["--clip=nowhere"], "nowhere"),
        (["--generated=nowhere"], "no folder nowhere"),
        (["--compare=nowhere"], "no curve in nowhere"),
        (["--sampler=euller"], "euler"),
        (["--num=5"], "expected at least 10"),
        (["--guidance=1,1"], "each only once"),
        (["--encoders=t6"], "t5"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(flags, message, folder, tmp_path, capsys, monkeypatch):
    from absl import flags as absl_flags

    import launch._main
    import launch.evaluate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    with pytest.raises(SystemExit) as ended:
        given = [f"--cascade={folder}", f"--out={tmp_path / 'out'}", "--num=12", *flags]
        launch._main.run(launch.evaluate.main, ["evaluate", *given])
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "out").exists()
    absl_flags.FLAGS.unparse_flags()
    for name in absl_flags.FLAGS:
        absl_flags.FLAGS[name].unparse()
