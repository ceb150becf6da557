"""Where problems come from: `load(config, split)` gives the examples of "train" or "held_out".

    source              what it is                                    its held-out part
    builtin             the built-in reasoning task (data.task)       disjoint by construction
    persona             questions under a persona (data.persona)      its own file
    jsonl:FILE, FILE    JSON lines, a JSON array, CSV or Parquet,     `held_out_split`, another
                        by the file's ending (data.files)             file, or cut
    tfds:NAME           TensorFlow Datasets, read without             `held_out_split`, or the first
                        TensorFlow: NAME, NAME/CONFIG                 of held_out, validation, test
                                                                      beside `train_split`, or cut
    hf:NAME             a data set of the Hugging Face hub, or a      the same
                        folder: NAME, NAME:CONFIG
    gym:NAME,NAME       generators of reasoning-gym in turns,         generated; a problem that is
                        scored by its own scorers (data.gym)          in it is left out of train
    FILE.py:NAME        a function of yours: NAME("train") and        its own
                        NAME("held_out") give rows

What a row may hold is said in `data.rows`. A part that is cut goes by a hash of (seed, messages):
it does not depend on the order of the rows, and a prompt that occurs twice stays on one side.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from jopd import plugins
from jopd.data import answers, files, gym, hugging_face, persona, splits, tables
from jopd.data.example import Example
from jopd.data.persona import Persona
from jopd.data.rows import Columns, examples
from jopd.data.task import Split, TallySettings, TallyTask

# Sources that are generated, not read, give so many training examples where `limit` does not say.
GENERATED = 4096
# A field that may name a function of a user's file: whoever records a run records that file too.
CODE = {"code": True}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
      source: builtin, persona, a file (.jsonl, .json, .csv, .parquet) or jsonl:FILE, tfds:NAME,
        hf:NAME, gym:NAME[,NAME], or a function of yours, FILE.py:NAME.
      seed: of generated problems, and of what is held out where a source has no held-out part.
      limit: at most so many training examples; unset, all that the source has (builtin and gym:
        4096).
      held_out: at most so many examples for evaluation. Where they are cut from what is trained
        on, a larger number or another seed takes others that a run has trained on.
      answer_check: how a column `answer` is checked (jopd.data.answers): exact, number, regex,
        math, or a function of yours, FILE.py:NAME; auto: number for a lone number, math for LaTeX,
        else exact.
      columns: which column holds what.
      train_split: the split to train on (tfds, hf), such as train, train[:10%] or train+extra.
      held_out_split: the split to evaluate on (tfds, hf), written so too, or a second file.
      streaming: reads only the first rows (hf), of a set too large to download: `limit` of them,
        and `held_out` more where a part is cut.
      data_dir: where TFDS keeps its data sets, if not in ~/tensorflow_datasets.
      min_steps: fewest steps of a built-in problem.
      max_steps: most steps of a built-in problem.
      persona: who the teacher of the source persona is.
    """

    source: str = dataclasses.field(default="builtin", metadata=CODE)
    seed: int = 0
    limit: int | None = None
    held_out: int = 128
    answer_check: str = dataclasses.field(default="auto", metadata=CODE)
    columns: Columns = Columns()
    train_split: str = "train"
    held_out_split: str | None = None
    streaming: bool = False
    data_dir: str | None = None
    min_steps: int = TallySettings.min_steps
    max_steps: int = TallySettings.max_steps
    persona: Persona = Persona()

    def __post_init__(self):
        kind, name = self.kind, self.name
        if kind not in LOADERS:
            raise ValueError(
                f"source={self.source!r} is not known: {_nearest(kind, LOADERS)}use one of "
                f"{', '.join(SOURCES)}"
            )
        takes_name = kind not in ("builtin", "persona")
        if takes_name != bool(name):
            form = next(form for form in SOURCES if form.startswith(kind))
            raise ValueError(f"source={self.source!r} must be written {form}")
        for field, kinds in _ONLY_FOR.items():
            if kind not in kinds and getattr(self, field) != _DEFAULTS[field]:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} has no effect on source={self.source!r}, "
                    f"only on {', '.join(kinds)}: leave it unset"
                )
        for field, least in (("seed", 0), ("held_out", 1), ("limit", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"{field}={value} must be at least {least}")
        checks = ("auto", *answers.OF_FILES)
        if self.answer_check not in checks and not plugins.is_named(self.answer_check):
            raise ValueError(
                f"answer_check={self.answer_check!r} is not known: "
                f"{_nearest(self.answer_check, checks)}use one of {', '.join(checks)}, or a "
                "function of yours as FILE.py:NAME"
            )
        if self.streaming:
            self._check_streaming()
        _ = self.task  # refuses bad steps

    def _check_streaming(self):
        if self.limit is None:
            raise ValueError(
                "streaming=True reads no more than is asked for, and a run counts and shuffles its "
                "examples: say with limit how many of the first rows to train on, or leave "
                "streaming unset"
            )
        for field in ("train_split", "held_out_split"):
            if "[" in (getattr(self, field) or ""):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} is a part of a split, which a stream has no "
                    "length to find: name whole splits (limit and held_out say how many rows), or "
                    "leave streaming unset"
                )

    @property
    def kind(self) -> str:
        if plugins.is_named(self.source):
            return "python"
        kind = self.source.partition(":")[0]
        if kind not in LOADERS and files.is_file_name(self.source):
            return "jsonl"
        return kind

    @property
    def name(self) -> str:
        if self.kind == "python":
            return self.source
        kind, _, name = self.source.partition(":")
        return name if kind == self.kind else self.source

    @property
    def task(self) -> TallySettings:
        return TallySettings(seed=self.seed, min_steps=self.min_steps, max_steps=self.max_steps)


# Settings that only some sources read: elsewhere they would be dropped in silence.
_ROWS = ("jsonl", "tfds", "hf", "python")
_ONLY_FOR = {
    "answer_check": _ROWS,
    "columns": _ROWS,
    "train_split": ("tfds", "hf"),
    "held_out_split": ("jsonl", "tfds", "hf"),
    "streaming": ("hf",),
    "data_dir": ("tfds",),
    "min_steps": ("builtin",),
    "max_steps": ("builtin",),
    "persona": ("persona",),
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DataConfig)}


def load(config: DataConfig, split: Split) -> Sequence[Example]:
    """The examples of one split, always the same ones in the same order.

    Raises:
      ValueError: a row that is no example, by file and line or split and index; a column, split,
        data set or generator that does not exist; nothing to read; a package that the source needs
        is missing.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is not known: use one of {', '.join(get_args(Split))}")
    return LOADERS[config.kind](config, split)


def _builtin(config: DataConfig, split: Split) -> Sequence[Example]:
    count = config.held_out if split == "held_out" else config.limit or GENERATED
    return TallyTask(config.task).examples(split, count)


def _persona(config: DataConfig, split: Split) -> Sequence[Example]:
    count = config.held_out if split == "held_out" else config.limit
    return persona.examples(config.persona, split)[:count]


def _gym(config: DataConfig, split: Split) -> Sequence[Example]:
    make = functools.partial(gym.problems, config.name.split(","), seed=config.seed)
    held_out = make(split="held_out", size=config.held_out)
    if split == "held_out":
        return held_out
    asked = {example.messages[0]["content"] for example in held_out}
    train = [
        example
        for example in make(split="train", size=config.limit or GENERATED)
        if example.messages[0]["content"] not in asked
    ]
    if not train:
        raise ValueError(
            f"{config.source} makes too few different problems to train on beside "
            f"held_out={config.held_out}: lower it"
        )
    return train


# Sources with rows.


def _file(config: DataConfig, split: Split) -> Sequence[Example]:
    return _part(files.rows, config.name, config.held_out_split, config, split)


def _table(config: DataConfig, split: Split) -> Sequence[Example]:
    if config.kind == "tfds":
        table = tables.tfds(config.name, config.data_dir)
    else:
        table = hugging_face.table(config.name, streaming=config.streaming)
    train, held_out = splits.chosen(
        table, config.train_split, config.held_out_split, training=split == "train"
    )
    return _part(lambda spec: splits.rows(table, spec), train, held_out, config, split)


def _python(config: DataConfig, split: Split) -> Sequence[Example]:
    """Rows of a user's function, each a dictionary in the forms of `data.rows`."""
    function = plugins.load(config.source)
    if not callable(function):
        raise ValueError(
            f"source={config.source} is {type(function).__name__}: name a function that gives the "
            "rows of 'train' or 'held_out'"
        )
    made = function(split)
    if not isinstance(made, Iterable) or isinstance(made, str | Mapping):
        raise ValueError(
            f"source={config.source} gave {type(made).__name__} for {split!r}: give a list of "
            "dictionaries, or anything that yields them"
        )
    name = config.source.rpartition("/")[2]
    rows = ((f"{name}/{split}:{i}", _dictionary(row, config, i)) for i, row in enumerate(made))
    at_most = config.held_out if split == "held_out" else config.limit
    read = examples(rows, config.columns, config.answer_check, f"{name}/{split}", at_most=at_most)
    if not read:
        raise ValueError(f"{config.source}: {split} holds no examples: give it at least one")
    return read


def _dictionary(row: Any, config: DataConfig, index: int) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"source={config.source}: row {index} is {type(row).__name__}, not a dictionary: "
            "write {'prompt': ...}"
        )
    return row


def _part(
    rows: Callable[[str], files.Rows],
    train: str,
    held_out: str | None,
    config: DataConfig,
    split: Split,
) -> list[Example]:
    """The examples of a file or of a split."""
    if held_out == train or (held_out and same_file(held_out, train)):
        raise ValueError(
            f"held_out_split={held_out!r} is what is trained on: name another, or leave it unset "
            "and a part is cut"
        )

    def read(part: str, at_most: int | None = None) -> list[Example]:
        return examples(rows(part), config.columns, config.answer_check, part, at_most=at_most)

    if held_out is None:
        # Of a stream, as many rows as both parts need.
        at_most = config.held_out + (config.limit or 0) if config.streaming else None
        part, part_examples = train, _cut(read(train, at_most), config, split)
    elif split == "held_out":
        part, part_examples = held_out, read(held_out, config.held_out)
    else:
        part, part_examples = train, read(train, config.limit)
    if not part_examples:
        raise ValueError(f"{config.source}: {part} holds no examples: give it at least one")
    return part_examples


def same_file(one: str, other: str) -> bool:
    """Whether two names are of one file; those of splits are of none."""
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.is_file() and second.is_file() and first.samefile(second)


def _cut(read: list[Example], config: DataConfig, split: Split) -> list[Example]:
    """The held-out or the other part of a source that has only one."""
    keys = [
        hashlib.blake2b(json.dumps([config.seed, e.messages]).encode(), digest_size=8).digest()
        for e in read
    ]
    aside = set(sorted(set(keys))[: config.held_out])
    if split == "held_out":
        return [e for e, key in zip(read, keys, strict=True) if key in aside][: config.held_out]
    rest = [e for e, key in zip(read, keys, strict=True) if key not in aside]
    if read and not rest:
        raise ValueError(
            f"held_out={config.held_out} leaves none of the {len(aside)} different prompts of "
            f"{config.source} to train on: lower held_out, or name a held_out_split"
        )
    return rest[: config.limit]


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


LOADERS: dict[str, Callable[[DataConfig, Split], Sequence[Example]]] = {
    "builtin": _builtin,
    "persona": _persona,
    "jsonl": _file,
    "tfds": _table,
    "hf": _table,
    "gym": _gym,
    "python": _python,
}
SOURCES = (
    "builtin",
    "persona",
    "jsonl:FILE",
    "FILE.csv",
    "FILE.parquet",
    "tfds:NAME",
    "hf:NAME",
    "gym:NAME",
    "FILE.py:NAME",
)
