"""The loader: order, shards and restarts against plain arithmetic, views against numpy box averages."""

import dataclasses
import io
import itertools

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from ediffi_jax.data import batches, loader, scenes, sources, views
from ediffi_jax.data.loader import LoaderError, Part, make_loader
from ediffi_jax.data.scenes.builder import ScenesConfig, location, prepare
from ediffi_jax.data.sources import open_tfds

NUMBER = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    prepare(path, ScenesConfig(resolution=64, num_scenes=NUMBER))
    return path


@dataclasses.dataclass
class Tokens:
    t5_ids: np.ndarray
    t5_mask: np.ndarray
    clip_ids: np.ndarray
    clip_mask: np.ndarray


class Letters:
    """A tokenizer whose ids are letters: captions can be read back."""

    def tokenize(self, prompts):
        ids = np.zeros((len(prompts), 250), np.int32)
        for row, prompt in zip(ids, prompts):
            row[: len(prompt)] = [ord(letter) for letter in prompt]
        return Tokens(ids, ids > 0, ids[:, :20], ids[:, :20] > 0)


def text(ids):
    return "".join(chr(i) for i in ids if i)


def make(folder, experts=1, batch=4, split="train", seed=0, tokenizer=None, index=0, count=1, **config):
    data = {"name": "scenes", "dir": str(folder), "resolution": 64, "num_scenes": NUMBER, "clip_resolution": 0, **config}
    return make_loader(
        data,
        split=split,
        seed=seed,
        num_experts=experts,
        batch_size=batch,
        tokenizer=tokenizer,
        image_part=Part(count=count, held=(index,)),
    )


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def flat(batches):
    """All images of batches in the global order."""
    return [image.tobytes() for batch in batches for expert in batch["image"] for image in expert]


def test_keys_shapes_and_types(folder):
    batch = make(folder, experts=3, resolution=32, low_resolution=8, clip_resolution=16, tokenizer=Letters()).batch(0)
    shapes = {key: value.shape for key, value in batch.items()}
    assert shapes == {
        "image": (3, 4, 32, 32, 3),
        "low_res": (3, 4, 8, 8, 3),
        "clip_pixels": (3, 4, 16, 16, 3),
        "needs_image": (3, 4),
        "t5_ids": (3, 4, 250),
        "t5_mask": (3, 4, 250),
        "clip_ids": (3, 4, 20),
        "clip_mask": (3, 4, 20),
    }
    assert all(batch[key].dtype == np.uint8 for key in ("image", "low_res", "clip_pixels"))
    assert batch["t5_ids"].dtype == np.int32 and batch["clip_mask"].dtype == batch["needs_image"].dtype == bool


def test_captions_leave_the_style_out_only_where_the_picture_tells_it(folder):
    """Checked against the records: which caption may be silent, and that the batch says so."""
    source = open_tfds(location(folder, ScenesConfig(resolution=64, num_scenes=NUMBER)), "train")
    stored = [scenes.Scene.from_json(record.scene) for record in source.read(range(NUMBER))]
    for clip_resolution in (16, 0):
        loader = make(folder, batch=NUMBER, clip_resolution=clip_resolution)
        batch, captions = loader.batch(0), loader.captions(0)
        order = [loader._assemble.order(position)[1] for position in range(NUMBER)]
        for row, number in enumerate(order):
            scene = stored[number]
            assert ("style" in captions[row]) == (scene.style != "flat" and (scene.named_style or not clip_resolution))
            if clip_resolution:
                assert batch["needs_image"][0, row] == (not scene.named_style)
        assert ("needs_image" in batch) == bool(clip_resolution)
    assert sum(not scene.named_style for scene in stored) > 3
    assert "needs_image" not in make(folder, split="validation", clip_resolution=16).batch(0)


def test_iterating_is_the_batches_at_the_positions(folder):
    data = make(folder, experts=2, tokenizer=Letters())
    for k, batch in enumerate(itertools.islice(data.iterate(5), 20)):
        assert same(batch, data.batch(5 + 8 * k))


def test_an_epoch_is_a_permutation_and_the_next_another(folder):
    data = make(folder, batch=NUMBER, resolution=16)
    first, second = (flat([data.batch(start)]) for start in (0, NUMBER))
    assert sorted(first) == sorted(second) and len(set(first)) == NUMBER
    assert first != second
    assert flat([make(folder, batch=NUMBER, resolution=16, seed=1).batch(0)]) != first


def test_the_order_does_not_depend_on_batch_experts_or_restarts(folder):
    whole = flat([make(folder, batch=48, resolution=16).batch(0)])
    experts = make(folder, experts=3, batch=4, resolution=16)
    assert flat(itertools.islice(experts.iterate(0), 4)) == whole
    resumed = make(folder, experts=2, batch=6, resolution=16)
    assert flat(itertools.islice(resumed.iterate(24), 2)) == whole[24:]


def test_processes_share_a_batch_out(folder):
    whole = make(folder, experts=2, batch=6, tokenizer=Letters()).batch(24)
    parts = [make(folder, experts=2, batch=6, tokenizer=Letters(), index=i, count=3).batch(24) for i in range(3)]
    joined = {key: np.concatenate([part[key] for part in parts], axis=1) for key in whole}
    assert same(whole, joined)


def test_worker_processes_change_nothing(folder):
    here, there = (make(folder, workers=workers, tokenizer=Letters()) for workers in (0, 2))
    for a, b in itertools.islice(zip(here.iterate(8), there.iterate(8)), 5):
        assert same(a, b)


def test_captions_are_phrased_anew_each_epoch_in_training_only(folder):
    data = make(folder, batch=NUMBER, tokenizer=Letters())
    by_image = {}
    for start in (0, NUMBER):
        batch = data.batch(start)
        for image, ids in zip(batch["image"][0], batch["t5_ids"][0]):
            by_image.setdefault(image.tobytes(), set()).add(text(ids))
    assert np.mean([len(texts) for texts in by_image.values()]) > 1.7
    assert [text(ids) for ids in data.batch(0)["t5_ids"][0]] == data.captions(0)
    held = make(folder, batch=16, split="validation", tokenizer=Letters())
    assert same(held.batch(0), held.batch(16))


def test_heldout_and_validation_are_other_pictures(folder):
    train = set(flat([make(folder, batch=NUMBER).batch(0)]))
    for split in ("validation", "heldout", "test"):
        held = flat([make(folder, batch=16, split=split).batch(0)])
        assert len(set(held)) == 16 and not train & set(held)
    assert flat([make(folder, split="test").batch(0)]) == flat([make(folder, split="validation").batch(0)])


def box(picture, factor):
    h, w, _ = picture.shape
    return picture.reshape(h // factor, factor, w // factor, factor, 3).astype(float).mean((1, 3))


def test_views_are_box_averages(folder):
    full = make(folder).batch(0)["image"]
    batch = make(folder, resolution=32, low_resolution=8, clip_resolution=16).batch(0)
    for b in range(4):
        for key, factor in (("image", 2), ("clip_pixels", 4)):
            assert np.abs(batch[key][0, b] - box(full[0, b], factor)).max() <= 0.51
        assert np.abs(batch["low_res"][0, b] - box(batch["image"][0, b], 4)).max() <= 0.51


def test_crops_of_both_resolutions_show_the_same_part(folder):
    full = make(folder, batch=20).batch(0)["image"][0]
    batch = make(folder, batch=20, low_resolution=16, crop=32).batch(0)
    assert batch["image"].shape[2:] == (32, 32, 3) and batch["low_res"].shape[2:] == (8, 8, 3)
    corners = set()
    for whole, image, low in zip(full, batch["image"][0], batch["low_res"][0]):
        assert np.abs(low - box(image, 4)).max() <= 0.51
        found = [(y, x) for y in range(0, 33, 4) for x in range(0, 33, 4) if (whole[y : y + 32, x : x + 32] == image).all()]
        assert found
        corners.add(found[0])
    assert len(corners) > 5
    assert not np.array_equal(
        make(folder, batch=20, crop=32).batch(0)["image"], make(folder, batch=20, crop=32, seed=1).batch(0)["image"]
    )


def test_synthetic_needs_no_files():
    config = {"name": "synthetic", "resolution": 256, "low_resolution": 64, "crop": 64, "clip_resolution": 32}
    data = make_loader(config, split="train", seed=0, num_experts=2, batch_size=3, tokenizer=Letters())
    batch = next(data.iterate(12))
    assert batch["image"].shape == (2, 3, 64, 64, 3) and batch["low_res"].shape == (2, 3, 16, 16, 3)
    assert batch["clip_pixels"].shape == (2, 3, 32, 32, 3) and batch["t5_ids"].shape == (2, 3, 250)
    assert same(batch, data.batch(12)) and not same(batch, data.batch(18))
    kept = {"expert_part": Part(count=2, held=(1,)), "image_part": Part(count=3, held=(0, 2))}
    part = make_loader(config, split="train", seed=0, num_experts=2, batch_size=3, tokenizer=Letters(), **kept)
    assert same(part.batch(12), {name: rows[1:, ::2] for name, rows in batch.items()})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "scene"}, "unknown data 'scene'; did you mean 'scenes'"),
        ({"name": "./nowhere"}, "no prepared data set in './nowhere'"),
        ({"resolutoin": 16}, "unknown key data.resolutoin; did you mean 'resolution'"),
        ({"resolution": 48}, "resolution 48 does not divide source_resolution 64"),
        ({"low_resolution": 24}, "low_resolution 24 does not divide resolution 64"),
        ({"low_resolution": 16, "crop": 30}, "crop 30 must be"),
        ({"crop": 128}, "crop 128 must be"),
        ({"split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"batch": 5, "count": 2}, "batch_size 5 is not a multiple"),
        ({"experts": 0}, "at least one expert"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
    ],
)
def test_mistakes_are_named(folder, config, message):
    with pytest.raises(LoaderError, match=message):
        make(folder, **config)


def test_several_processes_do_not_prepare(tmp_path):
    with pytest.raises(LoaderError, match="not prepared"):
        make(tmp_path, index=0, count=2)


def test_negative_positions_are_refused(folder):
    with pytest.raises(LoaderError, match="0 or more"):
        make(folder).iterate(-1)


def test_a_tfds_folder_by_path_and_pictures_of_other_sizes(folder):
    path = location(folder, ScenesConfig(resolution=64, num_scenes=NUMBER))
    by_name, by_path = make(folder), make(folder, name=str(path))
    assert same(by_name.batch(0), by_path.batch(0))
    with pytest.raises(LoaderError, match="64x64 pixels; source_resolution is 128"):
        make(folder, name=str(path), source_resolution=128).batch(0)
    sizes = views.Views(source=32, resolution=32)
    tall = np.zeros((96, 64, 3), np.uint8)
    tall[16:80] = 200  # the centre square
    assert (sizes.fit(tall) == 200).all()


def test_damaged_pictures_are_named():
    with pytest.raises(LoaderError, match="not a readable PNG, JPEG or WebP"):
        views.decode(b"\x89PNG no")


def test_records_without_a_scene_keep_their_caption():
    record = sources.Record(encoded=b"", caption="a photo of a cat")
    assert record.rephrased(np.random.default_rng(0)) == "a photo of a cat"


def test_layout_positions_cover_the_batch_once():
    for experts, batch, count in itertools.product((1, 3), (4, 8), (1, 2, 4)):
        layouts = [
            loader.Layout(num_experts=experts, batch_size=batch, image_part=Part(count=count, held=(i,)))
            for i in range(count)
        ]
        positions = [p for layout in layouts for p in layout.positions(100)]
        assert sorted(positions) == list(range(100, 100 + experts * batch))


class Pairs:
    """A source of records without scenes: an odd stripe pattern each, so that a mirrored one is known."""

    split = "train"

    def __len__(self):
        return 40

    def read(self, numbers):
        ramp = np.linspace(0, 200, 16, dtype=np.uint8)
        found = [np.repeat(ramp[None, :, None], 16, 0) + np.full(3, number, np.uint8) for number in numbers]
        encode = [cv2.imencode(".png", picture)[1].tobytes() for picture in found]
        return [sources.Record(encoded=png, caption=str(number)) for png, number in zip(encode, numbers, strict=True)]


def test_half_of_the_pictures_are_mirrored_where_asked_and_all_views_of_one_alike(folder):
    def batch(flip, training=True):
        sizes = views.Views(source=16, resolution=16, low=4, crop=8, clip=8)
        data = [batches.DataSet(name="pairs", source=Pairs())]
        layout = loader.Layout(num_experts=1, batch_size=40)
        assemble = batches.RecordAssembler(data=data, sizes=sizes, layout=layout, seed=0, training=training, flip=flip)
        return assemble(0)[0]

    plain, flipped = batch(False), batch(True)
    mirrored = flipped["image"][0, :, 0, 0, 0] > flipped["image"][0, :, 0, -1, 0]
    assert 10 < mirrored.sum() < 30
    for name in ("image", "low_res", "clip_pixels"):
        for before, after, turned in zip(plain[name][0], flipped[name][0], mirrored, strict=True):
            assert np.array_equal(after, before[:, ::-1] if turned else before)
    assert same(batch(True, training=False), batch(False, training=False))
    assert same(make(folder, flip=True).batch(0), make(folder).batch(0))  # scenes' captions say left and right


def smooth(height, width, seed=0):
    """A picture without sharp edges, as photographs mostly are."""
    small = np.random.default_rng(seed).integers(40, 216, (height // 32, width // 32, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((640, 512), (80, 64)), ((256, 512), (64, 128)), ((200, 256), (100, 128)), ((127, 300), (127, 300))],
)
def test_a_jpeg_much_larger_than_wanted_is_decoded_smaller(size, decoded):
    picture = smooth(*size)
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    assert views.jpeg_size(jpeg) == size == Image.open(io.BytesIO(jpeg)).size[::-1]
    assert views.decode(jpeg, enough=64).shape[:2] == decoded
    assert views.decode(jpeg).shape[:2] == size
    plain, reduced = (views.Views(source=16, resolution=16, reduced=reduced).read(jpeg) for reduced in (False, True))
    assert np.abs(plain.astype(int) - reduced).mean() < 0.5 and np.abs(plain.astype(int) - reduced).max() <= 4


def test_only_a_jpeg_is_decoded_smaller_and_only_where_the_config_lets_it(folder):
    picture = smooth(256, 256)
    for ending in (".png", ".webp"):
        encoded = cv2.imencode(ending, picture)[1].tobytes()
        assert views.jpeg_size(encoded) is None and views.decode(encoded, enough=16).shape == (256, 256, 3)
    assert make(folder)._assemble.sizes.reduced and not make(folder, reduced_decode=False)._assemble.sizes.reduced
    assert views.jpeg_size(b"\xff\xd8") is None and views.jpeg_size(b"\xff\xd8\xff\xe0\x00\x04ab") is None
    progressive = io.BytesIO()
    Image.fromarray(picture).save(progressive, "JPEG", progressive=True, exif=b"Exif\0\0" + b"\0" * 600)
    assert views.jpeg_size(progressive.getvalue()) == (256, 256)


def test_memory_stays_flat(folder):
    """The narrow twin of `benchmarks.loading --memory=100000`."""
    batches, held = make(folder, batch=50).iterate(), []
    for number, _ in zip(range(120), batches):
        if number >= 40:
            held.append(psutil.Process().memory_info().rss)
    assert max(held) - held[0] < 16e6  # of 49e6 bytes that went through
