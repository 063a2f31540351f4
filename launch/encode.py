"""Prepares the embeddings of a data set ahead of training: T5 and CLIP run once, not in every step.

    python -m launch.encode --config=configs/scenes.py:stage=base --out=runs/embeddings
    python -m launch.encode --data=/data/pictures --encoders=/models/ediffi --out=/data/embeddings --mesh=fsdp=8 --int8
    python -m launch.train --config=configs/scenes.py:stage=base --workdir=runs/base \\
        --config.data.embeddings=runs/embeddings --config.data.captions=4

First says how many bytes and how long, and ends there if the disk has too little room (or with --forecast). Killed
in any way, the same command goes on; run again when all is there, it does nothing. Several processes, on one machine
or many, share the work of one --out: --process_index=0 --process_count=4 and so on. docs/embeddings.md has the numbers.
"""

from __future__ import annotations

import jax
from absl import flags

from ediffi_jax.compilation import enable_cache
from ediffi_jax.training import config as training_config
from ediffi_jax.training import config_files, encode
from ediffi_jax.training.errors import ConfigError

from . import _main

CONFIG = flags.DEFINE_string("config", None, "Recipe FILE.py:arguments whose data and encoders are meant.")
DATA = flags.DEFINE_string("data", None, "Instead of the recipe's: scenes, or the folder of a TFDS data set.")
ENCODERS = flags.DEFINE_string("encoders", None, "Instead of the recipe's: a bundled name, or a folder.")
OUT = flags.DEFINE_string("out", None, "Folder, or gs://BUCKET/PREFIX, that gets the embeddings.")
SPLITS = flags.DEFINE_list("splits", ["train", "test"], "Splits to encode; training needs these two.")
CAPTIONS = flags.DEFINE_integer("captions", None, "Phrasings of each scene; default the recipe's, or 4.", lower_bound=1)
LIMIT = flags.DEFINE_integer("limit", 0, "Only so many records of each split; 0 for all.", lower_bound=0)
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of what is stored: bfloat16 or float32.")
INT8 = flags.DEFINE_bool("int8", False, "Tokens as int8 with a scale each: half the bytes of bfloat16.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Captions encoded at once, on all devices.", lower_bound=1)
MESH = flags.DEFINE_list("mesh", ["data=1", "fsdp=-1"], "How devices share encoders (fsdp) and batches; -1: the rest.")
SHARD = flags.DEFINE_integer("shard_records", 1024, "Records in a file.", lower_bound=1)
INDEX = flags.DEFINE_integer("process_index", None, "Which of the processes this is; default JAX's.", lower_bound=0)
COUNT = flags.DEFINE_integer("process_count", None, "Processes that share the work; default JAX's.", lower_bound=1)
FORECAST = flags.DEFINE_bool("forecast", False, "Only say what it would take.")


def main(overrides: list[str]) -> None:
    """Reads the config, applies what the command line changes, and encodes."""
    if not OUT.value:
        raise ConfigError("--out is missing; for example --out=runs/embeddings")
    config = config_files.load(CONFIG.value) if CONFIG.value else training_config.default()
    config_files.override(config, overrides)
    config.data.name = DATA.value or config.data.name
    config.encoders = ENCODERS.value or config.encoders
    config.data.captions = CAPTIONS.value or config.data.captions
    options = encode.Options(
        out=OUT.value,
        splits=tuple(SPLITS.value),
        limit=LIMIT.value,
        dtype=DTYPE.value,
        int8=INT8.value,
        batch_size=BATCH_SIZE.value,
        mesh=encode.mesh_sizes(MESH.value),
        shard_records=SHARD.value,
        process_index=jax.process_index() if INDEX.value is None else INDEX.value,
        process_count=COUNT.value or jax.process_count(),
    )
    enable_cache()
    encode.encode(config, options, forecast_only=FORECAST.value)


if __name__ == "__main__":
    _main.run(main, remote=("data", "encoders", "out"))
