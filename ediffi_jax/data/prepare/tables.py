"""Files between the steps: Parquet tables that are there whole or not at all, on a disk or in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ediffi_jax.data.folders import folder_at, inside
from ediffi_jax.data.prepare.reasons import PrepareError

# A row for each record of a unit, taken or not. `picture` is large and read by the last step only.
RECORDS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),  # "" if it is taken
        ("detail", pa.string()),
        ("mended", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("sha256", pa.binary()),  # of the encoded picture as it was found
        ("phash", pa.uint64()),
        ("colours", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("picture_bytes", pa.int32()),
        ("picture", pa.binary()),
    ]
)
# What the comparison of all records adds, row by row.
VERDICTS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("mended", pa.string()),
        ("digest", pa.binary()),  # of the picture as it was found and the captions
        ("lot", pa.float64()),  # from the picture's bytes, uniform in [0, 1): low ones are held out
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("words", pa.int32()),
        ("picture_bytes", pa.int32()),
    ]
)


def name(key: str) -> str:
    """Of a unit's file."""
    return f"{key}.parquet"


def finished(folder: str | os.PathLike[str]) -> set[str]:
    """Keys of the files that are there. Raises PrepareError if the folder cannot be listed."""
    path = folder_at(folder).path
    try:
        return {file.name.removesuffix(".parquet") for file in path.glob("*.parquet")}
    except OSError as error:
        raise PrepareError(f"{os.fspath(folder)!r} cannot be listed: {error.strerror or error}") from error


def write(folder: str | os.PathLike[str], key: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Writes a unit's file from its rows, part by part. Raises PrepareError if it cannot."""

    def fill(path: Path) -> None:
        compression = {column: "zstd" if column != "picture" else "none" for column in schema.names}
        with pq.ParquetWriter(path, schema, compression=compression) as writer:
            for part in parts:
                writer.write_table(part)

    try:
        folder_at(folder).write(name(key), fill)
    except OSError as error:
        path = os.fspath(inside(folder, name(key)))
        raise PrepareError(f"{path!r} cannot be written: {error.strerror or error}") from error


def read(folder: str | os.PathLike[str], key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of a unit's file. Raises PrepareError if it is damaged."""
    path = inside(folder, name(key))
    try:
        with path.open("rb") as file:
            return pq.read_table(file, columns=list(columns) if columns else None)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error


def parts(folder: str | os.PathLike[str], key: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a unit's file as `read` gives them, part by part."""
    path = inside(folder, name(key))
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error


def _damaged(path: os.PathLike[str], error: Exception) -> PrepareError:
    return PrepareError(f"{os.fspath(path)!r} is damaged ({error}); remove it and run the same command again")


def count(folder: str | os.PathLike[str], key: str) -> int:
    """Rows of a unit's file."""
    with inside(folder, name(key)).open("rb") as file:
        return pq.read_metadata(file).num_rows
