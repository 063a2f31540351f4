"""COCO and Visual Genome as prompts with real pictures, from the files their authors publish.

COCO 2014 val: `number` pictures drawn by seed from those with captions, one of each one's captions drawn too: the
30,000 captions of zero-shot FID-30K, whose reference are the 30,000 pictures they belong to.

Visual Genome has no captions, only short phrases about regions of a picture; eDiff-I does not say how its captions,
62 words in the mean, were made of them. Here: the phrases of a picture by the area of their regions, largest first
(of equals the lower region_id), each once whatever its case, whole, as sentences, until there are `VG_WORDS` words.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ediffi_jax import copies
from ediffi_jax.evaluation import real_pictures
from ediffi_jax.evaluation.errors import EvaluationError
from ediffi_jax.evaluation.protocols import Protocol, require

VG_WORDS = 60  # with the last phrase, which is not cut, about the 61.92 words that eDiff-I reports


def of_coco(annotations: str | os.PathLike, images: str | os.PathLike, number: int, seed: int = 0) -> Protocol:
    """Captions and pictures of COCO.

    Args:
        annotations: captions_val2014.json.
        images: folder val2014 with COCO_val2014_000000000042.jpg and so on.
        number: pictures, one caption each.
        seed: of the choice.

    Raises:
        EvaluationError: a file missing or of another format, or fewer pictures than asked for.
    """
    content = _read(annotations)
    try:
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        captions: dict[int, list[str]] = collections.defaultdict(list)
        for annotation in sorted(content["annotations"], key=lambda a: a["id"]):
            captions[int(annotation["image_id"])].append(" ".join(annotation["caption"].split()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvaluationError(f"{annotations}: not COCO captions; expected those of captions_val2014.json") from error
    pictures = sorted(key for key in names if any(captions.get(key, ())))
    require(len(pictures), number, str(annotations))
    rng = np.random.default_rng((seed, 0xC0C0))
    chosen = [pictures[row] for row in rng.permutation(len(pictures))[:number]]
    prompts = [_pick([text for text in captions[key] if text], rng) for key in chosen]
    root = copies.local(images, {names[key] for key in chosen}.__contains__)
    files = _all_there([(root / names[key],) for key in chosen])
    return Protocol(
        name="coco",
        prompts=tuple(prompts),
        picture=lambda i: real_pictures.read(files[i]),
        described={"seed": seed, "annotations": Path(annotations).name, "rule": "one caption of each drawn picture"},
    )


def of_visual_genome(annotations: str | os.PathLike, images: str | os.PathLike, number: int, seed: int = 0) -> Protocol:
    """Captions built from region descriptions, and pictures, of Visual Genome.

    Args:
        annotations: region_descriptions.json.
        images: folder with 2370463.jpg and so on, or with VG_100K/ and VG_100K_2/.
        number, seed: as for COCO.

    Raises:
        EvaluationError: a file missing or of another format, or fewer pictures than asked for.
    """
    content = _read(annotations)
    try:
        built = {int(entry.get("id", entry.get("image_id"))): vg_caption(entry["regions"]) for entry in content}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvaluationError(f"{annotations}: not Visual Genome's region_descriptions.json") from error
    keys = sorted(key for key, caption in built.items() if caption)
    require(len(keys), number, str(annotations))
    chosen = [keys[row] for row in np.random.default_rng((seed, 0x76)).permutation(len(keys))[:number]]
    places = [tuple(f"{folder}{key}.jpg" for folder in ("", "VG_100K/", "VG_100K_2/")) for key in chosen]
    root = copies.local(images, {name for names in places for name in names}.__contains__)
    files = _all_there([tuple(root / name for name in names) for names in places])
    rule = f"region phrases, largest first, each once, until there are {VG_WORDS} words"
    return Protocol(
        name="visual_genome",
        prompts=tuple(built[key] for key in chosen),
        picture=lambda i: real_pictures.read(files[i]),
        described={"seed": seed, "annotations": Path(annotations).name, "rule": rule},
    )


def vg_caption(regions: Sequence[Mapping[str, Any]], words: int = VG_WORDS) -> str:
    """One caption of a picture's regions by the rule above, such as "A cat on a table. Red cup."; "" of none."""
    order = sorted(regions, key=lambda r: (-int(r["width"]) * int(r["height"]), int(r["region_id"])))
    sentences: dict[str, str] = {}
    for region in order:
        phrase = " ".join(str(region["phrase"]).split()).rstrip(" .")
        if phrase and sum(len(text.split()) for text in sentences.values()) < words:
            sentences.setdefault(phrase.lower(), f"{phrase[0].upper()}{phrase[1:]}.")
    return " ".join(sentences.values())


def _pick(captions: Sequence[str], rng: np.random.Generator) -> str:
    return captions[rng.integers(len(captions))]


def _read(path: str | os.PathLike) -> Any:
    try:
        return json.loads(copies.local(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EvaluationError(f"no annotations in {path}; expected the published JSON file") from error
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read as JSON ({error})") from error


def _all_there(places: Sequence[Sequence[Path]]) -> list[Path]:
    """For each picture the first of its possible places where it is."""
    files = [next((path for path in paths if path.is_file()), None) for paths in places]
    missing = [paths[0] for paths, file in zip(places, files) if file is None]
    if missing:
        count = f"{len(missing)} of {len(files)} pictures are missing, the first is {missing[0]}"
        raise EvaluationError(f"{count}; expected the folder of the annotated pictures as --images")
    return files
