"""Encoders cut over devices: embeddings as on one, a part of the weights on each; T5-XXL on chips of 16 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ediffi_jax import encoders
from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.encoders.sharding import leaf_spec
from ediffi_jax.training.embedder import Embedder
from ediffi_jax.training.mesh import make_mesh

TEXTS = [
    "a red circle",
    "a blue square left of a green moon",
    "a large striped red circle above a small dotted yellow star",
]


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("t5/embedding", (32128, 4096), P(None, "fsdp")),
        ("t5/block_0/attention/q/kernel", (4096, 4096), P(None, "fsdp")),
        ("t5/block_23/feed_forward/wo/kernel", (10240, 4096), P(None, "fsdp")),
        ("t5/final_norm/scale", (4096,), P(None)),
        ("t5/relative_attention_bias", (32, 64), P(None, None)),
        ("clip/text/layers_0/mlp/fc1/bias", (3072,), P(None)),
        ("clip/vision/position_embedding", (257, 1021), P(None, None)),  # divided by nothing
        ("clip/logit_scale", (), P()),
    ],
)
def test_rules(path, shape, spec) -> None:
    assert leaf_spec(path, shape, {"fsdp": 8}) == spec
    assert leaf_spec(path, shape, {"fsdp": 1}) == P(*[None] * len(shape))


def test_sharded_encoders_give_what_one_device_gives() -> None:
    whole = encoders.load("scenes")
    mesh = make_mesh({"data": 2, "fsdp": 4}, 1)
    parts = encoders.load("scenes", mesh=mesh)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        assert np.array_equal(a, b)
    leaves = jax.tree.leaves(parts.params)
    mine = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert mine < 0.3 * sum(leaf.nbytes for leaf in leaves)
    machine = Embedder(parts, mesh, RowFormat(spec=parts.spec, dtype="float32"), 8)
    tokens, pixels = whole.tokenize(TEXTS), np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
    expected = jax.device_get(jax.jit(whole.apply)(whole.params, tokens, pixels / np.float32(255)))
    seen = set()
    for number, arrays in machine.captions(tokens):
        seen.add(number)
        for name, mask in (("t5", tokens.t5_mask), ("clip_text", tokens.clip_mask)):
            exact = getattr(expected, name)[number][mask[number]]
            np.testing.assert_allclose(arrays[name], exact, atol=3e-6 * np.abs(exact).max())
        np.testing.assert_allclose(arrays["clip_pooled"], expected.clip_pooled[number], atol=1e-5)
    assert seen == {0, 1, 2}
    np.testing.assert_allclose(machine.pictures(pixels), expected.clip_image, atol=2e-5)


def test_without_weights_only_what_needs_none() -> None:
    light, whole = encoders.load("scenes", weights=False), encoders.load("scenes")
    assert not jax.tree.leaves(light.params)
    assert (light.fingerprint, light.spec, light.image_size) == (whole.fingerprint, whole.spec, whole.image_size)


@pytest.mark.pod
@pytest.mark.slow
def test_t5_xxl_fits_chips_of_16_gb(root, tmp_path) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler, extra [tpu], is not installed")
    words = ["--topology=v5e:2x4", "--out", str(tmp_path / "fits.json")]
    command = [sys.executable, "-m", "benchmarks.encode_t5xxl", *words]
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    subprocess.run(command, check=True, cwd=root, env=environment, timeout=850)
    (row,) = json.loads((tmp_path / "fits.json").read_text())
    assert 4.7e9 < row["parameters"] < 5.4e9
    assert row["bytes"]["weights"] < 1.1 * row["bytes_of_all_weights"] / row["chips"]
    assert row["bytes"]["total"] < 0.5 * 16e9
