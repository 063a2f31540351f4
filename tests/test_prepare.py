"""Preparing data, record by record and across records: decoding against closed forms, duplicates against all pairs."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import scipy.fft
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image, ImageCms
from prepare_inputs import encoded, photo, settings

from ediffi_jax.data.prepare import captions, crops, dedup, exclusion, hashing
from ediffi_jax.data.prepare.decode import ORIENTATION, Decoder
from ediffi_jax.data.prepare.examine import look
from ediffi_jax.data.prepare.reasons import PrepareError, Rejection
from ediffi_jax.data.prepare.settings import Settings
from ediffi_jax.data.prepare.sources import Item

DECODER = Decoder(side=64)


def rgb(data: bytes, name: str = "", decoder: Decoder = DECODER) -> tuple[np.ndarray, tuple[str, ...]]:
    image, header = decoder.open(data, name)
    picture, noted = decoder.pixels(image, data)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    return picture, (*header.notes, *noted)


def reason(data: bytes, **changes) -> str:
    item = Item(id="a", source="a", encoded=data, captions=("a caption of words",))
    with pytest.raises(Rejection) as caught:
        look(item, settings(**changes))
    return caught.value.reason


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    upright = np.asarray(photo(1))
    # What the camera stored, by the meaning of the tag in the EXIF standard: row 0 is top, right side, ...
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(rgb(data)[0], upright)
    image, header = DECODER.open(data)
    assert (header.width, header.height) == (96, 72)
    as_stored = Decoder(side=64, exif_rotation=False)
    np.testing.assert_array_equal(rgb(data, decoder=as_stored)[0], stored)


def test_every_kind_of_picture_becomes_rgb_on_white() -> None:
    colour = np.asarray(photo(2))
    alpha = np.linspace(0, 255, 96).astype(np.uint8)[None].repeat(72, 0)
    picture, _ = rgb(encoded(Image.fromarray(np.dstack([colour, alpha])), "PNG"))
    a = alpha[..., None] / 255
    assert np.abs(picture - (colour * a + 255 * (1 - a))).max() <= 1
    gray = colour[..., 0]
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(gray), "PNG"))[0], np.dstack([gray] * 3))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    np.testing.assert_array_equal(rgb(encoded(deep, "PNG"))[0], np.dstack([gray] * 3))
    cmyk, _ = rgb(encoded(photo(2).convert("CMYK"), quality=100))
    assert np.abs(cmyk.astype(int) - colour).mean() < 3
    palette = Image.fromarray(colour).quantize(16)
    np.testing.assert_array_equal(rgb(encoded(palette, "PNG"))[0], np.asarray(palette.convert("RGB")))
    holes = rgb(encoded(palette, "PNG", transparency=0))[0]
    assert (holes[np.asarray(palette) == 0] == 255).all()


def other_profile() -> bytes:
    """sRGB's profile with the places of red and green exchanged, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for index in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        places[tag] = (132 + 12 * index + 4, offset, size)
    for a, b in ((b"rXYZ", b"gXYZ"),):
        struct.pack_into(">II", profile, places[a][0], *places[b][1:])
        struct.pack_into(">II", profile, places[b][0], *places[a][1:])
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")


def test_colour_profiles_are_converted_and_bad_ones_noted() -> None:
    colour = np.asarray(photo(3))
    data = encoded(photo(3), "PNG", icc_profile=other_profile())
    picture, noted = rgb(data)
    assert np.abs(picture.astype(int) - colour[..., [1, 0, 2]]).max() <= 4 and not noted
    np.testing.assert_array_equal(rgb(data, decoder=Decoder(side=64, colour_profiles=False))[0], colour)
    picture, noted = rgb(encoded(photo(3), "PNG", icc_profile=b"no profile at all"))
    np.testing.assert_array_equal(picture, colour)
    assert noted == ("profile_unreadable",)


def test_damage_and_traps_have_their_names() -> None:
    whole = encoded(photo(4, 300, 300))
    png = encoded(photo(4, 300, 300), "PNG")
    assert reason(b"") == "empty_file"
    assert reason(b"<!doctype html><html>404</html>") == "not_an_image"
    assert reason(whole[: len(whole) // 2]) == "truncated"
    assert reason(png[: len(png) // 2]) == "truncated"
    broken = bytearray(png)
    broken[len(png) // 2] ^= 0xFF
    assert reason(bytes(broken)) == "unreadable"
    bomb = encoded(Image.new("1", (30_000, 30_000)), "PNG", compress_level=1)
    assert len(bomb) < 1_000_000 and reason(bomb) == "too_many_pixels"
    assert reason(encoded(photo(4)), min_side=73) == "too_small"
    assert reason(encoded(photo(4)), max_aspect=1.3) == "too_long"
    text = zlib.compress(bytes(80_000_000), 1)  # a comment that unpacks to 80 MB, in a picture of one pixel
    chunk = b"zTXt" + b"a\0\0" + text
    small = encoded(Image.new("RGB", (40, 40)), "PNG")
    trap = small[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[33:]
    assert reason(trap) == "unreadable"


def test_a_wrong_extension_and_an_animation_are_mended() -> None:
    assert rgb(encoded(photo(5), "PNG"), "a.jpg")[1] == ("wrong_extension",)
    assert rgb(encoded(photo(5), "WEBP", lossless=True), "a.webp")[1] == ()
    frames = [photo(6).convert("P"), photo(7).convert("P")]
    picture, noted = rgb(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a.gif")
    assert noted == ("animated",)
    assert np.abs(picture.astype(int) - np.asarray(frames[0].convert("RGB"))).max() <= 8


def test_the_square_is_the_middle_and_each_pixel_an_average() -> None:
    picture = np.asarray(photo(8, 300, 200))
    middle = picture[:, 50:250].reshape(40, 5, 40, 5, 3).mean((1, 3))
    assert np.abs(crops.square(picture, 40) - middle).max() <= 0.51
    assert crops.square(np.asarray(photo(8, 20, 30)), 64).shape == (64, 64, 3)
    for format, error in (("png", 0), ("jpeg", 2)):
        square = crops.square(picture, 64)
        back = cv2.imdecode(np.frombuffer(crops.encode(square, settings(format=format)), np.uint8), 1)[..., ::-1]
        assert np.abs(back.astype(int) - square).mean() <= error


def test_large_jpegs_are_decoded_small_and_look_the_same() -> None:
    image = photo(9, 1600, 1200)
    data = encoded(image)
    picture, _ = rgb(data, decoder=Decoder(side=64))
    assert picture.shape == (150, 200, 3)  # at 1/8, still more than twice the side
    whole = crops.square(np.asarray(Image.open(io.BytesIO(data))), 64)
    assert np.abs(crops.square(picture, 64).astype(int) - whole).mean() < 1


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("  A cat\n on a\tmat. ", "A cat on a mat."),
        ("Fish &amp; chips &lt;3", "Fish & chips <3"),
        ("<p>A <b>red</b> car</p> https://x.org/a?b=1 parked", "A red car parked"),
        ("zero\u200bwidth \ufeffmark\x07", "zerowidth mark"),
        ("cafe\u0301", "café"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("\u3000Ein Bär, 熊\u3000", "Ein Bär, 熊"),
        ("https://only.example/address.jpg", ""),
    ],
)
def test_captions_are_cleaned_and_not_rewritten(written: str, read: str) -> None:
    assert captions.clean(written) == read


def test_captions_are_found_in_what_data_sets_hold() -> None:
    assert captions.texts({"captions": {"text": np.array([b"a", b"b"], object), "id": [1, 2]}}) == ("a", "b")
    assert captions.texts({"text": "one"}) == captions.texts({"caption": ["one"]}) == ("one",)
    assert captions.texts({"other": "x", "text": "y"}, "other") == ("x",) and captions.texts({"n": 1}) == ()
    assert captions.from_json(b'["a", "b"]') == {"caption": ["a", "b"]}
    for read, wrong in ((captions.decode, b"caf\xe9"), (captions.from_json, b"{no"), (captions.texts, b"\xff")):
        with pytest.raises(Rejection):
            read(wrong)


def test_thresholds_on_scores_and_words() -> None:
    item = Item(id="a", source="a", encoded=encoded(photo(1)), captions=("two words", "three words here"), clip=0.3)
    assert look(item, settings(min_clip=0.3, min_words=2))["caption"] == "two words"
    kept = look(item, settings(captions="all", min_words=3))
    assert kept["captions"] == ["three words here"] and kept["caption"] == "three words here"
    for name, changes in (
        ("clip_low", {"min_clip": 0.31}),
        ("aesthetic_unknown", {"min_aesthetic": 5.0}),
        ("caption_short", {"min_words": 4}),
    ):
        with pytest.raises(Rejection) as caught:
            look(item, settings(**changes))
        assert caught.value.reason == name


def test_the_perceptual_hash_is_that_of_the_transform() -> None:
    picture = np.asarray(photo(10, 64, 64))
    small = cv2.cvtColor(cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    low = scipy.fft.dctn(small.astype(float), norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])
    assert hashing.perceptual(picture)[0] == int("".join("01"[int(bit)] for bit in bits), 2)


def test_the_same_picture_is_near_and_others_are_far() -> None:
    hashes = [hashing.perceptual(np.asarray(photo(seed, 320, 240)))[0] for seed in range(40)]
    for seed in range(20):
        smaller = Image.open(io.BytesIO(encoded(photo(seed, 320, 240).resize((140, 105)), quality=60)))
        assert (hashing.perceptual(np.asarray(smaller))[0] ^ hashes[seed]).bit_count() <= 4
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 8 and 28 < np.mean(apart) < 36


def entries(seed: int, number: int) -> np.ndarray:
    """Records of which many are near one another, some by hash alone, some the same."""
    rng = np.random.default_rng(seed)
    found = np.zeros(number, dedup.ENTRY)
    centres = rng.integers(0, 2**64, 12, dtype=np.uint64)
    for entry in found:
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 5), replace=False))
        entry["phash"] = centres[rng.integers(12)] ^ np.uint64(flips)
        entry["colours"] = rng.choice([10, 30, 60], 12) if rng.random() < 0.3 else 40
        entry["sha"] = rng.integers(0, 40, 2)
    found["pixels"], found["tie"] = rng.integers(1, 4, number), rng.permutation(number)
    return found


@examples(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), number=st.integers(0, 70), distance=st.integers(-1, 6), exact=st.booleans())
def test_duplicates_are_those_of_all_pairs_however_they_are_cut(seed, number, distance, exact) -> None:
    whole = entries(seed, number)
    order = sorted(range(number), key=lambda i: (-whole["pixels"][i], whole["tie"][i]))
    expected = set()
    for place, i in enumerate(order):
        for j in order[:place]:
            same = exact and (whole["sha"][i] == whole["sha"][j]).all()
            near = int(whole["phash"][i] ^ whole["phash"][j]).bit_count() <= distance
            alike = np.abs(whole["colours"][i].astype(int) - whole["colours"][j]).max() <= hashing.COLOUR_DISTANCE
            expected |= {i} if same or (near and alike) else set()
    for units in (1, 3):
        whole["unit"], whole["row"] = np.arange(number) % units, np.arange(number)
        gathered: dict = {}
        for unit in range(units):
            for bucket, part in dedup.buckets(whole[whole["unit"] == unit], exact, distance):
                gathered.setdefault(bucket, []).append(part)
        found = [dedup.duplicates(bucket, np.concatenate(parts[::-1]), distance) for bucket, parts in gathered.items()]
        assert {int(row) for verdicts in found for row in verdicts["row"]} == expected


def test_later_rows_with_a_known_id_are_repeated() -> None:
    ids = np.array([[7, 1, 0], [5, 0, 2], [7, 0, 9], [5, 0, 1], [6, 2, 2]], np.uint64)
    assert sorted(map(tuple, dedup.repeated(ids))) == [(0, 2), (1, 0)]


def test_lists_of_excluded_pictures(tmp_path) -> None:
    path = tmp_path / "list"
    path.write_text(f"# one\n\n{'ab' * 32} {7:016x} a.jpg\n{0xFF00:016X}\n{'cd' * 32}\n")
    listed = exclusion.load((str(path),))
    phashes = np.array([0, 0xFF00, 2**63 + 0xFF0F, 2**40 - 1], np.uint64)
    assert listed.covers([b""] * 4, phashes, 3).tolist() == [True, True, False, False]
    assert listed.covers([b"", bytes.fromhex("cd" * 32)], np.array([2**60 - 1] * 2, np.uint64), 0).tolist() == [
        False,
        True,
    ]
    path.with_name("bad").write_text("no hash here\n")
    for name, message in (("bad", "line 1: no hash"), ("nowhere", "cannot be read")):
        with pytest.raises(PrepareError, match=message):
            exclusion.load((str(tmp_path / name),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 4}, "resolution is 4; expected 8 to 4096"),
        ({"format": "jpg"}, "unknown format 'jpg'; did you mean 'jpeg'"),
        ({"duplicate_distance": 17}, "duplicate_distance is 17"),
        ({"validation": 1.0}, "validation is 1.0; expected a share below 1"),
        ({"max_aspect": 0.5}, "max_aspect is 0.5"),
        ({"max_pixels": 10}, "max_pixels is 10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(PrepareError, match=message):
        Settings(**{"resolution": 64, **changes})
