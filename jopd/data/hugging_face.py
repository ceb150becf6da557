"""Data sets of the Hugging Face hub, and folders that hold one: as `Dataset.save_to_disk` wrote it,
or files that `datasets.load_dataset` reads (Parquet, JSON lines, CSV).
"""

import sys
import warnings
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jopd.data.answers import require
from jopd.data.files import is_file_name
from jopd.data.tables import Range, Table, first_line
from jopd.nearest import did_you_mean

# What names in a message are cut to; some data sets have hundreds of configurations.
LISTED = 12


def table(name: str, *, streaming: bool = False) -> Table:
    """`NAME` or `NAME:CONFIG`; streamed, rows are fetched as they are read.

    Raises:
      ValueError: `datasets` is not installed, or the data set can't be loaded.
    """
    require("datasets", "datasets", f"hf:{name}", "'jopd[hf]'")
    import datasets

    path, _, config = name.partition(":")
    place = local(path)
    on_disk = is_saved(place)
    if on_disk and config:
        raise ValueError(
            f"source='hf:{name}': what save_to_disk wrote has no configurations: write hf:{path}"
        )
    try:
        if on_disk:
            loaded, streaming = saved(place), False
        else:
            loaded = datasets.load_dataset(location(path), config or None, streaming=streaming)
    except Exception as error:
        raise ValueError(f"source='hf:{name}': {cause(error, path, config)}") from error
    tables: dict[str, Any] = {str(split): without_media(loaded[split], name) for split in loaded}

    def rows(part: Range) -> Iterator[Any]:
        whole = tables[part.split]
        chosen = whole if streaming else whole.select(range(part.start, part.stop))
        try:
            yield from islice(chosen, max(0, part.stop - part.start))
        except Exception as error:
            raise ValueError(
                f"source='hf:{name}': split {part.split!r} can't be read: "
                f"{cause(error, path, config)}"
            ) from error

    def ranges(spec: str) -> list[Range]:
        if streaming:
            return [Range(split.strip(), 0, sys.maxsize) for split in spec.split("+")]
        lengths = {split: len(rows) for split, rows in tables.items()}
        if spec in lengths:
            return [Range(spec, 0, lengths[spec])]
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
        return [Range(part.splitname, part.from_, part.to) for part in parts]

    return Table(f"hf:{name}", path, list(tables), ranges, rows)


def local(path: str) -> Path:
    """The place on the disk that a name may stand for.

    Raises:
      ValueError: it is written as a path and no folder is there.
    """
    place = Path(path).expanduser()
    if place.is_file():
        way = f"write source={path}" if is_file_name(path) else "name its folder"
        raise ValueError(f"source='hf:{path}' is a file, not a data set: {way}")
    if path.startswith((".", "~", "/")) and not place.is_dir():
        folders = [it.name for it in place.parent.glob("*") if it.is_dir()]
        raise ValueError(
            f"source='hf:{path}' is no folder{did_you_mean(place.name, folders)}: check the path"
        )
    return place


def location(path: str) -> str:
    """What `datasets` is to look for: it takes no `~`."""
    place = Path(path).expanduser()
    return str(place) if place.is_dir() else path


def is_saved(place: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((place / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved(place: Path) -> Any:
    import datasets

    loaded = datasets.load_from_disk(place)
    return loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def without_media(rows: Any, name: str) -> Any:
    """Without the columns of pictures and sounds: no text, and to decode them takes libraries."""
    columns = [column for column, kind in (rows.features or {}).items() if media(kind)]
    if columns:
        warnings.warn(f"hf:{name}: not read, as no text: {', '.join(columns)}", stacklevel=2)
        rows = rows.remove_columns(columns)
    return rows


def media(kind: Any) -> bool:
    if isinstance(kind, dict):
        return any(map(media, kind.values()))
    if isinstance(kind, list):
        return any(map(media, kind))
    if hasattr(kind, "feature"):
        return media(kind.feature)
    return hasattr(kind, "decode") and type(kind).__name__ != "Json"


def cause(error: Exception, path: str, config: str) -> str:
    """Why `datasets` gave nothing, and the way out."""
    from datasets import config as options
    from datasets import exceptions

    if isinstance(error, exceptions.DatasetNotFoundError) and "gated" in str(error):
        return (
            f"it is gated: accept its terms on https://huggingface.co/datasets/{path} and log in "
            "with `hf auth login`"
        )
    if isinstance(error, exceptions.DatasetNotFoundError):
        return (
            "there is no such data set on the hub and no such folder: check the spelling of "
            "OWNER/NAME (for a private one, log in with `hf auth login`)"
        )
    if options.HF_HUB_OFFLINE and isinstance(error, ConnectionError):
        return (
            "it is no folder, not in the cache, and HF_HUB_OFFLINE is set: unset it, or download "
            "the data set first"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return (
            f"it is no folder, not in the cache, and the hub was not reached ({first_line(error)}):"
            " check the network, or download it elsewhere and give its folder"
        )
    if isinstance(error, FileNotFoundError):
        return (
            f"no data is there ({first_line(error)}): name a data set of the hub, OWNER/NAME, or a "
            "folder with Parquet, JSON lines or CSV"
        )
    if isinstance(error, ValueError) and (unfit := unfit_config(path, config)):
        return unfit
    if "scripts are no longer supported" in str(error):
        return (
            f"it is a script ({first_line(error)}): name a data set of plain files, or `pip install"
            " 'datasets<4'`"
        )
    # An error while files are read says what happened in the one that it comes from.
    why = first_line(error.__cause__ or error)
    return f"it can't be loaded ({why}): datasets.load_dataset({path!r}) in Python says more"


def unfit_config(path: str, config: str) -> str | None:
    """What is wrong with a configuration, if that is."""
    import datasets

    try:
        known = datasets.get_dataset_config_names(location(path))
    except Exception:
        return None
    if config in known or (not config and len(known) == 1):
        return None
    wrong = f"it has no configuration {config!r}" if config else "it needs a configuration"
    return f"{wrong}{did_you_mean(config, known)}: write hf:{path}:CONFIG, of {listing(known)}"


def listing(words: Collection[str]) -> str:
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(list(words)[:LISTED]) + more
