"""Mixtures: turns against counting, order and embeddings against the data sets read alone."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest

from ediffi_jax.conditioning import ConditioningSpec
from ediffi_jax.data import mixture
from ediffi_jax.data.config import DataConfig
from ediffi_jax.data.embedding_rows import RowFormat, digest
from ediffi_jax.data.embeddings import Description, Store, data_fingerprint
from ediffi_jax.data.loader import LoaderError, Part, make_loader
from ediffi_jax.data.mixture import Turns
from ediffi_jax.data.scenes.builder import ScenesConfig, location, prepare
from ediffi_jax.data.sources import open_tfds
from ediffi_jax.data.views import decode

SIZES = (24, 40)  # records
SPEC = ConditioningSpec(clip_tokens=5, clip_width=3, pooled_width=4, t5_tokens=7, t5_width=6)
WEIGHTS = ["1,1", "0.7,0.3", "3,1,1", "0.5,0.25,0.125,0.125", "1/3,2/3", "17,5,3,2,1", "0.9,0.05,0.05", "1,1,1,1,1,1,1"]


@pytest.mark.parametrize("text", WEIGHTS)
def test_shares_are_as_exact_as_whole_images_allow(text):
    """Counted: every beginning of the order, and every window of every length, over three periods."""
    weights = [Fraction(weight) for weight in text.split(",")]
    turns = Turns(weights)
    number = 3 * turns.period
    which, index = np.array([turns(position) for position in range(number)]).T
    for k, weight in enumerate(weights):
        mine = which == k
        assert np.array_equal(index[mine], np.arange(mine.sum()))  # each set's images one after the other
        share = weight / sum(weights)
        behind = [int(count) - position * share for position, count in enumerate(np.concatenate([[0], mine.cumsum()]))]
        bound = 1 - Fraction(1, 2 * len(weights) - 2)
        assert max(map(abs, behind)) <= bound
        worst = max(behind) - min(behind)  # over all windows: a window is the difference of two beginnings
        assert worst <= 1 if len(weights) == 2 else worst < 2
        assert mine[: turns.period].sum() == turns.period * share


def test_a_position_far_away_is_found_at_once():
    turns = Turns([Fraction(7), Fraction(3)])
    far = 10**15
    assert turns(far + 4)[0] == turns(4)[0] and turns(far + 4)[1] == turns(4)[1] + far // 10 * turns.counts[turns(4)[0]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two data sets of different scenes."""
    found = []
    for seed, size in enumerate(SIZES):
        config = ScenesConfig(resolution=16, num_scenes=size, seed=seed, name=f"set{seed}")
        root = tmp_path_factory.mktemp("data")
        prepare(root, config)
        found.append(str(location(root, config)))
    return found


def make(name, *, size=10, experts=1, seed=0, tokenizer=None, split="train", part=None, **data):
    data = {"resolution": 16, "source_resolution": 16, "clip_resolution": 0, "name": name, **data}
    shape = {"num_experts": experts, "batch_size": size, "image_part": part or Part()}
    return make_loader(data, split=split, seed=seed, tokenizer=tokenizer, **shape)


def flat(batches, key="image"):
    return [row.tobytes() for batch in batches for expert in batch[key] for row in expert]


def pictures(folder, split="train"):
    return set(flat([make(folder, size=100, split=split).batch(0)]))


def test_each_data_set_has_its_share_and_its_epochs(folders):
    a, b = (pictures(folder) for folder in folders)
    assert len(a) == SIZES[0] and len(b) == SIZES[1] and not a & b
    mixed = flat([make(f"{folders[0]}:0.7,{folders[1]}:0.3", size=100).batch(0)])
    ours = [picture for picture in mixed if picture in a]
    theirs = [picture for picture in mixed if picture in b]
    assert len(ours) == 70 and len(theirs) == 30
    assert set(ours[:24]) == set(ours[24:48]) == a and ours[:24] != ours[24:48]
    assert len(set(theirs)) == 30
    for start in range(0, 90, 10):
        assert sum(picture in a for picture in mixed[start : start + 10]) == 7


def test_the_order_is_a_function_of_seed_and_position(folders):
    name = f"{folders[0]}:3, {folders[1]}:2"
    whole = flat([make(name, size=48).batch(0)])
    assert flat(itertools.islice(make(name, experts=2, size=6).iterate(12), 3)) == whole[12:]
    parts = [make(name, size=6, part=Part(count=3, held=(index,))).batch(30) for index in range(3)]
    assert [picture for part in parts for picture in flat([part])] == whole[30:36]
    assert flat([make(name, size=48, seed=1).batch(0)]) != whole


def test_held_out_records_are_mixed_in_their_stored_order(folders):
    name = f"{folders[0]}:1,{folders[1]}:1"
    mixed = flat([make(name, size=32, split="validation").batch(0)])
    alone = [flat([make(folder, size=16, split="validation").batch(0)]) for folder in folders]
    assert mixed == [picture for pair in zip(*alone) for picture in pair]


class Encoders:
    """Of which the loader only wants to know who they are."""

    fingerprint = "encoders"


def encode(folder, out, mark, dtype="float32"):
    """Embeddings that say which record they are of."""
    source = open_tfds(folder, "train")
    rows = RowFormat(spec=SPEC, dtype=dtype, pictures=False)
    records = source.read(range(len(source)))
    description = Description(
        encoders=Encoders.fingerprint,
        compute_dtype="float32",
        data=data_fingerprint(source),
        split="train",
        records=len(source),
        captions=1,
        source_resolution=0,
        clip_resolution=0,
        shard_records=16,
        rows=rows,
    )
    store = Store.at(out / "train", description)
    store.make_folder()
    store.describe()
    for shard in range(description.shards):
        encoded = []
        for number in description.shard(shard):
            arrays = {name: np.full((1, rows.size(name)[1]), number) for name in ("t5", "clip_text")}
            pooled = np.full(rows.spec.pooled_width, mark)
            key = digest(records[number].caption, records[number].scene)
            encoded.append(rows.encode(key, {**arrays, "clip_pooled": pooled}))
        store.write(shard, encoded, {})
    return str(out)


def test_embeddings_are_those_of_the_record_in_its_own_data_set(folders, tmp_path):
    prepared = [encode(folder, tmp_path / f"{mark}", mark) for mark, folder in enumerate(folders)]
    name = f"{folders[0]}:0.6,{folders[1]}:0.4"
    data = make(name, size=20, tokenizer=Encoders(), embeddings=",".join(prepared), captions=1)
    batch = data.batch(40)
    assert flat([batch]) == flat([make(name, size=20, captions=1).batch(40)])
    stored = [open_tfds(folder, "train") for folder in folders]
    for row in range(20):
        which, number = int(batch["clip_pooled"][0, row, 0]), int(batch["t5"][0, row, 0, 0])
        assert np.array_equal(batch["image"][0, row], decode(stored[which].read([number])[0].encoded))
    assert sorted({int(mark) for mark in batch["clip_pooled"][0, :, 0]}) == [0, 1]

    with pytest.raises(LoaderError, match="names 1 folders, data.name 2 data sets"):
        make(name, tokenizer=Encoders(), embeddings=prepared[0], captions=1)
    with pytest.raises(LoaderError, match="made from other data"):
        make(name, tokenizer=Encoders(), embeddings=",".join(reversed(prepared)), captions=1)
    other = encode(folders[1], tmp_path / "other", 1, dtype="bfloat16")
    with pytest.raises(LoaderError, match="stored otherwise"):
        make(name, tokenizer=Encoders(), embeddings=f"{prepared[0]},{other}", captions=1)


def test_names_and_weights_are_read_as_written():
    assert mixture.parse("gs://bucket/a") == (mixture.Share(name="gs://bucket/a"),)
    parsed = mixture.parse("gs://bucket/a:0.7, scenes:0.3")
    assert [(share.name, share.weight) for share in parsed] == [
        ("gs://bucket/a", Fraction(7, 10)),
        ("scenes", Fraction(3, 10)),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a,b:1", "'a' has no weight above 0; expected NAME:0.7,NAME:0.3"),
        ("a:x,b:1", "'a:x' has no weight above 0"),
        ("a:0,b:1", "'a:0' has no weight above 0"),
        ("gs://a,b:1", "'gs://a' has no weight above 0"),
        ("a:1,a:2", "'a' comes twice"),
        (":1,a:2", "':1' has no name"),
        ("a:1,", "'' has no weight"),
        ("synthetic:1,scenes:1", "synthetic pictures cannot be mixed"),
        ("./a:1,./b:1", "no prepared data set in './a'"),
    ],
)
def test_mistakes_in_a_mixture_are_named(name, message):
    with pytest.raises(LoaderError, match=message):
        make(name)


def test_weights_of_many_digits_are_refused(folders):
    with pytest.raises(LoaderError, match="repeat only after .* images; expected fewer digits"):
        make(f"{folders[0]}:0.7000001,{folders[1]}:0.2999999").batch(0)


def test_one_data_set_by_itself_is_encoded():
    with pytest.raises(LoaderError, match="is a mixture; expected one data set"):
        dataclasses.replace(DataConfig(), name="a:1,b:1").open("train", True)
