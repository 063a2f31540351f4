"""The sides of `benchmarks.loading` do the same work: compared on the same pictures."""

import itertools

import numpy as np
import pytest

from benchmarks.loading_agreement import agreement
from benchmarks.loading_pictures import encoded, write
from benchmarks.loading_sides import BATCH, CASES, SIDES


@pytest.mark.parametrize("name", CASES)
def test_both_make_the_same_of_a_picture(name, monkeypatch):
    monkeypatch.setattr("benchmarks.loading_agreement.COMPARED", 2)
    mean, _ = agreement(CASES[name])
    assert mean < 2


def test_every_side_gives_the_same_pictures_in_batches_of_one_shape(tmp_path):
    case, number = CASES["64"], BATCH
    places = write(tmp_path, case.pictures, number)
    told = {f"picture {index}," for index in range(number)}
    for name, side in SIDES.items():
        (batch,) = itertools.islice(side(case, *places, workers=0), 1)
        views, captions = (batch, None) if name == "ours" else batch
        images = np.asarray(views["image"]).reshape(-1, 64, 64, 3)
        assert images.shape == (BATCH, 64, 64, 3) and images.dtype == np.uint8
        if captions:
            assert {caption[: caption.index(",") + 1] for caption in captions} == told
    assert encoded(0, "mixed") == encoded(0, "mixed")
