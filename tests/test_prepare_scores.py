"""Scores computed while preparing: CLIP's against transformers, the predictor's against PyTorch; who is taken, who refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from PIL import Image
from prepare_inputs import encoded, photo, settings, write

from ediffi_jax import encoders
from ediffi_jax.data.prepare import examine, prepare, scoring, sources
from ediffi_jax.data.prepare.reasons import PrepareError
from ediffi_jax.data.prepare.running import Running
from ediffi_jax.data.scenes import heldout_prompts, render
from ediffi_jax.encoders import EncoderError
from ediffi_jax.encoders.layout import bundled

N = 6


@pytest.fixture(scope="module")
def pictures() -> tuple[list[str], list[np.ndarray]]:
    """Captions with the scenes that they describe."""
    prompts, found = zip(*heldout_prompts(N, 3), strict=True)
    return list(prompts), [render(scene, 80) for scene in found]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """LAION's architecture at the bundled CLIP's width, random weights, with dropouts between, as published."""
    torch.manual_seed(0)
    width = encoders.load("scenes").vision.config.pooled_width
    widths = (width, 24, 12, 6, 3, 1)
    linear = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
    layers = [
        linear[0],
        torch.nn.Dropout(0.2),
        linear[1],
        torch.nn.Dropout(0.2),
        linear[2],
        torch.nn.Dropout(0.1),
        *linear[3:],
    ]
    module = torch.nn.Module()
    module.layers = torch.nn.Sequential(*layers)
    path = tmp_path_factory.mktemp("predictor") / "linear.pth"
    torch.save(module.state_dict(), path)
    return module.eval(), path


def test_scores_are_those_of_the_peers(pictures, predictor) -> None:
    captions, squares = pictures
    module, path = predictor
    scorer = scoring.of(settings(clip="scenes", min_clip=0, aesthetic=str(path), min_aesthetic=0))
    seen = np.stack([scorer.square(picture) for picture in squares])
    clip, aesthetic = scorer(captions, seen)
    folder = bundled("scenes") / "clip"
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        out = model(
            **tokenizer(captions, return_tensors="pt", padding=True),
            pixel_values=processor(squares, return_tensors="pt").pixel_values,
        )
        expected = module.layers(out.image_embeds)[:, 0]
    np.testing.assert_allclose(clip, (out.text_embeds * out.image_embeds).sum(-1), atol=2e-4)
    np.testing.assert_allclose(aesthetic, expected, atol=2e-4)
    alone = scorer(captions[2:3], seen[2:3])
    np.testing.assert_array_equal(alone[0], clip[2:3])
    np.testing.assert_array_equal(alone[1], aesthetic[2:3])


def test_records_are_taken_by_computed_scores_where_the_input_has_none(tmp_path: Path, pictures) -> None:
    captions, squares = pictures
    files: dict[str, bytes | str] = {}
    for i, (caption, picture) in enumerate(zip(captions, squares, strict=True)):
        files[f"{i}.png"] = _png(picture)
        files[f"{i}.txt"] = caption if i < 3 else captions[i - 3]  # the last three describe other pictures
    files["known.png"], files["known.json"] = _png(squares[0]), '{"caption": "nothing that fits", "similarity": 0.99}'
    files["low.png"], files["low.json"] = _png(squares[1]), '{"caption": "' + captions[1] + '", "similarity": 0.01}'
    source = str(write(tmp_path, files))
    right, wrong = _clip_scores(captions[:3], squares[:3]), _clip_scores(captions[:3], squares[3:])
    assert right.min() > wrong.max()
    given = settings(clip="scenes", min_clip=float(right.min() + wrong.max()) / 2)
    units = sources.list_units(source, given)
    rows = [row for unit in units for table in examine.examine(unit, given) for row in table.to_pylist()]
    told = {row["id"]: row["reason"] for row in rows}
    assert told == {
        "0": "", "1": "", "2": "", "3": "clip_low", "4": "clip_low", "5": "clip_low", "known": "", "low": "clip_low",
    }  # fmt: skip
    refused = next(row for row in rows if row["id"] == "4")
    assert float(refused["detail"]) == pytest.approx(wrong[1], abs=1e-3) and refused["picture"] is None
    assert all(row["picture"] for row in rows if not row["reason"])


def _png(picture: np.ndarray) -> bytes:
    return encoded(Image.fromarray(picture), "PNG")


def _clip_scores(captions: list[str], squares: list[np.ndarray]) -> np.ndarray:
    scorer = scoring.of(settings(clip="scenes", min_clip=0))
    return scorer(captions, np.stack([scorer.square(picture) for picture in squares]))[0]


def test_other_networks_are_other_work(tmp_path: Path, predictor) -> None:
    plain = settings()
    assert scoring.fingerprint(plain) == []
    module, path = predictor
    given = settings(clip="scenes", min_clip=0, aesthetic=str(path), min_aesthetic=0)
    assert plain.each() == settings(clip="", aesthetic="").each()
    stored = {name: values.numpy() for name, values in module.state_dict().items()}
    copy, other = tmp_path / "copy.safetensors", tmp_path / "other.safetensors"
    safetensors.numpy.save_file(stored, copy)
    safetensors.numpy.save_file({**stored, "layers.7.bias": stored["layers.7.bias"] + 1}, other)
    prints = [
        scoring.fingerprint(settings(clip="scenes", min_clip=0, aesthetic=str(file), min_aesthetic=0))
        for file in (path, copy, other)
    ]
    assert given.clip == "scenes" and prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"weight": (1, 48)}, "expected layers.N.weight"),
        ({"layers.0.weight": (4, 48), "layers.0.bias": (4,)}, "end in one number"),
        (
            {"layers.0.weight": (4, 48), "layers.0.bias": (4,), "layers.1.weight": (1, 5), "layers.1.bias": (1,)},
            "one number",
        ),
        ({"conv.weight": (1, 48)}, "holds conv.weight"),
        ({"weight": (1, 7), "bias": (1,)}, "wants 7 channels"),
    ],
)
def test_other_files_are_refused_in_one_line(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], expected: str
) -> None:
    path = tmp_path / "p.safetensors"
    safetensors.numpy.save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, path)
    with pytest.raises(PrepareError, match=expected):
        scoring.of(settings(clip="scenes", min_clip=0, aesthetic=str(path), min_aesthetic=0))


def test_a_run_that_cannot_score_makes_nothing(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in", {"a.png": encoded(photo(1), "PNG"), "a.txt": "a"}), tmp_path / "out"
    for changes, error, expected in (
        ({"clip": str(tmp_path / "none"), "min_clip": 0.1}, EncoderError, "none"),
        ({"aesthetic": "p.pth", "min_aesthetic": 1}, PrepareError, "expected --clip=FOLDER as well"),
        ({"clip": "scenes", "min_clip": 0, "aesthetic": "p.pth", "min_aesthetic": 1}, EncoderError, "no such file"),
    ):
        with pytest.raises(error, match=expected):
            prepare.prepare(str(source), str(out), settings(**changes), Running())
        assert not out.exists()
    with pytest.raises(PrepareError, match="clip is 'scenes'; expected none without min_clip"):
        settings(clip="scenes")
