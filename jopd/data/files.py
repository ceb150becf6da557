"""Rows of a file: JSON lines or a JSON array, CSV, Parquet; by the ending of its name, and JSON
lines where that says nothing.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Rows = Iterator[tuple[str, Mapping[str, Any]]]


def rows(name: str) -> Rows:
    """Each row with the place that it stands at, such as `problems.jsonl:3`.

    Raises:
      ValueError: a file that is not there or can't be read, with the line where one is at fault.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise ValueError(
            f"{name} is a folder, not a file: name the file in it, or write hf:{name} for a data "
            "set"
        )
    try:
        yield from READERS.get(path.suffix.lower(), json_rows)(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} can't be read: {error}") from None


def is_file_name(source: str) -> bool:
    """Whether a source is written as a bare path."""
    return Path(source).suffix.lower() in READERS


def json_rows(path: Path) -> Rows:
    text = path.read_text("utf-8-sig")
    if text.lstrip().startswith("["):
        yield from array_rows(path, text)
        return
    for number, line in enumerate(text.rstrip().split("\n"), 1):
        where = f"{path.name}:{number}"
        if not line.strip():
            yield where, {}
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: not JSON ({error.msg} at column {error.colno}): each line must be one "
                "whole object"
            ) from None
        yield where, an_object(row, where)


def array_rows(path: Path, text: str) -> Rows:
    try:
        array = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path.name}:{error.lineno}: not JSON ({error.msg} at column {error.colno})"
        ) from None
    for index, row in enumerate(array):
        where = f"{path.name}[{index}]"
        yield where, an_object(row, where)


def an_object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: holds {type(row).__name__}, not an object: write {{'prompt': ...}}"
        )
    return row


def csv_rows(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(2**31 - 1)  # a long text is a cell too
        reader = csv.DictReader(file)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"{path.name}:{reader.line_num}: not CSV ({error})") from None
            where = f"{path.name}:{reader.line_num}"
            if row.pop(None, None):  # pyright: ignore[reportArgumentType]
                raise ValueError(
                    f"{where}: has more cells than the {len(reader.fieldnames or ())} columns of "
                    "the first line: put quotes around cells with commas"
                )
            yield where, row


def parquet_rows(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path.name} is no Parquet file ({str(error).splitlines()[0]})") from None
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield f"{path.name}:{number}", row
            number += 1


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
