"""The Flax encoders against transformers' PyTorch models on tiny random checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ediffi_jax import encoders
from ediffi_jax.encoders import checkpoints
from ediffi_jax.encoders.build_tokenizers import build_clip, build_t5
from ediffi_jax.encoders.clip import Clip, ClipConfig, ClipTextConfig, ClipVisionConfig
from ediffi_jax.encoders.t5 import T5Encoder, relative_position_bucket

COLOURS = ("red", "green", "blue", "yellow")
CAPTIONS = [f"a {a} circle left of two {b} squares, in ink" for a in COLOURS for b in COLOURS]
PROMPTS = ["a red circle", "a blue circle left of two green squares, in ink", "squares"]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}

torch.set_num_threads(1)


def scale_up(model, factor):
    """Random weights as large as trained ones, norms and biases too: nothing is checked at its initial 1 or 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "logit_scale":
                weight.add_(factor * torch.randn_like(weight))
    return model.eval()


def t5_model(vocab_size, **kwargs):
    sizes = {
        "d_model": 24,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": 3,
        "num_heads": 2,
        "relative_attention_max_distance": 20,
    }
    config = transformers.T5Config(vocab_size=vocab_size, relative_attention_num_buckets=16, **sizes, **kwargs)
    torch.manual_seed(0)
    return scale_up(transformers.T5EncoderModel(config), 0.1)


def text_config(vocab_size=600, eos=599, act="quick_gelu"):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 20,
    }
    ends = {"bos_token_id": vocab_size - 2, "eos_token_id": eos, "pad_token_id": 0}
    return transformers.CLIPTextConfig(
        vocab_size=vocab_size, max_position_embeddings=16, hidden_act=act, **sizes, **ends
    )


def vision_config(act="quick_gelu"):
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "projection_dim": 20,
    }
    return transformers.CLIPVisionConfig(image_size=16, patch_size=4, hidden_act=act, **sizes)


def clip_model(act="quick_gelu", **text):
    torch.manual_seed(0)
    pair = {"text_config": text_config(act=act, **text), "vision_config": vision_config(act)}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(**{k: v.to_dict() for k, v in pair.items()}, projection_dim=20)
    )
    return scale_up(model, 0.1)


def clip_ids(vocab_size=600, filler=0):
    """Start, words, end (the largest id), filler, in rows of three lengths."""
    ids = np.full((3, 12), filler, np.int32)
    for row, length in enumerate((4, 12, 7)):
        words = np.random.default_rng(row).integers(1, vocab_size - 2, length - 2)
        ids[row, :length] = [vocab_size - 2, *words, vocab_size - 1]
    return ids


def run(module, params, *args, method=None):
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args, method=method))(params, *args)


def clip_both_towers(clip):
    def both(module, ids, images):
        return module.encode_text(ids), module.encode_image(images)

    return jax.jit(lambda params, *args: clip.apply({"params": params}, *args, method=both))


def as_numpy(tensor):
    return tensor.detach().float().numpy()


@pytest.mark.parametrize("kind", ["relu", "gated-gelu", "gated-silu"])
def test_t5_agrees_with_transformers(tmp_path, kind):
    model = t5_model(50, feed_forward_proj=kind)
    model.save_pretrained(tmp_path)
    config, params, _ = checkpoints.load_t5(tmp_path)
    ids = np.random.default_rng(0).integers(3, 50, (3, 37)).astype(np.int32)
    mask = np.arange(37)[None] < np.array([[37], [20], [1]])
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask)
        ).last_hidden_state
    actual = run(T5Encoder(config), params, ids, mask)
    np.testing.assert_allclose(actual, as_numpy(expected), **TOLERANCE)


def test_relative_position_bucket_equals_transformers():
    distance = np.arange(-600, 601)
    for buckets, most in ((32, 128), (16, 20), (8, 64)):
        bucket_of = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
        expected = bucket_of(torch.tensor(distance), bidirectional=True, num_buckets=buckets, max_distance=most)
        np.testing.assert_array_equal(relative_position_bucket(distance, buckets, most), expected.numpy())


def test_t5_bfloat16_is_finite_and_close_with_weights_that_overflow_half_precision(tmp_path):
    model = t5_model(50, feed_forward_proj="gated-gelu")
    with torch.no_grad():  # activations of 1e5 and beyond in the residual stream, as published T5 have them
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(1e5)
    model.save_pretrained(tmp_path)
    ids, mask = np.arange(40, dtype=np.int32).reshape(2, 20), np.ones((2, 20), bool)
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        config, params, _ = checkpoints.load_t5(tmp_path, dtype)
        outputs.append(np.asarray(run(T5Encoder(config, dtype), params, ids, mask)))
    assert params["block_0"]["attention"]["q"]["kernel"].dtype == jnp.bfloat16
    assert params["block_0"]["feed_forward"]["wo"]["kernel"].dtype == jnp.float32
    assert np.isfinite(outputs[1]).all() and outputs[1].dtype == np.float32
    error = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    assert error < 0.05


@pytest.mark.parametrize(
    "act, eos, filler", [("quick_gelu", 2, 0), ("quick_gelu", 599, 599), ("gelu", 2, 599), ("gelu", 599, 0)]
)
def test_clip_agrees_with_transformers(tmp_path, act, eos, filler):
    model = clip_model(act, eos=eos)
    model.save_pretrained(tmp_path)
    config, params, _ = checkpoints.load_clip(tmp_path)
    ids, images = clip_ids(filler=filler), np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        text = model.get_text_features(torch.tensor(ids, dtype=torch.long))
        image = model.get_image_features(torch.tensor(images.transpose(0, 3, 1, 2)))
    clip = Clip(config)
    both = clip_both_towers(clip)
    (tokens, pooled), (states, pooled_image) = both(params, ids, images)
    np.testing.assert_allclose(tokens, as_numpy(text.last_hidden_state), **TOLERANCE)
    np.testing.assert_allclose(pooled, as_numpy(text.pooler_output), **TOLERANCE)
    np.testing.assert_allclose(states, as_numpy(image.last_hidden_state), **TOLERANCE)
    np.testing.assert_allclose(pooled_image, as_numpy(image.pooler_output), **TOLERANCE)
    np.testing.assert_allclose(params["logit_scale"], model.logit_scale.item())


@pytest.mark.parametrize(
    "name", ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModel", "CLIPVisionModelWithProjection"]
)
@pytest.mark.parametrize("prefix", [True, False])
def test_single_towers_with_and_without_projection(tmp_path, name, prefix):
    torch.manual_seed(0)
    is_text = "Text" in name
    model = scale_up(getattr(transformers, name)(text_config() if is_text else vision_config()), 0.1)
    model.save_pretrained(tmp_path)
    _rename(tmp_path / "model.safetensors", "text_model." if is_text else "vision_model.", prefix)
    config, params, _ = checkpoints.load_clip(tmp_path)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        if is_text:
            given, method = clip_ids(), "encode_text"
            out = model(torch.tensor(given, dtype=torch.long))
        else:
            given, method = images, "encode_image"
            out = model(torch.tensor(given.transpose(0, 3, 1, 2)))
    pooled = [out[key] for key in ("text_embeds", "image_embeds", "pooler_output") if key in out][0]
    actual = run(Clip(config), params, given, method=method)
    np.testing.assert_allclose(actual[0], as_numpy(out.last_hidden_state), **TOLERANCE)
    np.testing.assert_allclose(actual[1], as_numpy(pooled), **TOLERANCE)
    assert config.pooled_width == pooled.shape[-1]


def _rename(path, prefix, wanted):
    from safetensors.numpy import load_file, save_file

    renamed = {}
    for key, value in load_file(path).items():
        bare = key.removeprefix(prefix)
        renamed[bare if not wanted or "projection" in key else prefix + bare] = value
    save_file(renamed, path)


def test_clip_bfloat16_is_finite_and_close(tmp_path):
    model = scale_up(clip_model(), 0.2)
    model.save_pretrained(tmp_path)
    config, params, _ = checkpoints.load_clip(tmp_path, jnp.bfloat16)
    _, pooled = run(Clip(config, jnp.bfloat16), params, clip_ids(), method="encode_text")
    with torch.no_grad():
        expected = as_numpy(model.get_text_features(torch.tensor(clip_ids(), dtype=torch.long)).pooler_output)
    assert np.isfinite(pooled).all()
    assert np.linalg.norm(pooled - expected) / np.linalg.norm(expected) < 0.05


def test_older_configs_with_text_config_dict_read_as_transformers_reads_them(tmp_path):
    described = clip_model().config.to_dict()
    described["text_config_dict"] = {"hidden_size": 32, "num_hidden_layers": 3}
    described["text_config"]["hidden_act"] = "gelu"
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(described))).text_config
    ours = checkpoints.ClipConfig.from_json(described).text
    for name in ("hidden_size", "num_hidden_layers", "hidden_act", "eos_token_id", "intermediate_size"):
        assert getattr(ours, name) == getattr(theirs, name), name


# ---------------------------------------------------------------- whole folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    size = build_t5(CAPTIONS, root / "t5", max_tokens=24)
    t5_model(size, feed_forward_proj="gated-gelu").save_pretrained(root / "t5")
    size = build_clip(CAPTIONS, root / "clip", max_tokens=16)
    clip_model(vocab_size=size, eos=size - 1).save_pretrained(root / "clip")
    return root


@pytest.fixture(scope="module")
def loaded(folder):
    return encoders.load(folder)


def test_encode_agrees_with_transformers_end_to_end(folder, loaded):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    cond = loaded.encode(PROMPTS, images)
    t5 = transformers.T5EncoderModel.from_pretrained(folder / "t5").eval()
    clip = transformers.CLIPModel.from_pretrained(folder / "clip").eval()
    t5_in = transformers.T5Tokenizer.from_pretrained(folder / "t5")(
        PROMPTS, padding="max_length", max_length=24, return_tensors="pt"
    )
    clip_in = transformers.CLIPTokenizer.from_pretrained(folder / "clip")(
        PROMPTS, padding="max_length", max_length=16, return_tensors="pt"
    )
    pixels = (images / 255.0 - np.array(loaded.mean)) / np.array(loaded.std)
    with torch.no_grad():
        t5_out = as_numpy(t5(**t5_in).last_hidden_state)
        text = clip.get_text_features(**clip_in)
        image = as_numpy(
            clip.get_image_features(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).pooler_output
        )
    mask = t5_in["attention_mask"].numpy().astype(bool)
    np.testing.assert_array_equal(cond.t5_mask, mask)
    np.testing.assert_allclose(np.asarray(cond.t5)[mask], t5_out[mask], **TOLERANCE)
    assert not np.asarray(cond.t5)[~mask].any()
    mask = clip_in["attention_mask"].numpy().astype(bool)
    np.testing.assert_array_equal(cond.clip_text_mask, mask)
    np.testing.assert_allclose(np.asarray(cond.clip_text)[mask], as_numpy(text.last_hidden_state)[mask], **TOLERANCE)
    for actual, expected in ((cond.clip_pooled, as_numpy(text.pooler_output)), (cond.clip_image, image)):
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True) * np.sqrt(20)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(np.square(actual).mean(-1), 1.0, rtol=1e-5)


def test_spec_is_the_shape_of_what_apply_returns(loaded):
    spec = loaded.spec
    cond = loaded.encode(PROMPTS)
    assert cond.clip_text.shape == (3, spec.clip_tokens, spec.clip_width) == (3, 16, 32)
    assert cond.t5.shape == (3, spec.t5_tokens, spec.t5_width) == (3, 24, 24)
    assert cond.clip_pooled.shape == cond.clip_image.shape == (3, spec.pooled_width) == (3, 20)
    assert all(leaf.dtype in (jnp.float32, bool) for leaf in jax.tree.leaves(cond))
    assert not cond.clip_image.any() and not cond.clip_image_mask.any()


def test_a_style_image_alone_leaves_the_text_null_and_any_size_is_taken(loaded):
    image = np.zeros((2, 40, 64, 3), np.uint8)
    image[:, :, 12:52] = np.arange(40, dtype=np.uint8)[:, None, None] * 6  # all of it in the central square
    cond = loaded.encode(None, image)
    assert not cond.t5.any() and not cond.t5_mask.any() and not cond.clip_text_mask.any() and not cond.clip_pooled.any()
    assert cond.clip_image_mask.all()
    cropped = loaded.encode(None, image[:, :, 12:52])
    np.testing.assert_array_equal(cond.clip_image, cropped.clip_image)


def test_pieces_give_what_one_batch_gives(loaded):
    whole, pieces = loaded.encode(PROMPTS), loaded.encode(PROMPTS, batch_size=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, pieces)


def test_apply_is_differentiable_with_given_parameters(loaded):
    tokens = loaded.tokenize(PROMPTS)
    grads = jax.jit(jax.grad(lambda params: loaded.apply(params, tokens, None).t5.sum()))(loaded.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert float(jnp.abs(grads["t5"]["embedding"]).max()) > 0


def test_fingerprint_depends_on_weights_and_tokenizer_not_on_sharding(folder, loaded, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    assert encoders.load(copy, dtype="bfloat16").fingerprint == loaded.fingerprint
    model = transformers.T5EncoderModel.from_pretrained(copy / "t5")
    (copy / "t5/model.safetensors").unlink()
    model.save_pretrained(copy / "t5", max_shard_size="10KB")
    assert (copy / "t5/model.safetensors.index.json").exists()
    assert encoders.load(copy).fingerprint == loaded.fingerprint
    with torch.no_grad():
        model.shared.weight[7, 3] += 1
    model.save_pretrained(copy / "t5", max_shard_size="10KB")
    assert encoders.load(copy).fingerprint != loaded.fingerprint
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "t5/tokenizer_config.json").write_text('{"model_max_length": 20, "extra_ids": 20}')
    assert encoders.load(other).fingerprint != loaded.fingerprint


@pytest.mark.parametrize("order", [("text_encoder", "text_encoder_2"), ("text_encoder_3", "text_encoder")])
def test_diffusers_layout(folder, loaded, tmp_path, order):
    import shutil

    for kind, name in zip(("clip", "t5"), order):
        weights = shutil.copytree(folder / kind, tmp_path / name)
        settings = tmp_path / name.replace("text_encoder", "tokenizer")
        settings.mkdir()
        for file in [
            *weights.glob("*token*"),
            *weights.glob("spiece*"),
            *weights.glob("vocab*"),
            *weights.glob("merges*"),
        ]:
            file.rename(settings / file.name)
    assert encoders.load(tmp_path).fingerprint == loaded.fingerprint


def test_separate_image_encoder(folder, loaded, tmp_path):
    import shutil

    clip = transformers.CLIPModel.from_pretrained(folder / "clip")
    text = transformers.CLIPTextModelWithProjection.from_pretrained(folder / "clip")
    image = transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "clip")
    assert torch.equal(image.visual_projection.weight, clip.visual_projection.weight)
    text.save_pretrained(tmp_path / "text_encoder")
    image.save_pretrained(tmp_path / "image_encoder")
    (tmp_path / "feature_extractor").mkdir()
    shutil.copytree(folder / "clip", tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*model*", "config.json"))
    parts = encoders.load(tmp_path)
    images = np.full((3, 16, 16, 3), 77, np.uint8)
    a, b = parts.encode(PROMPTS, images), loaded.encode(PROMPTS, images)
    np.testing.assert_allclose(a.clip_image, b.clip_image, **TOLERANCE)
    np.testing.assert_allclose(a.clip_pooled, b.clip_pooled, **TOLERANCE)
    assert a.t5.shape == (3, 1, 1) and not a.t5_mask.any()


def test_image_statistics_come_from_the_folder(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "clip/preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    assert encoders.load(copy).mean == (0.5, 0.5, 0.5)


def test_whole_t5_and_encoder_only_files_load_alike(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = t5_model(50, feed_forward_proj="gated-gelu")
    whole = transformers.T5ForConditionalGeneration(model.config)
    whole.shared.load_state_dict(model.shared.state_dict())
    whole.encoder.load_state_dict(model.encoder.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "encoder")
    tensors = load_file(tmp_path / "encoder/model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    (tmp_path / "only").mkdir()
    save_file(tensors, tmp_path / "only/t5xxl_fp32.safetensors")
    (tmp_path / "only/config.json").write_text((tmp_path / "encoder/config.json").read_text())
    _, first, _ = checkpoints.load_t5(tmp_path / "whole")
    for name in ("encoder", "only"):
        _, other, _ = checkpoints.load_t5(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, first, other)


# ---------------------------------------------------------------- saving


def test_transformers_reads_what_we_save(folder, loaded, tmp_path):
    checkpoints.save(loaded.params["t5"], loaded.t5.config, tmp_path / "t5")
    checkpoints.save(loaded.params["clip"], loaded.clip.config, tmp_path / "clip")
    for cls, name in ((transformers.T5EncoderModel, "t5"), (transformers.CLIPModel, "clip")):
        model, info = cls.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        original = cls.from_pretrained(folder / name).state_dict()
        assert all(torch.equal(value, original[key]) for key, value in model.state_dict().items())
    config, params, _ = checkpoints.load_clip(tmp_path / "clip")
    assert config == loaded.clip.config
    jax.tree.map(np.testing.assert_array_equal, params, loaded.params["clip"])


def test_save_refuses_parameters_of_another_config(loaded, tmp_path):
    params = dict(loaded.params["t5"])
    params.pop("final_norm")
    with pytest.raises(encoders.EncoderError, match="final_norm/scale' is missing"):
        checkpoints.save(params, loaded.t5.config, tmp_path)


def test_initial_parameters_train_from_scratch():
    """The tiny encoders start from the modules' own initialisation."""
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "projection_dim": 6,
    }
    text = ClipTextConfig(vocab_size=600, max_position_embeddings=12, bos_token_id=598, eos_token_id=599, **sizes)
    clip = Clip(ClipConfig(text=text, vision=ClipVisionConfig(image_size=8, patch_size=4, **sizes)))

    @jax.jit
    def first_step(key):
        params = clip.init(key, jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 8, 8, 3)))
        return clip.apply(params, clip_ids(), jnp.ones((3, 8, 8, 3)))

    text, image, scale = first_step(jax.random.key(0))
    assert text.shape == image.shape == (3, 6) and np.isfinite(text).all() and np.isfinite(image).all()
    assert np.isclose(scale, 1 / 0.07, rtol=1e-3)
