"""Degradation against its published definition: kernels, noise, JPEG, probabilities; then in the loader."""

from __future__ import annotations

import collections
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from ediffi_jax.data.degrade import PRESETS, Degrader, chain, degrade, kernels, operations
from ediffi_jax.data.loader import LoaderError, Part, make_loader
from ediffi_jax.data.scenes.builder import ScenesConfig, prepare
from ediffi_jax.noise import LogNormal
from ediffi_jax.training import config_files
from ediffi_jax.training.config import default, validate
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.objective import Noises, Objective

NUMBER = 24
FULL = PRESETS["full"]
# What a share may miss its probability by, in standard errors. The draws are seeded: it passes always or never.
SIGMAS = 4


def near(share: float, probability: float, number: int) -> bool:
    return abs(share - probability) <= SIGMAS * math.sqrt(probability * (1 - probability) / number)


def photograph(side: int = 64, seed: int = 0) -> np.ndarray:
    """A picture with detail of all sizes and many levels, uint8."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.random((n, n, 3)).astype(np.float32), (side, side)) / n for n in (2, 4, 8, 16, side)]
    image = sum(layers) / sum(1 / n for n in (2, 4, 8, 16, side))
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------ kernels

SIDES = st.integers(1, 15).map(lambda half: 2 * half + 1)
SIGMA = st.floats(0.2, 3.0)
ANGLE = st.floats(-math.pi, math.pi)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIGMA, SIGMA, ANGLE, st.floats(0.5, 4.0), st.floats(math.pi / 5, math.pi))
def test_kernels_sum_to_one_and_are_the_same_seen_from_both_sides(side, first, second, angle, beta, cutoff) -> None:
    made = [
        kernels.gaussian(side, (first, second), angle),
        kernels.gaussian(side, (first, second), angle, beta),
        kernels.plateau(side, (first, second), angle, min(beta, 2)),
        kernels.sinc(side, cutoff),
    ]
    for kernel in made:
        assert kernel.shape == (side, side) and kernel.dtype == np.float32
        assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], rtol=1e-5, atol=1e-8)
    round_ones = [
        kernels.gaussian(side, (first, first), angle, beta),
        kernels.plateau(side, (first, first), angle, 1.5),
    ]
    for kernel in [*round_ones, made[3]]:
        np.testing.assert_allclose(kernel, np.rot90(kernel), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("beta", [0.8, 1.0, 1.5, 2.5, 4.0])
def test_gaussians_have_the_covariance_of_their_closed_form(beta: float) -> None:
    """Per axis of exp(-q^β/2) in two dimensions: σ² 2^(1/β) Γ(2/β) / (2 Γ(1/β)), which is σ² for β = 1."""
    sigmas, angle, side = (3.0, 1.8), 0.6, 81
    kernel = kernels.gaussian(side, sigmas, angle, beta).astype(float)
    y, x = np.mgrid[:side, :side] - side // 2
    found = np.array([[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wider = 2 ** (1 / beta) * math.gamma(2 / beta) / (2 * math.gamma(1 / beta))
    np.testing.assert_allclose(found, turn @ np.diag(np.square(sigmas)) @ turn.T * wider, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("beta", [1.0, 1.4, 2.0])
def test_a_plateau_falls_to_half_at_one_sigma(beta: float) -> None:
    kernel = kernels.plateau(21, (4.0, 2.0), 0.0, beta)
    top = kernel[10, 10]
    assert kernel[10, 14] / top == pytest.approx(0.5, rel=1e-5) == kernel[12, 10] / top  # x, y
    assert kernel[10, 18] / top == pytest.approx(1 / (1 + 4**beta), rel=1e-5)  # q = 2²


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2, math.pi * 0.8])
def test_sinc_keeps_the_frequencies_below_its_cutoff_only(cutoff: float) -> None:
    gains = {side: np.abs(np.fft.fft2(kernels.sinc(side, cutoff), (512, 512)))[0, :257] for side in (21, 101)}
    omega = np.linspace(0, math.pi, 257)
    for side, passed, stopped in ((21, 0.15, 0.15), (101, 0.1, 0.1)):
        gain, margin = gains[side], 8 / side
        assert np.abs(gain[omega < cutoff - margin] - 1).max() < passed
        assert not (omega > cutoff + margin).any() or gain[omega > cutoff + margin].max() < stopped
        assert gain[np.abs(omega - cutoff).argmin()] == pytest.approx(0.5, abs=0.06)


def test_blur_is_a_convolution_and_a_pulse_changes_nothing() -> None:
    image = photograph(32).astype(np.float32) / 255
    pulse = np.zeros((7, 7), np.float32)
    pulse[3, 3] = 1
    np.testing.assert_array_equal(operations.blur(image, pulse), image)
    kernel = kernels.gaussian(7, (2.0, 0.7), 0.5)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(0, 1))
    np.testing.assert_allclose(operations.blur(image, kernel), (windows * kernel).sum((-2, -1)), atol=1e-5)


# --------------------------------------------------------------------------------------------------- noise, JPEG


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_sigma(gray: bool) -> None:
    image, rng = np.full((200, 200, 3), 0.5, np.float32), np.random.default_rng(0)
    noise = operations.gaussian_noise(image, 0.08, gray, rng) - image
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(0.08, rel=0.01) and abs(noise.mean()) < 0.08 * 4 / 200
    correlation = np.corrcoef(noise.reshape(-1, 3).T)[0, 1]
    assert correlation == pytest.approx(1) if gray else abs(correlation) < 0.03


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_poisson_noise_has_a_variance_that_grows_with_the_light(gray: bool, scale: float) -> None:
    """Five bands of equal channels: 5 levels, so 8 photons at white, and a variance of scale² x / 8."""
    bands = np.array([0, 51, 102, 204, 255], np.float32) / 255
    image = np.repeat(np.repeat(bands, 120), 3).reshape(1, -1, 3).repeat(120, axis=0)
    noise = operations.poisson_noise(image, scale, gray, np.random.default_rng(1)) - image
    for x, part in zip(bands, np.split(noise, 5, axis=1), strict=True):
        draws = part[..., 0] if gray else part
        assert draws.var() == pytest.approx(scale**2 * x / 8, rel=0.07, abs=1e-9)
        assert abs(draws.mean()) <= 4.5 * scale * math.sqrt(x / 8 / draws.size) + 1e-6
    assert (np.ptp(noise, axis=-1).max() < 1e-6) == gray


@pytest.mark.parametrize("quality", [30, 49, 50, 75, 95])
def test_jpeg_has_the_quality_asked_for(quality: int) -> None:
    """Read by Pillow: the tables are those of its own encoder at that quality, and so are the decoded pixels."""
    picture = photograph(64)
    image = picture.astype(np.float32) / 255
    ours = Image.open(io.BytesIO(operations.encode(image, quality).tobytes()))
    own = io.BytesIO()
    Image.fromarray(picture).save(own, "JPEG", quality=quality, subsampling="4:2:0")
    theirs = Image.open(own)
    assert ours.quantization == theirs.quantization
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality  # the standard's first luma step is 16
    assert ours.quantization[0][0] == math.floor((16 * scale + 50) / 100)
    assert JpegImagePlugin.get_sampling(ours) == 2  # 4:2:0
    decoded = 255 * operations.jpeg(image, quality)
    assert np.abs(decoded - np.asarray(ours, np.float32)).mean() < 1
    assert np.abs(decoded - np.asarray(theirs, np.float32)).mean() < 1


# ------------------------------------------------------------------------------------------------- the full chain


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the chain does to a picture, in order: (operation, what was drawn)."""
    seen: list[tuple[str, Any]] = []

    def watch(module: Any, name: str, told: Any) -> None:
        inner = getattr(module, name)

        def call(*args: Any) -> Any:
            seen.append((name, told(*args)))
            return inner(*args)

        monkeypatch.setattr(module, name, call)

    watch(operations, "blur", lambda image, kernel: kernel.shape[0])
    watch(operations, "resize", lambda image, height, width, resizer: (height, resizer))
    watch(operations, "gaussian_noise", lambda image, sigma, gray, rng: (255 * sigma, gray))
    watch(operations, "poisson_noise", lambda image, scale, gray, rng: (scale, gray))
    watch(operations, "jpeg", lambda image, quality: quality)
    return seen


def test_the_full_preset_draws_as_published(watched: list[tuple[str, Any]]) -> None:
    """Real-ESRGAN's options, counted over 600 pictures of 32 -> 8."""
    number, picture = 600, photograph(32)
    rng = np.random.default_rng(0)
    count: collections.Counter[str] = collections.Counter()
    drawn: dict[str, list[Any]] = collections.defaultdict(list)
    for _ in range(number):
        watched.clear()
        degrade(FULL, picture, 8, 8, rng)
        names = [name for name, _ in watched]
        first = watched[: names.index("jpeg") + 1]
        second = watched[len(first) :]
        noises = [next(event for event in part if "noise" in event[0]) for part in (first, second)]
        assert [name for name, _ in first] == ["blur", "resize", noises[0][0], "jpeg"]
        rest = [name for name, _ in second]
        blurred = rest[0] == "blur"
        rest = rest[1 + blurred + 1 :]  # blur, resize, noise
        sharpened = "blur" in rest
        end = ["resize", *["blur"] * sharpened]
        assert rest in ([*end, "jpeg"], ["jpeg", *end])
        count += collections.Counter(blur=blurred, sinc=sharpened, late=rest[-1] == "jpeg")
        for index, (kind, (level, gray)) in enumerate(noises):
            count[f"gaussian{index}"] += kind == "gaussian_noise"
            count[f"gray{index}"] += gray
            drawn[f"{kind}{index}"].append(level)
        drawn["quality"] += [value for name, value in watched if name == "jpeg"]
        drawn["side"] += [value for name, value in watched if name == "blur"]
        drawn["resizer"] += [value[1] for name, value in watched if name == "resize"]
        drawn["first"].append(first[1][1][0] / 32)
        drawn["second"].append(second[blurred][1][0] / 8)
    expected = {"blur": 0.8, "sinc": 0.8, "late": 0.5, "gaussian0": 0.5, "gaussian1": 0.5, "gray0": 0.4, "gray1": 0.4}
    for name, probability in expected.items():
        assert near(count[name] / number, probability, number), (name, count[name])
    assert near(np.mean(np.equal(drawn["first"], 1)), 0.1 + 0.2 * 2 / 32, number)  # kept, or up by less than a pixel
    assert near(np.mean(np.greater(drawn["first"], 1)), 0.2 * 15 / 16, number)
    assert 0.12 <= min(drawn["first"]) and max(drawn["first"]) <= 1.5
    assert 0.25 <= min(drawn["second"]) and max(drawn["second"]) <= 1.2
    ranges = {"gaussian_noise0": (1, 30), "gaussian_noise1": (1, 25), "poisson_noise0": (0.05, 3),
              "poisson_noise1": (0.05, 2.5), "quality": (30, 95)}  # fmt: skip
    for name, (low_end, high_end) in ranges.items():
        values = np.array(drawn[name])
        assert low_end <= values.min() < low_end + 0.05 * high_end and 0.95 * high_end < values.max() <= high_end
        assert values.mean() == pytest.approx((low_end + high_end) / 2, abs=4 * high_end / math.sqrt(12 * len(values)))
    assert set(drawn["side"]) == set(range(7, 22, 2))
    shares = np.bincount([operations.RESIZERS.index(resizer) for resizer in drawn["resizer"]]) / len(drawn["resizer"])
    assert all(near(share, 1 / 3, len(drawn["resizer"])) for share in shares)


def test_kernel_families_come_in_the_published_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[Any, ...]]] = []
    for name in ("gaussian", "plateau", "sinc"):
        monkeypatch.setattr(kernels, name, lambda *args, name=name: seen.append((name, args)))
    number, rng = 4000, np.random.default_rng(0)
    for _ in range(number):
        chain.draw_kernel(FULL.passes[0].blur, rng)
    count: collections.Counter[str] = collections.Counter()
    for name, args in seen:
        if name == "sinc":
            size, cutoff = args
            assert (math.pi / 3 if size < 13 else math.pi / 5) <= cutoff <= math.pi
            count["sinc"] += 1
            continue
        size, sigmas, angle, beta = args
        assert all(0.2 <= sigma <= 3 for sigma in sigmas) and -math.pi <= angle <= math.pi
        lowest, highest = {"plateau": (1, 2), "gaussian": (0.5, 4)}[name]
        assert lowest <= beta <= highest
        family = name if name == "plateau" or beta == 1 else "generalized"
        count[f"{family}{' isotropic' if sigmas[0] == sigmas[1] else ' anisotropic'}"] += 1
    shares = {"gaussian isotropic": 0.45, "gaussian anisotropic": 0.25, "generalized isotropic": 0.12,
              "generalized anisotropic": 0.03, "plateau isotropic": 0.12, "plateau anisotropic": 0.03}  # fmt: skip
    expected = {"sinc": 0.1} | {name: 0.9 * share for name, share in shares.items()}
    assert count.keys() == expected.keys()
    for name, probability in expected.items():
        assert near(count[name] / number, probability, number), (name, count[name])


def test_families_of_the_presets_are_those_that_are_drawn() -> None:
    for preset in PRESETS.values():
        for stage in preset.passes:
            assert set(stage.blur.shapes) == set(chain.SHAPES)
            assert sum(stage.blur.shapes.values()) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.booleans())
def test_any_picture_of_any_size_comes_out_whole(preset: str, height: int, width: int, seed: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (4 * height, 4 * width, 3)
    picture = np.full(shape, seed % 256, np.uint8) if flat else rng.integers(256, size=shape, dtype=np.uint8)
    kept = picture.copy()
    made = degrade(PRESETS[preset], picture, height, width, rng)
    assert made.shape == (height, width, 3) and made.dtype == np.uint8
    assert np.array_equal(picture, kept)


def test_degradations_add_little_colour_and_cascade_is_the_milder() -> None:
    picture = photograph(64)
    low = cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA)
    error = {}
    for name in PRESETS:
        made = np.stack([Degrader(preset=name)(picture, low, 0, position) for position in range(200)]).astype(float)
        assert np.abs((made - low).mean(axis=(0, 1, 2))).max() < 2  # of 255, per channel
        if name == "cascade":  # of every single picture; rounding to 8 bits is what is left
            assert np.abs((made - low).mean(axis=(1, 2))).max() < 0.3
        error[name] = np.sqrt(((made - low) ** 2).mean())
    assert 1 < error["cascade"] < 0.5 * error["full"]


# ----------------------------------------------------------------------------------------------------- the loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("data")
    prepare(path, ScenesConfig(resolution=64, num_scenes=NUMBER))
    return path


def make(folder: Path, experts: int = 1, batch: int = NUMBER, split: str = "train", **config: Any) -> Any:
    parts = {"image_part": config.pop("part")} if "part" in config else {}
    data = {"name": "scenes", "dir": str(folder), "resolution": 64, "low_resolution": 16, "num_scenes": NUMBER,
            "clip_resolution": 0, "degrade": "full", "degrade_clean": 0.0, **config}  # fmt: skip
    return make_loader(data, split=split, seed=3, num_experts=experts, batch_size=batch, **parts)


@pytest.mark.parametrize("crop", [0, 32])
def test_only_the_low_resolution_picture_is_degraded(folder: Path, crop: int) -> None:
    plain, degraded = make(folder, degrade="", crop=crop), make(folder, crop=crop)
    before, after = plain.batch(0), degraded.batch(0)
    assert before.keys() == after.keys() and plain.captions(0) == degraded.captions(0)
    assert all(np.array_equal(before[name], after[name]) for name in before if name != "low_res")
    changed = (before["low_res"] != after["low_res"]).any(axis=(-3, -2, -1))
    assert changed.all() and before["low_res"].shape == after["low_res"].shape


def test_a_record_is_degraded_alike_whatever_it_is_read_with(folder: Path) -> None:
    whole = make(folder).batch(0)["low_res"][0]
    assert np.array_equal(make(folder).batch(0)["low_res"][0], whole)
    assert np.array_equal(make(folder, experts=3, batch=NUMBER // 3).batch(0)["low_res"].reshape(whole.shape), whole)
    assert np.array_equal(make(folder, batch=5).batch(7)["low_res"][0], whole[7:12])
    half = make(folder, part=Part(count=2, held=(1,))).batch(0)["low_res"][0]
    assert np.array_equal(half, whole[NUMBER // 2 :])
    workers = make(folder, batch=6, workers=1).iterate(6)
    assert np.array_equal(next(workers)["low_res"][0], whole[6:12])


def test_every_epoch_degrades_anew(folder: Path) -> None:
    loader = make(folder)
    epochs = [loader.batch(start) for start in (0, NUMBER)]
    seen = [{i.tobytes(): low for i, low in zip(e["image"][0], e["low_res"][0], strict=True)} for e in epochs]
    assert seen[0].keys() == seen[1].keys()
    assert all((seen[0][key] != seen[1][key]).any() for key in seen[0])
    held = make(folder, split="validation", batch=8).batch(0)["low_res"]
    assert np.array_equal(held, make(folder, split="validation", batch=8).batch(0)["low_res"])


def test_a_share_stays_clean() -> None:
    picture = photograph(32)
    low = cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA)
    degrader, number = Degrader(preset="full", clean=0.3), 1000
    clean = [np.array_equal(degrader(picture, low, 5, position), low) for position in range(number)]
    assert near(np.mean(clean), 0.3, number)
    assert np.array_equal(Degrader(preset="full", clean=1.0)(picture, low, 5, 0), low)


def test_noise_augmentation_comes_on_top(folder: Path) -> None:
    """The network sees the degraded picture plus noise, and is told the noise's level alone."""
    batch = {name: rows[0, :4] for name, rows in make(folder).batch(0).items()}
    told: dict[str, Any] = {}

    class Recorder:
        def apply(self, params: Any, x: Any, c_noise: Any, cond: Any, **extra: Any) -> Any:
            told.update(extra)
            return x

    objective = Objective(
        network=Recorder(), encoders=None, noise=LogNormal(), sigma_data=0.5, drop=None, max_level=0.3
    )  # fmt: skip
    rng = np.random.default_rng(0)
    noises = Noises(
        image=rng.normal(size=batch["image"].shape).astype(np.float32),
        low_res=rng.normal(size=batch["low_res"].shape).astype(np.float32),
        level=np.array([0, 0.1, 0.2, 0.3], np.float32),
    )
    objective.losses({}, batch, None, np.ones(4, np.float32), 0.0, np.inf, noises)
    expected = batch["low_res"] / 127.5 - 1 + noises.level[:, None, None, None] * noises.low_res
    np.testing.assert_allclose(told["low_res"], expected, atol=1e-5)
    np.testing.assert_array_equal(told["aug_level"], noises.level)


# --------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"degrade": "ful"},
            "data.degrade='ful' is unknown; did you mean 'full'? choices: cascade, full, or '' for none",
        ),
        ({"degrade_clean": 1.5}, "data.degrade_clean is 1.5; expected a share from 0 to 1"),
        (
            {"low_resolution": 0},
            "data.degrade='full' is for super-resolution, and data.low_resolution is 0; expected ''",
        ),
        ({"degrad": "full"}, "unknown key data.degrad; did you mean 'degrade'?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(LoaderError) as caught:
        make(tmp_path, **config)
    assert message in str(caught.value) and not list(tmp_path.iterdir())
    if "degrad" not in config:
        whole = default()
        whole.data.update({"low_resolution": 16, "degrade": "full", **config})
        with pytest.raises(ConfigError) as caught:
            validate(whole)
        assert f"config.{message}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_older_than_degradation_goes_on_and_is_not_changed_unasked(tmp_path: Path) -> None:
    """Its config.json has no such keys."""
    config = default()
    config.data.low_resolution = 16
    old = config_files.to_json(config)
    del old["data"]["degrade"], old["data"]["degrade_clean"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    config_files.check_same_run(tmp_path, config)
    resumed = config_files.read_workdir(tmp_path)
    validate(resumed)
    assert resumed.data.degrade == ""
    config.data.degrade = "full"
    with pytest.raises(ConfigError, match="config.data.degrade is '' there and 'full' here"):
        config_files.check_same_run(tmp_path, config)
