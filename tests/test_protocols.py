"""COCO, Visual Genome, TFDS and scenes as prompts with real pictures; files as their authors lay them out."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ediffi_jax.data import scenes
from ediffi_jax.data.sources import open_tfds
from ediffi_jax.evaluation import annotations, inputs, protocols, real_pictures
from ediffi_jax.evaluation.errors import EvaluationError


def picture(number: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def coco(tmp_path):
    """20 pictures in the layout of captions_val2014.json, five captions each, one picture without any."""
    folder = tmp_path / "val2014"
    folder.mkdir()
    images, captions = [], []
    for i in range(20):
        key, name = 100 + 7 * i, f"COCO_val2014_{100 + 7 * i:012d}.jpg"
        picture(key).save(folder / name, quality=95)
        images.append({
            "license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/val2014/{name}", "height": 24,
            "width": 32, "date_captured": "2013-11-14 11:18:45", "flickr_url": "http://farm1.staticflickr.com/1.jpg",
            "id": key,
        })  # fmt: skip
        texts = [f"A caption {n} of picture {key}. \n" for n in range(5 if i else 0)]
        captions += [{"image_id": key, "id": 10 * key + n, "caption": text} for n, text in enumerate(texts)]
    info = {"description": "COCO 2014 Dataset", "version": "1.0", "year": 2014}
    file = tmp_path / "captions_val2014.json"
    licenses = [{"url": "http://flickr.com/commons/usage/", "id": 7, "name": "No known copyright restrictions"}]
    file.write_text(json.dumps({"info": info, "images": images, "licenses": licenses, "annotations": captions}))
    return file, folder


def test_coco_gives_one_caption_of_each_drawn_picture(coco):
    found = annotations.of_coco(*coco, number=19, seed=3)
    assert len(found) == 19
    keys = [int(prompt.split()[-1].rstrip(".")) for prompt in found.prompts]
    assert sorted(keys) == [100 + 7 * i for i in range(1, 20)]  # each once, not the one without captions
    assert len(Counter(prompt.split()[2] for prompt in found.prompts)) > 2  # not always the first caption
    for i in (0, 7, 18):
        stored = np.asarray(Image.open(coco[1] / f"COCO_val2014_{keys[i]:012d}.jpg"))
        np.testing.assert_array_equal(found.picture(i), stored)


def test_the_choice_is_the_seeds_and_a_longer_list_begins_with_the_shorter(coco):
    nineteen = annotations.of_coco(*coco, number=19, seed=3).prompts
    assert annotations.of_coco(*coco, number=5, seed=3).prompts == nineteen[:5]
    assert annotations.of_coco(*coco, number=19, seed=4).prompts != nineteen


def test_coco_that_cannot_be_used_is_one_line(coco, tmp_path):
    file, folder = coco
    with pytest.raises(EvaluationError, match="captions_val2014.json has 19 pictures, 20 are asked for"):
        annotations.of_coco(file, folder, 20)
    with pytest.raises(EvaluationError, match="no annotations in .*elsewhere.json"):
        annotations.of_coco(tmp_path / "elsewhere.json", folder, 2)
    (folder / "COCO_val2014_000000000107.jpg").unlink()
    with pytest.raises(EvaluationError, match="1 of 19 pictures are missing, the first is .*000107.jpg"):
        annotations.of_coco(file, folder, 19)
    for text, message in (('{"images": [{}]}', "not COCO captions"), ("[1, 2]", "not COCO captions"), ("{", "as JSON")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(EvaluationError, match=message):
            annotations.of_coco(tmp_path / "bad.json", folder, 2)


def region(number: int, phrase: str, width: int, height: int) -> dict:
    box = {"x": 3, "y": 4, "width": width, "height": height}
    return {"region_id": number, **box, "image_id": 1, "phrase": phrase}


def test_a_visual_genome_caption_follows_its_rule():
    regions = [
        region(11, "red  cup", 5, 5),
        region(12, "A cat on a table. ", 20, 10),
        region(14, "the wall is white", 40, 40),
        region(13, "a CAT on a table", 20, 10),
        region(15, "", 50, 50),
    ]
    assert annotations.vg_caption(regions) == "The wall is white. A cat on a table. Red cup."
    assert annotations.vg_caption(regions, words=4) == "The wall is white."
    assert annotations.vg_caption(regions, words=5) == "The wall is white. A cat on a table."
    assert annotations.vg_caption([]) == ""
    many = [region(i, f"phrase number {i} of many", 9, 9) for i in range(40)]
    assert 60 <= len(annotations.vg_caption(many).split()) < 65


def test_visual_genome_is_read_as_published(tmp_path):
    entries = []
    for key, folder in ((2, "VG_100K"), (9, "VG_100K_2"), (12, "VG_100K")):
        (tmp_path / folder).mkdir(exist_ok=True)
        picture(key).save(tmp_path / folder / f"{key}.jpg", quality=95)
        entries.append({"id": key, "regions": [region(1, f"thing {key}", 4, 4), region(2, "sky", 30, 10)]})
    entries.append({"id": 13, "regions": []})
    file = tmp_path / "region_descriptions.json"
    file.write_text(json.dumps(entries))
    found = annotations.of_visual_genome(file, tmp_path, 3)
    assert sorted(found.prompts) == ["Sky. Thing 12.", "Sky. Thing 2.", "Sky. Thing 9."]
    row = found.prompts.index("Sky. Thing 9.")
    np.testing.assert_array_equal(found.picture(row), np.asarray(Image.open(tmp_path / "VG_100K_2" / "9.jpg")))
    with pytest.raises(EvaluationError, match="has 3 pictures, 4 are asked for"):
        annotations.of_visual_genome(file, tmp_path, 4)
    file.write_text('{"a": 1}')
    with pytest.raises(EvaluationError, match="not Visual Genome"):
        annotations.of_visual_genome(file, tmp_path, 1)


def test_scenes_are_judged_right_where_they_show_what_is_asked():
    found = protocols.of_scenes(12, held_out=True, resolution=128)
    real = np.stack([found.picture(i) for i in range(12)])
    assert found.judge(0, real).mean() > 0.9
    assert found.judge(4, real[4:8]).tolist() == found.judge(0, real)[4:8].tolist()
    assert found.judge(0, np.roll(real, 1, axis=0)).mean() < 0.2
    assert protocols.of_scenes(5, held_out=True).prompts == found.prompts[:5]
    assert protocols.of_scenes(5, seed=1).prompts != protocols.of_scenes(5).prompts


def test_tfds_gives_captions_with_their_pictures(tmp_path):
    from ediffi_jax.data.scenes import builder

    config = builder.ScenesConfig(resolution=16, num_scenes=12)
    builder.prepare(tmp_path, config)
    folder = builder.location(tmp_path, config)
    found = protocols.of_tfds(folder, "train", 6, seed=1)
    stored = {record.caption: record.encoded for record in open_tfds(folder, "train").read(range(12))}
    assert len(set(found.prompts)) == 6
    for i, prompt in enumerate(found.prompts):
        picture_of_it = np.asarray(Image.open(io.BytesIO(stored[prompt])).convert("RGB"))
        np.testing.assert_array_equal(found.picture(i), picture_of_it)
    with pytest.raises(EvaluationError, match="has 12 pictures, 13 are asked for"):
        protocols.of_tfds(folder, "train", 13)


def test_a_protocol_says_what_it_lacks():
    with pytest.raises(EvaluationError, match="unknown protocol 'cocoo'; did you mean 'coco'"):
        inputs.protocol("cocoo", 5)
    with pytest.raises(EvaluationError, match="coco needs --images"):
        inputs.protocol("coco", 5)
    with pytest.raises(EvaluationError, match="coco needs --annotations"):
        inputs.protocol("coco", 5, images="val2014")
    with pytest.raises(EvaluationError, match="0 pictures; expected at least 1"):
        inputs.protocol("scenes", 0)


def test_real_pictures_become_the_central_square():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    assert (real_pictures.square(wide, 20) == 200).all()
    assert real_pictures.square(wide, 10).shape == (10, 10, 3) and (real_pictures.square(wide, 10)[:, 2:-2] > 190).all()
    assert real_pictures.square(wide.transpose(1, 0, 2), 64).shape == (64, 64, 3)
    exact = scenes.render(scenes.sample_scene(np.random.default_rng(0)), 32)
    assert real_pictures.square(exact, 32) is exact


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    picture(1).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jpg").write_text("no picture")
    for name in ("b.png", "c.jpg"):
        with pytest.raises(EvaluationError, match=f"{name} is unreadable") as caught:
            list(real_pictures.batches(lambda i: real_pictures.read(tmp_path / name), 1, 8))  # noqa: B023
        assert "\n" not in str(caught.value)
    with pytest.raises(EvaluationError, match="no folder"):
        real_pictures.files_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="no pictures in"):
        real_pictures.files_of(tmp_path / "empty")


def test_guidance_and_seeds_are_read_as_written():
    assert inputs.weights("0,0.5,2") == [0.0, 0.5, 2.0]
    assert inputs.weights("0:10:0.5") == [i / 2 for i in range(21)]
    for text in ("", "a", "0:1", "0:1:0.3", "1:0:1", "0:1:0", "0:1:-1"):
        with pytest.raises(EvaluationError, match="--guidance="):
            inputs.weights(text)
    assert inputs.seeds(["0", "12"]) == [0, 12]
    for words in ([], ["a"], ["-1"], ["1.5"]):
        with pytest.raises(EvaluationError, match="--seeds="):
            inputs.seeds(words)
