"""Prepares a data set for training from pictures with captions.

  python -m launch.prepare --input=photos/ --out=data/photos64 --resolution=64
  python -m launch.prepare --input='laion/*.tar' --out=data/laion --resolution=256 --min_clip=0.3 --exclude=coco.hashes
  python -m launch.prepare --input=tfds:coco_captions --out=data/coco64 --resolution=64 --captions=all
  python -m launch.prepare --input=coco/val2014 --make_hashes --out=coco.hashes

--input: a folder of pictures with .txt or .json beside them; a list (.csv .tsv .jsonl .parquet) of paths and captions;
img2dataset's tars; tfds:NAME; the folder of a TFDS data set. Both ends may be gs://. The same command goes on where it
was killed, and looks only at what is new. docs/data.md has every step.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from ediffi_jax.data.prepare.settings import CAPTIONS, FORMATS, Settings
from ediffi_jax.evaluation import preparation_report

from . import _main

INPUT = flags.DEFINE_string("input", None, "What to read.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the data set, or file of --make_hashes.", required=True)
HASHES = flags.DEFINE_bool("make_hashes", False, "Instead: a list of the pictures' hashes, for --exclude.")
SPLIT = flags.DEFINE_string("split", "train", "Of a TFDS data set.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data; default its own.")
KEEP_WORK = flags.DEFINE_bool("keep_work", True, "Keep DIR/work, so that runs with more input look at that only.")
RUNNER = flags.DEFINE_string("runner", "direct", "direct: this machine. Or Beam's: FlinkRunner, DataflowRunner, ...")
OPTIONS = flags.DEFINE_string("beam_options", "", "Passed on to Beam: '--flink_master=HOST:8081 --parallelism=64'.")
WORKERS = flags.DEFINE_integer("workers", 0, "Threads of the direct runner; 0: one per core.", lower_bound=0)
STEPS = {  # names are those of Settings, which checks them
    "resolution": (flags.DEFINE_integer, 64, "Side of the stored squares, pixels."),
    "format": (lambda *a: flags.DEFINE_enum(a[0], a[1], FORMATS, a[2]), "png", "Of the stored squares."),
    "quality": (flags.DEFINE_integer, 95, "Of JPEG; chroma is not subsampled."),
    "captions": (lambda *a: flags.DEFINE_enum(a[0], a[1], CAPTIONS, a[2]), "first", "Of several, which to keep."),
    "caption_key": (flags.DEFINE_string, "", "Column, feature or JSON key of captions; default the usual names."),
    **{f"{of}_key": (flags.DEFINE_string, "", f"Column or feature of {of}s.") for of in ("image", "id")},
    "exif_rotation": (flags.DEFINE_bool, True, "Turn pictures upright."),
    "colour_profiles": (flags.DEFINE_bool, True, "Convert embedded colour profiles to sRGB."),
    "clean_captions": (flags.DEFINE_bool, True, "Take HTML, web addresses and invisible characters out."),
    "max_pixels": (flags.DEFINE_integer, 100_000_000, "Refuse pictures with more, without decoding them."),
    "min_side": (flags.DEFINE_integer, None, "Shorter side to have; default the resolution; 0 for any (enlarges)."),
    "max_aspect": (flags.DEFINE_float, 0, "Longer over shorter side, at most; 0 for any."),
    "min_words": (flags.DEFINE_integer, 1, "Words that a caption has at least."),
    "min_clip": (flags.DEFINE_float, None, "CLIP score to have, of the input or of --clip."),
    "min_aesthetic": (flags.DEFINE_float, None, "Aesthetic score to have, of the input or of --aesthetic."),
    "clip": (flags.DEFINE_string, "", "CLIP that scores what the input does not: a Hugging Face folder."),
    "aesthetic": (flags.DEFINE_string, "", "LAION's aesthetic predictor on that CLIP: a file of its weights."),
    "dedup_exact": (flags.DEFINE_bool, True, "Of pictures with the same bytes keep one."),
    "duplicate_distance": (flags.DEFINE_integer, 4, "Bits that near duplicates may differ in; -1: keep all."),
    "exclude": (flags.DEFINE_list, [], "Lists of pictures to leave out, from --make_hashes."),
    "exclude_distance": (flags.DEFINE_integer, 6, "Bits by which a listed picture may differ and still be left out."),
    "validation": (flags.DEFINE_float, 0.01, "Share held out, by a hash of the picture; 0: none."),
    "shard_mb": (flags.DEFINE_float, 256, "Size of the files, MB."),
    "max_bad_fraction": (flags.DEFINE_float, 0.1, "Make nothing if a larger share of the records is damaged."),
}
FLAGS = {name: define(name, default, text) for name, (define, default, text) in STEPS.items()}


def main(overrides: list[str]) -> None:
    """Reads the flags, prepares, says what there is."""
    _main.refuse_overrides(overrides)
    settings = Settings(**{name: flag.value for name, flag in FLAGS.items()})
    where = {"data_dir": DATA_DIR.value, "split": SPLIT.value}
    if HASHES.value:
        return print(preparation_report.make_hashes(INPUT.value, OUT.value, settings, **where))
    running = {"runner": RUNNER.value, "options": OPTIONS.value, "workers": WORKERS.value}
    try:
        made = preparation_report.prepare(INPUT.value, OUT.value, settings, running, keep_work=KEEP_WORK.value, **where)
    except KeyboardInterrupt:  # Beam's threads would abort the interpreter as it ends; every file is whole
        print("error: interrupted; the same command goes on", file=sys.stderr, flush=True)
        os._exit(130)
    print(preparation_report.told(made))


if __name__ == "__main__":
    _main.run(main, remote=("input", "out", "exclude", "clip", "aesthetic", "beam_options"))
