"""Cascade and stages: what an image depends on, what the denoiser is, and what a request may ask for."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cascade_fakes as fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ediffi_jax import conditioning, experts, models, pictures, release, stage
from ediffi_jax.cascade import Cascade, CascadeError, from_release, load, to_uint8
from ediffi_jax.errors import UserError
from ediffi_jax.request import make_request

PROMPTS = fakes.CAPTIONS[:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cascade")
    return release.write_release(root / "release", fakes.make_release(root))


@pytest.fixture(scope="module")
def cascade(folder: Path) -> Cascade:
    return load(folder)


@pytest.fixture(scope="module")
def eight(cascade: Cascade) -> dict[str, np.ndarray]:
    """Two prompts, four images each, sampled as one batch of eight."""
    return cascade.sample(PROMPTS, num=4, seed=7, return_stages=True, progress=False)


def test_the_first_release_ever_still_gives_its_images(root: Path) -> None:
    """tests/fixtures/release_v1 was written by version 0.1.0 and never changes; every later version must load it."""
    fixture = root / "tests" / "fixtures" / "release_v1"
    images = load(fixture / "release").sample(PROMPTS, num=4, seed=7, return_stages=True, progress=False)
    for name, found in images.items():
        expected = np.asarray(Image.open(fixture / f"{name}.png"))
        assert difference(np.concatenate(found, axis=1), expected) <= 3


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_images_of_every_stage_have_their_size_and_are_not_flat(eight: dict[str, np.ndarray]) -> None:
    assert {name: images.shape for name, images in eight.items()} == {"base": (8, 8, 8, 3), "sr16": (8, 16, 16, 3)}
    assert all(images.dtype == np.uint8 and images.std() > 10 for images in eight.values())
    assert len({image.tobytes() for image in eight["sr16"]}) == 8


def test_an_image_is_the_same_alone_and_in_a_batch_of_eight(cascade: Cascade, eight: dict[str, np.ndarray]) -> None:
    one_by_one = cascade.sample(PROMPTS, num=4, seed=7, batch_size=1, return_stages=True, progress=False)
    for name, images in eight.items():
        assert difference(images, one_by_one[name]) <= 1
    first = cascade.sample(PROMPTS[0], num=1, seed=7, progress=False)
    assert np.array_equal(first[0], one_by_one["sr16"][0])


def test_the_same_request_gives_the_same_bits_and_another_seed_other_images(
    cascade: Cascade, eight: dict[str, np.ndarray]
) -> None:
    again = cascade.sample(PROMPTS, num=4, seed=7, progress=False)
    assert np.array_equal(again, eight["sr16"])
    other = cascade.sample(PROMPTS, num=4, seed=8, progress=False)
    assert difference(other, eight["sr16"]) > 20


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["on the first device", "on every device"])
def test_eight_devices_give_what_one_gives(folder: Path, eight: dict[str, np.ndarray], parameters: str) -> None:
    assert len(jax.devices()) == 8
    spread = load(folder, devices=jax.devices())
    if parameters == "on every device":  # as on accelerators
        for each in spread.stages:
            each.__dict__["home"] = each.devices
    images = spread.sample(PROMPTS, num=4, seed=7, batch_size=8, return_stages=True, progress=False)
    for name, expected in eight.items():
        assert difference(images[name], expected) <= 1


@pytest.mark.parametrize(("batch", "cores", "accelerators"), [(8, 4, 4), (6, 2, 1), (4, 4, 4), (1, 1, 1), (5, 1, 1)])
def test_a_batch_is_divided_over_the_cores_that_divide_it(
    folder: Path, batch: int, cores: int, accelerators: int
) -> None:
    base = load(folder, devices=jax.devices()[:4]).stages[0]
    assert base.home == base.devices[:1]
    assert base.places(batch) == base.devices[:cores]
    base.__dict__["home"] = base.devices
    assert base.places(batch) == base.devices[:accelerators]


def test_pictures_come_from_the_cores_they_were_divided_over(cascade: Cascade, folder: Path) -> None:
    base = load(folder, devices=jax.devices()[:4]).stages[0]
    rows = jax.tree.map(lambda leaf: leaf[np.array([0, 0])], cascade.encoders.encode(PROMPTS[:1]))
    found = base.sample(rows, jax.random.split(jax.random.key(0), 2))
    assert found.sharding.device_set == set(jax.devices()[:2])


def test_keys_are_those_of_seed_stage_and_image() -> None:
    keys = stage.image_keys(np.uint32(5), np.array([0, 3], np.uint32), stage_index=2)
    for key, index in zip(keys, (0, 3), strict=True):
        expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 2), index)
        assert np.array_equal(jax.random.key_data(key), jax.random.key_data(expected))


@pytest.fixture(scope="module")
def denoisers(cascade: Cascade) -> dict[str, Callable]:
    """The base's denoisers as functions of (x, sigma), and its bare network of (params, x, c_noise, cond)."""
    base, cond = cascade.stages[0], cascade.encoders.encode(PROMPTS)
    network = models.build(base.spec.model)
    return {
        "network": jax.jit(lambda params, x, c_noise, c: network.apply({"params": params}, x, c_noise, c)),
        "plain": jax.jit(base.denoise_fn(cond)),
        "guided": jax.jit(base.denoise_fn(cond, 1.7)),
        "clipped": jax.jit(base.denoise_fn(cond, 1.7, threshold="static")),
    }


@pytest.mark.parametrize(("sigma", "expert"), [(0.05, 0), (0.3, 1), (20.0, 2)])
def test_denoise_fn_is_the_formula_with_the_experts_own_weights(
    cascade: Cascade, denoisers: dict[str, Callable], sigma: float, expert: int
) -> None:
    sd, s = 0.5, math.sqrt(sigma**2 + 0.5**2)
    cond = cascade.encoders.encode(PROMPTS)
    x = sigma * np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    params = jax.tree.map(lambda leaf: leaf[expert], cascade.stages[0].params)

    def d(c: conditioning.Conditioning) -> np.ndarray:
        f = denoisers["network"](params, x / s, jnp.full(2, math.log(sigma) / 4), c)
        return np.asarray(sd**2 / s**2 * x + sigma * sd / s * f)

    conditional, null = d(cond), d(conditioning.null_like(cond))
    assert np.abs(conditional - null).max() > 1e-3
    guided = conditional + 1.7 * (conditional - null)
    np.testing.assert_allclose(denoisers["plain"](x, sigma), conditional, atol=2e-4)
    np.testing.assert_allclose(denoisers["guided"](x, sigma), guided, atol=5e-4)
    np.testing.assert_allclose(denoisers["clipped"](x, sigma), np.clip(guided, -1, 1), atol=5e-4)


def test_apart_and_stacked_experts_denoise_alike(cascade: Cascade) -> None:
    ensemble = cascade.stages[0].ensemble
    stacked = {"gain": jnp.arange(1.0, 4.0)}
    for sigma in (0.01, 0.3, 30.0):
        values = [
            experts.switch(lambda p: lambda x, s: p["gain"] * x * s, params, ensemble)(jnp.ones((1, 2, 2, 3)), sigma)
            for params in (stacked, experts.unstack(stacked))
        ]
        assert np.array_equal(*values)


def test_super_resolution_sees_its_low_resolution_image_and_its_noise(cascade: Cascade) -> None:
    sr = cascade.stages[1]
    cond = cascade.encoders.encode(PROMPTS[:1])
    x, low = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 3))
    denoise = jax.jit(lambda low_res, level: sr.denoise_fn(cond, low_res=low_res, aug_level=level)(x, 1.0))
    plain = denoise(low, 0.1)
    assert np.abs(denoise(low + 0.5, 0.1) - plain).max() > 1e-3
    assert np.abs(denoise(low, 0.5) - plain).max() > 1e-4
    keys = jax.random.split(jax.random.key(0), 3)
    noisy = stage.add_noise(jnp.zeros((3, 64, 64, 3)), keys, jnp.array([0.0, 0.5, 2.0]))
    np.testing.assert_allclose(np.std(noisy, axis=(1, 2, 3)), [0.0, 0.5, 2.0], rtol=0.03)
    with pytest.raises(CascadeError, match="needs low_res images of 8x8"):
        sr.denoise_fn(cond)
    with pytest.raises(CascadeError, match="takes no low_res"):
        cascade.stages[0].denoise_fn(cond, low_res=low)
    with pytest.raises(CascadeError, match=r"expected \(1, 8, 8, 3\)"):
        sr.denoise_fn(cond, low_res=x)


@pytest.mark.slow
def test_the_callback_sees_every_step_with_its_expert_and_changes_nothing(
    cascade: Cascade, eight: dict[str, np.ndarray]
) -> None:
    seen: list[tuple] = []
    images = cascade.sample(
        PROMPTS, num=4, seed=7, progress=False, callback=lambda *step: seen.append((*step[:4], step[4].shape))
    )
    assert difference(images, eight["sr16"]) <= 1
    base = [step for step in seen if step[0] == "base"]
    assert [step[1] for step in base] == list(range(len(base)))
    sigmas = [step[2] for step in base]
    assert sigmas == sorted(sigmas, reverse=True)
    assert math.isclose(sigmas[0], fakes.BASE.sampler.sigma_max)
    assert [step[3] for step in base] == [int(cascade.stages[0].ensemble.route(sigma)) for sigma in sigmas]
    assert {step[3] for step in base} == {0, 1, 2}
    assert {step[0]: step[4] for step in seen} == {"base": (8, 8, 8, 3), "sr16": (8, 16, 16, 3)}


def test_negative_prompts_style_and_encoders_reach_the_base(cascade: Cascade, eight: dict[str, np.ndarray]) -> None:
    def base(**wishes: object) -> np.ndarray:
        return cascade.sample(PROMPTS, num=4, seed=7, return_stages=True, progress=False, **wishes)["base"]

    assert difference(base(negative="a yellow ring"), eight["base"]) > 2
    assert difference(base(encoders=["t5"]), eight["base"]) > 2
    style = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    styled = base(style=style)
    assert difference(styled, eight["base"]) > 2
    assert np.array_equal(base(style=[Image.fromarray(style)] * 2), styled)


def test_the_embeddings_are_only_what_was_asked_for(cascade: Cascade, tmp_path: Path) -> None:
    picture = np.full((20, 20, 3), 200, np.uint8)
    pictures.write_png(tmp_path / "style.png", picture)
    request = cascade.request(PROMPTS, style=tmp_path / "style.png", encoders=["clip_image", "t5"], negative="dull")
    cond, null = cascade._conditionings(request)
    assert cond.t5_mask.any() and cond.clip_image_mask.all() and not cond.clip_text_mask.any()
    assert np.array_equal(cond.clip_text, np.zeros_like(cond.clip_text))
    assert null is not None and null.t5_mask.any() and not null.clip_image_mask.any()


def test_a_cascade_must_chain(folder: Path) -> None:
    found = release.read_release(folder)
    alone = release.Release(specs=found.specs[1:], params=found.params[1:], encoders=found.encoders)
    with pytest.raises(CascadeError, match="'sr16' is a super-resolution stage from 8x8 and needs a base"):
        from_release(alone, folder)


def test_a_denoiser_first_made_inside_a_compiled_function_can_be_made_again(folder: Path) -> None:
    fresh = load(folder, devices=())
    base, cond, x = fresh.stages[0], fresh.encoders.encode(PROMPTS[:1]), jnp.ones((1, 8, 8, 3))
    inside = jax.jit(lambda x: base.denoise_fn(cond)(x, 1.0))(x)
    np.testing.assert_allclose(inside, base.denoise_fn(cond)(x, 1.0), atol=1e-5)


def test_settings_read_from_a_config_can_be_compiled_with() -> None:
    assert hash(release.SamplerSpec(interval=[0.1, 10.0])) == hash(release.SamplerSpec(interval=(0.1, 10.0)))


def test_programs_hold_no_weights_as_constants(cascade: Cascade) -> None:
    base = cascade.stages[0]
    cond = cascade.encoders.encode(PROMPTS[:1])
    inputs = base._inputs(cond, None, 1.0, None, None)
    keys = jax.random.split(jax.random.key(0), 1)
    how = {"guided": True, "threshold": None, "interval": None, "observed": False}
    sampler = stage.samplers.get("deis_kutta3")
    grid = stage.noise_grid(base.spec.sampler)
    weight = inputs.pop("weight")
    jaxpr = base._program.trace(base._experts, weight, inputs, keys, grid, sampler=sampler, **how).jaxpr
    assert sum(np.size(const) for const in jaxpr.consts) < 100


WRONG = [
    ({"prompts": []}, "prompts is empty"),
    ({"prompts": ["a", " "]}, r"prompts\[1\] is ' '"),
    ({"num": 0}, "num is 0; expected a whole number >= 1"),
    ({"num": 1.5}, "num is 1.5"),
    ({"seed": -1}, "seed is -1"),
    ({"steps": 0}, "steps is 0"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"sampler": "euller"}, "did you mean 'euler'"),
    ({"sampler": {"bse": "euler"}}, "unknown stage 'bse'; did you mean 'base'"),
    ({"guidance": float("nan")}, "guidance is nan"),
    ({"guidance": {"base": float("inf")}}, "guidance is inf"),
    ({"guidance": "strong"}, "guidance is 'strong'"),
    ({"guidance": 0.0, "negative": "a"}, "acts through guidance"),
    ({"negative": ["a", "b", "c"]}, "3 negative prompts for 2 prompts"),
    ({"encoders": ["t6"]}, "did you mean 't5'"),
    ({"encoders": []}, "encoders is empty"),
    ({"encoders": ["clip_image"]}, "there is no style image"),
    ({"style": "nowhere.png"}, "'nowhere.png' does not exist"),
    ({"style": np.zeros((4, 4))}, r"float64\[4, 4\]"),
    ({"style_weight": 2.0}, "style_weight without a style image"),
    ({"style_weight": -1.0, "style": np.zeros((4, 4, 3), np.uint8)}, "style_weight is -1.0; expected a number >= 0"),
    ({"style_weight": float("inf"), "style": np.zeros((4, 4, 3), np.uint8)}, "style_weight is inf"),
    ({"style_weight": {"bse": 1}, "style": np.zeros((4, 4, 3), np.uint8)}, "unknown stage 'bse'; did you mean 'base'"),
    ({"style": np.zeros((4, 4, 3), np.uint8), "encoders": ["t5"]}, "acts through the encoder clip_image"),
]


@pytest.mark.parametrize(("wishes", "message"), WRONG)
def test_impossible_requests_are_refused_in_one_line(wishes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_request([fakes.BASE, fakes.SR], 16, wishes.pop("prompts", PROMPTS), **wishes)
    assert "\n" not in str(error.value)


def test_a_plain_guidance_is_the_bases_and_plain_steps_are_everyones() -> None:
    request = make_request([fakes.BASE, fakes.SR], 16, "a", guidance=4.0, steps=3, sampler={"sr16": "heun"})
    assert {name: stage.guidance for name, stage in request.stages.items()} == {"base": 4.0, "sr16": 0.0}
    assert {stage.steps for stage in request.stages.values()} == {3}
    assert [stage.name for stage in request.stages.values()] == ["deis_kutta3", "heun"]


@pytest.mark.parametrize(
    ("total", "batch_size", "devices"), [(1, 8, 1), (5, 8, 1), (19, 8, 1), (9, 6, 1), (5, 16, 8), (20, 12, 4)]
)
def test_batches_cover_every_image_once_with_few_sizes(total: int, batch_size: int, devices: int) -> None:
    request = make_request([fakes.BASE], 16, "a", num=total, batch_size=batch_size)
    pieces = request.batches(devices)
    assert [i for indices, count in pieces for i in indices[:count]] == list(range(total))
    assert len({len(indices) for indices, _ in pieces}) <= 2
    assert all(len(indices) % devices == 0 and indices.max() < total for indices, _ in pieces)


def test_uint8_rounds_to_the_nearest() -> None:
    x = np.array([-1.5, -1.0, 0.0, 1.0, 2.0, 0.2], np.float32)
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255, 153]
    levels = np.arange(256, dtype=np.float32) / 127.5 - 1
    assert np.array_equal(to_uint8(levels), np.arange(256))


def test_the_package_imports_at_once_and_without_jax() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import ediffi_jax as ed; t = time.perf_counter() - t\n"
        "assert t < 1, t\nassert 'jax' not in sys.modules and 'flax' not in sys.modules\n"
        "assert {'load', 'Cascade', 'Stage', 'Ensemble', 'samplers'} <= set(dir(ed))\n"
        "ed.Cascade, ed.Stage, ed.Conditioning, ed.Ensemble, ed.encoders, ed.samplers.get, ed.load, ed.guidance\n"
        "try: ed.lod\nexcept AttributeError as e: assert 'lod' in str(e)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
