"""Which rows of a table are trained on and which are held out, where splits are written as their
library writes them: `train`, `train[:10%]`, `train+validation`, `all`.
"""

import itertools
from collections.abc import Mapping, Sequence

from jopd.data.files import Rows
from jopd.data.tables import Range, Table, first_line, plain
from jopd.nearest import did_you_mean

HELD_OUT_SPLITS = ("held_out", "validation", "test")


def chosen(
    table: Table, train_split: str, held_out_split: str | None, *, training: bool
) -> tuple[str, str | None]:
    """What to train on, and what is held out if anything is; unset, the first split of such a name
    that shares no row with the other.

    Args:
      training: whether the first is read; a table to evaluate on may lack it.

    Raises:
      ValueError: a split that is read and does not exist; a row in both.
    """
    there = set(names(table, train_split)) <= set(table.splits)
    train = checked(table, train_split, "train_split") if training or there else []
    if held_out_split is None:
        for name in HELD_OUT_SPLITS:
            if name in table.splits and not shared_rows(train, ranges(table, name)):
                return train_split, name
        checked(table, train_split, "train_split")
    elif shared := shared_rows(train, checked(table, held_out_split, "held_out_split")):
        raise ValueError(
            f"held_out_split={held_out_split!r} shares {'rows' if shared > 1 else 'a row'} with "
            f"train_split={train_split!r}: name parts without a common row, such as train[10%:] "
            "and train[:10%], or leave held_out_split unset and a part is cut"
        )
    return train_split, held_out_split


def names(table: Table, spec: str) -> list[str]:
    """The splits that are named."""
    if spec in table.splits:
        return [spec]
    if spec == "all":
        return list(table.splits)
    return [part.strip().partition("[")[0] for part in spec.split("+")]


def checked(table: Table, spec: str, setting: str) -> list[Range]:
    """The ranges of what a setting says; raises ValueError where it says nothing that is there."""
    for name in names(table, spec):
        if name not in table.splits:
            raise ValueError(
                f"{setting}={spec!r} is no split of {table.source}"
                f"{did_you_mean(name, table.splits)}: it has {', '.join(table.splits)}"
            )
    try:
        return ranges(table, spec)
    except ValueError as error:
        raise ValueError(
            f"{setting}={spec!r} is no part of {table.source} ({first_line(error)}): write it as "
            "in train[:10%], train[100:200] or train+validation"
        ) from None


def ranges(table: Table, spec: str) -> list[Range]:
    return table.ranges("+".join(table.splits) if spec == "all" else spec)


def shared_rows(some: Sequence[Range], others: Sequence[Range]) -> int:
    return sum(
        max(0, min(a.stop, b.stop) - max(a.start, b.start))
        for a, b in itertools.product(some, others)
        if a.split == b.split
    )


def rows(table: Table, spec: str) -> Rows:
    """Each row of a part with its place in the data set, such as `gsm8k/train:3`."""
    for part in ranges(table, spec):
        for number, row in enumerate(table.rows(part), part.start):
            # A row of lists is still a row.
            parts = row.items() if isinstance(row, Mapping) else ()
            yield (
                f"{table.name}/{part.split}:{number}",
                {str(key): plain(value) for key, value in parts},
            )
