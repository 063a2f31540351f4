"""Prepares the embeddings of a data set's splits, what is missing of them: `launch.encode`.

A shard is a pure function of its store's description, so that whatever was interrupted, or divided over processes
(process i of P makes every P-th shard), the files are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ediffi_jax.compilation import compute_dtype
from ediffi_jax.data.config import DataConfig
from ediffi_jax.data.embedding_rows import DTYPES, SEQUENCES, RowFormat
from ediffi_jax.data.embeddings import Description, Store, captions_of, data_fingerprint
from ediffi_jax.data.folders import inside, is_remote
from ediffi_jax.encoders import Encoders
from ediffi_jax.errors import nearest
from ediffi_jax.training.embedder import Embedder, check_batch_size
from ediffi_jax.training.encode_forecast import Forecast, check_room
from ediffi_jax.training.encode_shards import Part, run
from ediffi_jax.training.errors import ConfigError
from ediffi_jax.training.frozen import load_encoders
from ediffi_jax.training.mesh import make_mesh
from ediffi_jax.training.unconditional import Unconditional

CAPTIONS = 4  # phrasings of a scene, where the config does not say how many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for beside the config.

    Attributes:
        out: folder, or gs://BUCKET/PREFIX, that gets one folder for each split.
        splits: names as training asks for them.
        limit: records of each split, 0 for all.
        dtype: "bfloat16" or "float32", of what is stored.
        int8: tokens as int8.
        batch_size: of the encoders, over all local devices.
        mesh: sizes of `data` and `fsdp` over this process's devices.
        shard_records: records in a file.
        process_index, process_count: which shards are ours.
    """

    out: str
    splits: Sequence[str] = ("train", "test")
    limit: int = 0
    dtype: str = "bfloat16"
    int8: bool = False
    batch_size: int = 64
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": 1, "fsdp": -1})
    shard_records: int = 1024
    process_index: int = 0
    process_count: int = 1


def tell(line: str) -> None:
    """Prints at once, also into a file."""
    print(line, flush=True)


def encode(
    config: ConfigDict, options: Options, forecast_only: bool = False, say: Callable[[str], None] = tell
) -> None:
    """Prepares what is missing of a data set's embeddings.

    Args:
        config: its `encoders` and `data` are what is encoded.
        options: how.
        forecast_only: stop after the forecast, nothing written.
        say: gets the lines of the report; default prints them.

    Raises:
        UserError: encoders, data, sizes or a folder that cannot be used; too little room on the disk.
    """
    index, count = share = options.process_index, options.process_count
    if not 0 <= index < count:
        raise ConfigError(f"--process_index={index} is not below --process_count={count}")
    frozen = load_encoders(config.encoders, weights=False)
    if isinstance(frozen, Unconditional):
        raise ConfigError("config.encoders is empty; expected a bundled name or a folder of encoders")
    parts = [make_part(config, options, frozen, split) for split in options.splits]
    waiting = {part.store.about.split: part.store.missing(*share) for part in parts}
    if any(waiting.values()):
        mesh = make_mesh(options.mesh, 1, jax.local_devices())
        check_batch_size(mesh, options.batch_size)
        for part in () if forecast_only else parts:
            part.store.make_folder()
        dtype = parts[0].store.about.compute_dtype
        loaded = load_encoders(config.encoders, dtype=dtype, mesh=mesh)
        embedder = Embedder(loaded, mesh, parts[0].store.about.rows, options.batch_size)
        forecasts = [Forecast.measure(p, embedder, waiting[p.store.about.split]) for p in parts]
        for line in (line for forecast in forecasts for line in forecast.lines()):
            say(line)
        if not is_remote(options.out):
            check_room(Path(options.out), forecasts, options.int8)
        if forecast_only:
            return
        for part in parts:
            part.store.describe()
            part.store.sweep(*share)
            run(part, embedder, waiting[part.store.about.split], say)
    for part in parts:
        say(summary(part.store))
    if not any(part.store.missing() for part in parts):
        captions = max(part.store.about.captions for part in parts)
        drawn = f" --config.data.captions={captions}" if captions > 1 else ""
        say(f"train with --config.data.embeddings={options.out}{drawn}")


def make_part(config: ConfigDict, options: Options, frozen: Encoders, split: str) -> Part:
    """One split with its store, compared with what is there already."""
    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype={options.dtype!r} is unknown{nearest(options.dtype, DTYPES)}")
    data = DataConfig.parse({**config.data, "embeddings": ""})
    if data.name == "synthetic":
        raise ConfigError("--data=synthetic has no captions of its own; expected scenes or a data set's folder")
    if data.clip_resolution and not frozen.image_size:
        raise ConfigError("the encoders have no image tower; set --config.data.clip_resolution=0")
    source = data.open(split, prepare=options.process_count == 1)
    training = split == "train"
    about = Description(
        encoders=frozen.fingerprint,
        compute_dtype=compute_dtype(config.compute_dtype),
        data=data_fingerprint(source),
        split=source.split,
        records=min(options.limit or len(source), len(source)),
        captions=captions_of(source, data.captions or CAPTIONS, training),
        source_resolution=data.source_resolution if data.clip_resolution else 0,
        clip_resolution=data.clip_resolution,
        shard_records=options.shard_records,
        rows=RowFormat(spec=frozen.spec, dtype=options.dtype, int8=options.int8, pictures=data.clip_resolution > 0),
    )
    store = Store.at(inside(options.out, source.split), about)
    return Part(source=source, store=store, training=training, sizes=data.views, encoders=frozen)


def mesh_sizes(words: Sequence[str]) -> dict[str, int]:
    """``["data=2", "fsdp=-1"]`` as a mapping; an axis not named is 1. Raises ConfigError for anything else."""
    sizes = {"data": 1, "fsdp": 1}
    for word in words:
        name, _, value = word.partition("=")
        if name not in sizes:
            raise ConfigError(f"--mesh has no axis {name!r}{nearest(name, sizes)}")
        if not value.lstrip("-").isdigit() or int(value) < 1 and value != "-1":
            raise ConfigError(f"--mesh={word}; expected {name}=NUMBER, or {name}=-1 for what is left")
        sizes[name] = int(value)
    return sizes


def summary(store: Store) -> str:
    """What is there of a split, and the measured error of storing it."""
    markers = [marker for shard in range(store.about.shards) if (marker := store.marker(shard))]
    size = sum(marker["bytes"] for marker in markers)
    line = f"{store.about.split}: {len(markers)} of {store.about.shards} shards, {size / 1e6:.1f} MB"
    for name in SEQUENCES:
        held = sum(marker[name]["held"] for marker in markers)
        if held:
            error = (sum(marker[name]["lost"] for marker in markers) / held) ** 0.5
            worst = max(marker[name]["worst"] for marker in markers)
            line += f"; {name} stored within {error:.2%} (worst token {worst:.2%})"
    return line
