"""Data sets with named splits, and those of TensorFlow Datasets, read without TensorFlow."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


class Range(NamedTuple):
    """Rows of a split, from `start` up to `stop`."""

    split: str
    start: int
    stop: int


class Table(NamedTuple):
    """A data set with named splits.

    Attributes:
      source: the setting that it comes from.
      name: what its rows' places begin with.
      splits: their names.
      ranges: what a split in the words of its library stands for, such as `train[:10%]`; raises
        ValueError where it can't be read.
      rows: those of a range.
    """

    source: str
    name: str
    splits: list[str]
    ranges: Callable[[str], list[Range]]
    rows: Callable[[Range], Iterator[Any]]


def tfds(name: str, data_dir: str | None) -> Table:
    """Raises ValueError where the data set can't be prepared or read without TensorFlow."""
    import tensorflow_datasets

    import jopd.data.tally_dataset  # noqa: F401  (registers "tally")

    try:
        # The format that can be read without TensorFlow.
        builder: Any = tensorflow_datasets.builder(
            name, data_dir=data_dir, file_format="array_record"
        )
        builder.download_and_prepare()
    except Exception as error:
        raise ValueError(
            f"tfds:{name} can't be prepared ({first_line(error)}): check the name and data_dir"
        ) from error
    infos = builder.info.splits

    def ranges(spec: str) -> list[Range]:
        parts = tensorflow_datasets.core.ReadInstruction.from_spec(spec).to_absolute(infos)
        length = lambda part: infos[part.splitname].num_examples
        return [
            Range(part.splitname, part.from_ or 0, length(part) if part.to is None else part.to)
            for part in parts
        ]

    def rows(part: Range) -> Iterator[Any]:
        try:
            source = builder.as_data_source(part.split)
        except NotImplementedError:
            raise ValueError(
                f"tfds:{name} was prepared in a format that needs TensorFlow: prepare it as "
                "array_record"
            ) from None
        for number in range(part.start, part.stop):
            yield source[number]

    return Table(f"tfds:{name}", name, list(infos), ranges, rows)


def plain(value: Any) -> Any:
    """Text as str, arrays and scalars as Python has them, sequences (TFDS: a dict of arrays) as
    lists.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:  # an image, say: refused where a column of it is read
            return value
    if isinstance(value, Mapping):
        row = {key: plain(part) for key, part in value.items()}
        lengths = [len(part) for part in value.values() if is_array(part)]
        if row and len(lengths) == len(row) and len({*lengths}) == 1:
            return [dict(zip(row, parts, strict=True)) for parts in zip(*row.values(), strict=True)]
        return row
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return [plain(part) for part in value] if isinstance(value, list) else value


def is_array(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim > 0)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
