"""Guidance by a style image with a weight of its own, from the request to the pictures."""

from __future__ import annotations

from pathlib import Path

import cascade_fakes as fakes
import jax
import numpy as np
import pytest

from ediffi_jax import conditioning, release, samples
from ediffi_jax.cascade import Cascade, load

PROMPTS = fakes.CAPTIONS[:2]
STYLE = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    root = tmp_path_factory.mktemp("style")
    return load(release.write_release(root / "release", fakes.make_release(root, specs=(fakes.BASE,))))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def draw(cascade: Cascade, **wishes: object) -> np.ndarray:
    return cascade.sample(PROMPTS, num=2, seed=7, style=STYLE, progress=False, **wishes)


def test_the_denoiser_is_the_formula(cascade: Cascade) -> None:
    base, cond = cascade.stages[0], cascade.encoders.encode(PROMPTS, np.stack([STYLE] * 2))
    x = np.random.default_rng(1).standard_normal((2, 8, 8, 3), np.float32)
    text = conditioning.select(cond, ("t5", "clip_text"))
    d_ts, d_t, d_0 = (
        np.asarray(jax.jit(base.denoise_fn(c))(x, 1.0)) for c in (cond, text, conditioning.null_like(cond))
    )
    assert np.abs(d_ts - d_t).max() > 1e-3 and np.abs(d_t - d_0).max() > 1e-3
    for w, s in ((1.7, 0.5), (0.0, 2.0), (1.7, np.array([0.0, 3.0], np.float32))):
        found = jax.jit(base.denoise_fn(cond, w, style_weight=s))(x, 1.0)
        expected = d_ts + w * (d_t - d_0) + np.reshape(s, (-1, 1, 1, 1)) * (d_ts - d_t)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_weight_acts_and_an_image_is_the_same_alone_and_in_its_batch(cascade: Cascade) -> None:
    plain, strong = draw(cascade), draw(cascade, style_weight=6.0)
    assert difference(plain, strong) > 2
    assert difference(draw(cascade, style_weight={"base": 1.5}), plain) <= 1  # s = w
    alone = draw(cascade, style_weight=6.0, batch_size=1)
    assert difference(strong, alone) <= 1


def test_the_record_makes_the_same_pictures(cascade: Cascade, tmp_path: Path) -> None:
    request = cascade.request(PROMPTS, style=STYLE, style_weight=3, steps=2)
    assert request.style_weight == {"base": 3.0}
    wishes = {**samples.settings(request), "style": STYLE}
    assert wishes["style_weight"] == {"base": 3.0}
    again = cascade.request(PROMPTS, **wishes)
    assert again.style_weight == request.style_weight and again.stages == request.stages
    assert samples.settings(cascade.request(PROMPTS))["style_weight"] is None
