"""Rows of TensorFlow Datasets, read without TensorFlow, and of Hugging Face's data sets."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jopd.data.answers import require
from jopd.data.files import Rows


class Table(NamedTuple):
    """A data set with named splits.

    Attributes:
      splits: their names.
      rows: of a split, each with its place, such as `gsm8k/train:3`.
    """

    splits: list[str]
    rows: Callable[[str], Rows]


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

    def rows(split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        try:
            source = builder.as_data_source(split)
        except NotImplementedError:
            raise ValueError(
                f"tfds:{name} was prepared in a format that needs TensorFlow: prepare it as "
                "array_record"
            ) from None
        for i in range(len(source)):
            yield f"{name}/{split}:{i}", plain(source[i])

    return Table(list(builder.info.splits), rows)


def hugging_face(name: str, *, streaming: bool = False) -> Table:
    """`NAME` or `NAME:CONFIG`, a name of the hub, a folder of data files, or what `save_to_disk`
    wrote.

    Args:
      streaming: rows are read as they are asked for, and not downloaded before.

    Raises:
      ValueError: it can't be loaded.
    """
    require("datasets", "datasets", f"hf:{name}")
    import datasets  # pyright: ignore[reportMissingImports]

    path, _, subset = name.partition(":")
    folder = Path(path).expanduser()
    saved = any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json"))

    def explained(load: Callable[[], Any], what: str) -> Any:
        try:
            return load()
        except Exception as error:
            raise ValueError(
                f"hf:{name}{what} can't be loaded ({first_line(error)}): check the name and the "
                "network"
            ) from error

    if saved:
        tables = explained(lambda: datasets.load_from_disk(str(folder)), "")
        tables = tables if isinstance(tables, Mapping) else {"train": tables}
        splits = [*map(str, tables)]
        of_split = lambda split: _selected(datasets, tables, split)
    else:
        splits = explained(lambda: datasets.get_dataset_split_names(path, subset or None), "")
        of_split = lambda split: datasets.load_dataset(
            path, subset or None, split=split, streaming=streaming
        )

    def rows(split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for i, row in enumerate(explained(lambda: of_split(split), f", split {split},")):
            yield f"{path}/{split}:{i}", plain(row)

    return Table(splits, rows)


def _selected(datasets: Any, tables: Mapping[str, Any], split: str) -> Iterable[Any]:
    """The rows of `train`, `train[:10%]` or `train+test`, of tables that are on the disk."""
    sizes = {name: len(table) for name, table in tables.items()}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    bounds = lambda it: (it.from_ or 0, sizes[it.splitname] if it.to is None else it.to)
    selected = [tables[it.splitname].select(range(*bounds(it))) for it in parts]
    return itertools.chain.from_iterable(selected)


def names_in(split: str) -> list[str]:
    """The splits that an expression is made of: `train` and `test` of `train[:10%]+test`.

    >>> names_in("train[:10%] + test")
    ['train', 'test']
    """
    return [part.partition("[")[0].strip() for part in split.split("+")]


def plain(value: Any) -> Any:
    """Text as str, arrays and scalars as Python has them, sequences (TFDS: a dict of arrays) as
    lists.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        row = {key: plain(part) for key, part in value.items()}
        arrays = [part for part in value.values() if isinstance(part, np.ndarray | list)]
        if row and len(arrays) == len(row):
            return [dict(zip(row, parts, strict=True)) for parts in zip(*row.values(), strict=True)]
        return row
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return [plain(part) for part in value] if isinstance(value, list) else value


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
