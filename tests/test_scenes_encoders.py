"""Training of the scenes encoders: labels, negatives, losses against torch, and what the bundled encoders know."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import scenes_encoders
from ediffi_jax import encoders
from ediffi_jax.data.scenes import Object, Scene, caption, held_out, render, sample_scene
from ediffi_jax.encoders.clip import Clip
from ediffi_jax.training.errors import ConfigError, TrainingError
from ediffi_jax.training.scenes_encoders import (
    bundle,
    contrastive,
    corpus,
    denoising,
    fitting,
    grounding,
    measuring,
    negatives,
)

RED_CIRCLE = Object(colour="red", shape="circle", x=0.25, y=0.5, radius=0.18)
BLUE_SQUARE = Object(colour="blue", shape="square", x=0.75, y=0.5, radius=0.18)
PAIR = Scene(objects=(RED_CIRCLE, BLUE_SQUARE), relation="left of")


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory):
    """Tiny recipes, each encoder's tokenizer built once."""
    folder = tmp_path_factory.mktemp("encoders")

    @functools.cache
    def make(name: str) -> bundle.Recipe:
        config = scenes_encoders.get_config()
        config.tokenizer_captions = 3000
        config.clip.update(width=32, text_layers=1, vision_layers=1, batch=6, pictures=8, wrong=2)
        config.t5.update(width=32, layers=1, batch=6)
        return bundle.Recipe(name, config, folder)

    return make


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("colour", "a blue circle left of a red square on a gray background"),
        ("shape", "a red square left of a blue circle on a gray background"),
        ("relation", "a red circle right of a blue square on a gray background"),
    ],
)
def test_a_negative_changes_one_thing(kind: str, expected: str) -> None:
    other = negatives.change(PAIR, kind, np.random.default_rng(0), seen_only=False)
    assert caption(other) == expected
    assert np.abs(render(other, 64).astype(int) - render(PAIR, 64)).max() > 100


def test_a_reversed_relation_is_drawn_reversed() -> None:
    other = negatives.change(PAIR, "relation", np.random.default_rng(0), seen_only=False)
    assert other.objects[0].x > other.objects[1].x


def test_counts_change_the_number_of_objects_in_the_picture() -> None:
    lone = Scene(objects=(RED_CIRCLE,))
    for seed in range(5):
        other = negatives.change(lone, "count", np.random.default_rng(seed))
        assert len({(o.x, o.y) for o in other.objects}) == len(other.objects) >= 2


def test_negatives_of_training_never_show_held_out_combinations() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng)
        wrong = negatives.draw(scene, 2, rng)
        assert len(wrong) == 2
        for other in wrong:
            assert not held_out(other)
            assert caption(other) != caption(scene)


def test_object_labels_name_role_and_partner() -> None:
    labels = dict(zip(grounding.TOKEN_FIELDS, grounding.object_labels(PAIR)[1]))
    assert grounding.ROLES[labels["role"]] == "right"
    assert grounding.COLOURS[labels["partner_colour"]] == "red"
    assert grounding.SHAPES[labels["partner_shape"]] == "circle"
    assert (labels["across"], labels["down"], labels["count"]) == (2, 1, 1)


def test_scene_labels_do_not_depend_on_the_way_it_is_said() -> None:
    said_otherwise = Scene(objects=(BLUE_SQUARE, RED_CIRCLE), relation="right of")
    np.testing.assert_array_equal(grounding.scene_labels(PAIR), grounding.scene_labels(said_otherwise))


def test_patch_labels_are_what_the_picture_shows() -> None:
    labels = grounding.patch_labels(PAIR).reshape(8, 8, 2)
    picture = render(PAIR, 64)[4::8, 4::8]
    red = (picture[..., 0] > 200) & (picture[..., 1] < 80)
    np.testing.assert_array_equal(labels[..., 0] == grounding.COLOURS.index("red"), red)


def test_grounding_loss_is_torch_cross_entropy_with_ignored_labels() -> None:
    rng = np.random.default_rng(0)
    fields = {"a": 3, "b": 5}
    logits = rng.normal(size=(7, 8)).astype(np.float32)
    labels = np.stack([rng.integers(-1, 3, 7), rng.integers(-1, 5, 7)], axis=-1)
    loss, accuracy = grounding.loss(jnp.array(logits), jnp.array(labels), fields)
    parts = (torch.tensor(logits[:, :3]), torch.tensor(logits[:, 3:]))
    target = torch.tensor(labels)
    cross = [torch.nn.functional.cross_entropy(p, target[:, i], ignore_index=-1) for i, p in enumerate(parts)]
    assert float(loss) == pytest.approx(float(sum(cross)), rel=1e-5)
    known = labels[:, 0] >= 0
    assert float(accuracy["a"]) == pytest.approx((logits[known, :3].argmax(-1) == labels[known, 0]).mean())


def test_contrast_is_the_symmetric_cross_entropy_of_torch() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(4, 16)), rng.normal(size=(12, 16))
    image, text = (np.asarray(contrastive.unit(jnp.array(x, jnp.float32))) for x in (image, text))
    loss, _ = contrastive.contrastive(jnp.array(image), jnp.array(text), 7.0, 3)
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(image)[:, None], torch.tensor(text)[None], dim=-1) * 7
    rows = torch.nn.functional.cross_entropy(cosine, torch.arange(4) * 3)
    columns = torch.nn.functional.cross_entropy(cosine[:, ::3].T, torch.arange(4))
    assert float(loss) == pytest.approx(float(rows + columns) / 2, rel=1e-5)


def test_words_one_by_one_are_the_tokens_of_the_caption(recipe_of) -> None:
    rng = np.random.default_rng(1)
    for name in bundle.NAMES:
        table = recipe_of(name).table
        for _ in range(100):
            text = caption(sample_scene(rng), rng)
            ids, mask = table.tokenizer([text])
            mine, _ = table.encode((text, [-1] * len(text.split())))
            np.testing.assert_array_equal(ids[0][mask[0]], mine)


def test_corruption_remembers_the_words_it_hides() -> None:
    ids, words = list(range(10, 30)), np.array([5, 6, 7])
    out, targets = corpus.corrupt(ids, np.random.default_rng(0), [100, 101], words)
    hidden = np.array(targets) >= 0
    np.testing.assert_array_equal(np.where(hidden, targets, out), ids)
    assert not hidden[-1]
    assert 0.15 < hidden.mean() < 0.4


@pytest.mark.parametrize("name", bundle.NAMES)
def test_a_batch_is_a_function_of_seed_and_index(name: str, recipe_of) -> None:
    make = recipe_of(name).make
    once, again, other = make(3), make(3), make(4)
    for key in once:
        np.testing.assert_array_equal(once[key], again[key])
    assert not np.array_equal(once["ids"][..., :8], other["ids"][..., :8])


@pytest.mark.slow
@pytest.mark.parametrize("name", bundle.NAMES)
def test_fitting_lowers_the_loss_and_writes_loadable_files(name: str, recipe_of) -> None:
    recipe = recipe_of(name)
    batch = recipe.make(0)
    fixed = lambda index: batch  # noqa: E731
    common = {"workers": 0, "rates": fitting.Rates(peak=3e-3, warmup=1)}
    value = jax.jit(lambda params: recipe.loss.apply({"params": params}, batch)[0])
    before = []
    trained = fitting.fit(
        recipe.loss,
        fixed,
        budget=fitting.Budget(steps=20),
        prepare=lambda params: before.append(float(value(params))) or params,
        **common,
    )
    assert float(value(trained)) < 0.9 * before[0]
    recipe.write(trained)
    found = encoders.load(recipe.folder)
    assert np.isfinite(np.asarray(found.encode(["a red circle"]).t5)).all()


def test_unit_channels_leave_the_pooled_vector_alone(recipe_of) -> None:
    recipe = recipe_of("clip")
    ids = jnp.array(recipe.make(0)["ids"].reshape(-1, corpus.SHORT))
    model = Clip(recipe.sizes)
    params = model.init(jax.random.key(0), ids, jnp.zeros((1, 64, 64, 3)))["params"]
    tokens, pooled = model.apply({"params": params}, ids, method="encode_text")
    scaled = contrastive.unit_channels(params, tokens.reshape(-1, tokens.shape[-1]) * 3.0)
    after, same = model.apply({"params": scaled}, ids, method="encode_text")
    np.testing.assert_allclose(same, pooled, atol=1e-4)
    np.testing.assert_allclose(after.reshape(-1, after.shape[-1]).std(axis=0), 1 / 3, rtol=1e-3)


def test_mistakes_are_named() -> None:
    with pytest.raises(TrainingError, match="no budget"):
        fitting.Budget()
    with pytest.raises(ConfigError, match="did you mean 'clip'"):
        bundle.Recipe("clop", scenes_encoders.get_config(), Path("."))


def test_rates_end_at_zero_and_warm_up() -> None:
    rates = fitting.Rates(peak=1.0, warmup=10)
    assert rates.at(0, 0.0) == pytest.approx(0.1)
    assert rates.at(50, 0.75) == pytest.approx(0.5)
    assert rates.at(100, 1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.fixture(scope="module")
def bundled() -> encoders.Encoders:
    return encoders.load("scenes")


@pytest.mark.slow
def test_the_bundled_clip_tells_hard_negatives_apart(bundled: encoders.Encoders) -> None:
    found = measuring.retrieval(bundled, 128, seed=7) | measuring.style(bundled, 64, seed=7)
    assert found.pop("count text->image") > 0.8
    assert min(found.values()) > 0.9, found


@pytest.mark.slow
def test_the_bundled_text_features_hold_binding_and_roles(bundled: encoders.Encoders) -> None:
    found = measuring.probes(bundled, 100, seed=7)
    assert min(value for name, value in found.items() if not name.startswith("probe image")) > 0.95, found


def test_bundled_features_have_unit_channels_and_room_for_every_caption(bundled: encoders.Encoders) -> None:
    rng = np.random.default_rng(11)
    texts = [caption(sample_scene(rng), rng) for _ in range(256)]
    cond = bundled.encode(texts)
    for features, mask in ((cond.t5, cond.t5_mask), (cond.clip_text, cond.clip_text_mask)):
        std = np.asarray(features)[np.asarray(mask)].std(axis=0)
        assert 0.7 < std.min() and std.max() < 1.4
        assert not np.asarray(mask)[:, -1].any()


def test_bundled_files_are_small_and_read_by_transformers(bundled: encoders.Encoders) -> None:
    import transformers

    root = encoders.bundled("scenes")
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) < 8e6
    text = "a red circle left of a blue square"
    tokens, cond = bundled.tokenize([text]), bundled.encode([text])
    with torch.no_grad():
        t5 = transformers.T5EncoderModel.from_pretrained(root / "t5").eval()
        ids, mask = torch.tensor(tokens.t5_ids), torch.tensor(tokens.t5_mask)
        theirs = t5(input_ids=ids.long(), attention_mask=mask.long()).last_hidden_state[mask]
        np.testing.assert_allclose(np.asarray(cond.t5)[tokens.t5_mask], theirs.numpy(), atol=1e-3)
        clip = transformers.CLIPModel.from_pretrained(root / "clip").eval()
        ids = torch.tensor(tokens.clip_ids).long()
        pooled = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
        theirs = torch.nn.functional.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5
    np.testing.assert_allclose(np.asarray(cond.clip_pooled), theirs.numpy(), atol=1e-3)


def test_denoising_config_is_the_paper_family() -> None:
    sizes = denoising.config(vocab_size=100, width=64, layers=2)
    assert sizes.gated
    assert sizes.num_heads * sizes.d_kv == 64


def test_held_out_scenes_are_held_out() -> None:
    rng = np.random.default_rng(0)
    assert all(held_out(measuring.held_out_scene(rng)) for _ in range(20))
