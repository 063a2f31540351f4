"""Records that cannot be used: found, told of, replaced alike everywhere, and too many end the run."""

import dataclasses
import itertools
import logging
import types

import cv2
import numpy as np
import pytest
from array_record.python import array_record_module

from ediffi_jax.conditioning import ConditioningSpec
from ediffi_jax.data import views
from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.data.loader import LoaderError, Part, make_loader
from ediffi_jax.data.replacement import Account, Replaced
from ediffi_jax.data.scenes.builder import ScenesConfig, location, prepare
from ediffi_jax.data.sources import open_tfds
from ediffi_jax.data.views import decode
from ediffi_jax.training import encode_shards

NUMBER, SIDE = 60, 16
CONFIG = ScenesConfig(resolution=SIDE, num_scenes=NUMBER)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    prepare(path, CONFIG)
    return str(location(path, CONFIG))


def spoil(folder, numbers):
    """Flips a byte in the stored pictures of some records, which are written uncompressed to be found."""
    (path,) = location(folder, CONFIG).glob("*train.array_record*")
    pictures = [record.encoded for record in open_tfds(location(folder, CONFIG), "train").read(numbers)]
    rows = array_record_module.ArrayRecordReader(str(path)).read_all()
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for row in rows:
        writer.write(row)
    writer.close()
    content = bytearray(path.read_bytes())
    for picture in pictures:
        place = content.find(picture)
        assert place > 0
        content[place + len(picture) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged")
    prepare(path, CONFIG)
    spoil(path, [3, 17, 41])
    return str(location(path, CONFIG))


def make(name, *, size=20, experts=1, part=None, **data):
    data = {"resolution": SIDE, "source_resolution": SIDE, "clip_resolution": 0, "name": name, **data}
    shape = {"num_experts": experts, "batch_size": size, "image_part": part or Part()}
    return make_loader({"max_bad_fraction": 1.0, **data}, split="train", seed=5, **shape)


def flat(batches):
    return [row.tobytes() for batch in batches for expert in batch["image"] for row in expert]


def test_only_what_is_damaged_is_replaced_and_by_another_record(whole, damaged):
    good, mended = (flat([make(name, size=3 * NUMBER).batch(0)]) for name in (whole, damaged))
    spoilt = {decode(record.encoded).tobytes() for record in open_tfds(whole, "train").read([3, 17, 41])}
    differ = [a in spoilt for a in good]
    assert sum(differ) == 9  # three epochs
    for before, after, bad in zip(good, mended, differ, strict=True):
        assert (after in set(good) - spoilt) if bad else after == before
    assert len({after for after, bad in zip(mended, differ, strict=True) if bad}) > 3  # not one for all


def test_the_same_everywhere(damaged):
    mended = flat([make(damaged, size=NUMBER).batch(0)])
    assert flat(itertools.islice(make(damaged, experts=2, size=5).iterate(20), 4)) == mended[20:]
    workers = make(damaged, size=10, workers=1)
    assert flat(itertools.islice(workers.iterate(0), 6)) == mended
    assert (workers.account.images, workers.account.replaced) == (NUMBER, 3)
    parts = [make(damaged, size=20, part=Part(count=4, held=(index,))).batch(40) for index in range(4)]
    assert [picture for part in parts for picture in flat([part])] == mended[40:]


def test_it_is_counted_and_told_with_its_number(damaged, caplog):
    data = make(damaged)
    with caplog.at_level(logging.WARNING, logger="absl"):
        list(itertools.islice(data.iterate(0), NUMBER // 20))
    assert (data.account.images, data.account.replaced) == (NUMBER, 3)
    told = [record.getMessage() for record in caplog.records if "replaced" in record.getMessage()]
    assert len(told) == 3
    for number in (3, 17, 41):
        expected = f"record {number} of {damaged!r}: a stored record is damaged: Corrupted"
        assert sum(expected in line for line in told) == 1


def test_pictures_that_do_not_decode_are_told_with_their_id(caplog, whole, monkeypatch):
    source = open_tfds(whole, "train")
    bad = source.read([7])[0]
    def decoding(encoded, enough):
        return decode(encoded[: len(encoded) // 2] if encoded == bad.encoded else encoded, enough)

    monkeypatch.setattr(views, "decode", decoding)
    data = make(whole)
    with caplog.at_level(logging.WARNING, logger="absl"):
        list(itertools.islice(data.iterate(0), NUMBER // 20))
    lines = [record.getMessage() for record in caplog.records if "replaced" in record.getMessage()]
    assert len(lines) == 1 and f"record 7 ({bad.id}) of {whole!r}: a record's picture" in lines[0] and bad.id


def test_too_many_end_the_run_in_one_line(tmp_path):
    prepare(tmp_path, CONFIG)
    spoil(tmp_path, range(0, NUMBER, 3))
    name = str(location(tmp_path, CONFIG))
    expected = r"^1\d of \d+ images .* more than config.data.max_bad_fraction=0.01; the last was record \d+"
    with pytest.raises(LoaderError, match=expected):
        list(itertools.islice(make(name, size=10, max_bad_fraction=0.01).iterate(0), 12))


@pytest.mark.parametrize("workers", [0, 1])
def test_where_no_record_can_be_used_it_says_why(whole, workers):
    with pytest.raises(LoaderError, match="16 records in a row cannot be used; .* source_resolution is 32"):
        next(make(whole, source_resolution=32, workers=workers).iterate(0))


def test_the_share_is_of_a_thousand_images_at_least():
    record = Replaced(data="d", number=1, id="", reason="r")
    account = Account(0.001)
    account.add(10, [record])
    with pytest.raises(LoaderError, match="2 of 20 images"):
        account.add(10, [record])
    account = Account(0.01)
    account.add(5000, [record] * 50)
    with pytest.raises(LoaderError, match="51 of 5000"):
        account.add(0, [record])
    with pytest.raises(LoaderError, match="max_bad_fraction is 1.5; expected a share from 0 to 1"):
        Account(1.5)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_pictures_are_read_whole_or_not_at_all(ending):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
    encoded = cv2.imencode(ending, picture[..., ::-1])[1].tobytes()
    read = decode(encoded)
    assert read.shape == (60, 80, 3) and np.abs(read.astype(int) - picture).mean() < 4
    for cut in (0, 1, len(encoded) // 2, len(encoded) - 3):
        with pytest.raises(LoaderError, match=f"picture \\({cut} bytes\\) is not a readable"):
            decode(encoded[:cut])


def test_preparing_embeddings_passes_over_a_picture_that_training_replaces(whole, caplog):
    class Tokenizer:
        def tokenize(self, texts):
            return texts

    class Bad(type(open_tfds(whole, "train"))):
        def read(self, numbers):
            return [dataclasses.replace(record, encoded=b"no") if n == 7 else record
                    for n, record in zip(numbers, super().read(numbers))]  # fmt: skip

    spec = ConditioningSpec(clip_tokens=5, clip_width=3, pooled_width=4, t5_tokens=7, t5_width=6)
    store = types.SimpleNamespace(about=types.SimpleNamespace(captions=1, rows=RowFormat(spec=spec)))
    sizes = views.Views(source=SIDE, resolution=SIDE, clip=8)
    part = encode_shards.Part(source=Bad(whole, "train"), store=store, training=True, sizes=sizes, encoders=Tokenizer())
    with caplog.at_level(logging.WARNING, logger="absl"):
        pixels = part.gather([6, 7, 8]).pixels
    assert [bool(picture.any()) for picture in pixels] == [True, False, True]
    assert "record 7 train-0-8 cannot be used: a record's picture (2 bytes)" in caplog.text
