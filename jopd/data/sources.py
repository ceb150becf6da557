"""Where problems come from: `load(config, split)` gives the examples of "train" or "held_out".

| source | what it is | its held-out part |
|---|---|---|
| `builtin` | the built-in reasoning task (`jopd.data.task`) | disjoint by construction |
| `persona` | identity and ordinary questions under a persona (`jopd.data.persona`) | its own file |
| `jsonl:FILE` | one object a line: `prompt` or `messages`, optional `solution`, `answer`, `context`
| `held_out_split`, another file, or cut | | `tfds:NAME` | TensorFlow Datasets, read without
TensorFlow: `NAME`, `NAME/CONFIG` | `held_out_split`, or the first of `held_out`, `validation`,
`test`, or cut | | `hf:NAME` | a data set of the Hugging Face hub, or a folder: `NAME`,
`NAME:CONFIG` | the same | | `gym:NAME,NAME` | generators of reasoning-gym in turns, scored by its
own scorers | generated; a problem that is in it is left out of train |

A part that is cut goes by a hash of (seed, messages): it does not depend on the order of the rows,
and a prompt that occurs twice stays on one side. Conversations that end with an assistant's turn
give it up as the solution.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jopd.data import answers, persona
from jopd.data.answers import AnswerCheck, GymExample, require
from jopd.data.example import Example, Message
from jopd.data.persona import Persona
from jopd.data.task import Split, TallySettings, TallyTask

# Sources that are generated, not read, give so many training examples where `limit` does not say.
GENERATED = 4096
HELD_OUT_SPLITS = ("held_out", "validation", "test")
FIELDS = ("prompt", "messages", "solution", "answer", "context")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column, or JSONL key, holds what. Unset: the one of that very name, where there is one;
    "none": no column at all.

    Attributes:
      prompt: the user's words, where there is just one turn.
      messages: the conversation, a list of {"role", "content"}, instead of a prompt.
      solution: a worked solution or reference completion.
      answer: the verifiable answer.
      context: privileged text that only a teacher's view shows.
    """

    prompt: str | None = None
    messages: str | None = None
    solution: str | None = None
    answer: str | None = None
    context: str | None = None

    def of(self, field: str) -> str | None:
        chosen = getattr(self, field) or field
        return None if chosen == "none" else chosen

    @property
    def names(self) -> dict[str, str]:
        """Field to column, of the fields that are read."""
        return {field: column for field in FIELDS if (column := self.of(field))}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
      source: builtin, persona, jsonl:FILE, tfds:NAME, hf:NAME or gym:NAME[,NAME].
      seed: of generated problems, and of what is held out where a source has no held-out part.
      limit: at most so many training examples; unset, all that the source has (builtin and gym:
        4096).
      held_out: at most so many examples for evaluation.
      answer_check: how a column `answer` is checked (jopd.data.answers); auto: number for a lone
        number, math for LaTeX, else exact.
      columns: which column holds what (jsonl, tfds, hf).
      train_split: the split to train on (tfds, hf).
      held_out_split: the split to evaluate on (tfds, hf), or a second file (jsonl).
      data_dir: where TFDS keeps its data sets, if not in ~/tensorflow_datasets.
      min_steps: fewest steps of a built-in problem.
      max_steps: most steps of a built-in problem.
      persona: who the teacher of the source persona is.
    """

    source: str = "builtin"
    seed: int = 0
    limit: int | None = None
    held_out: int = 128
    answer_check: AnswerCheck = "auto"
    columns: Columns = Columns()
    train_split: str = "train"
    held_out_split: str | None = None
    data_dir: str | None = None
    min_steps: int = TallySettings.min_steps
    max_steps: int = TallySettings.max_steps
    persona: Persona = Persona()

    def __post_init__(self):
        kind, name = self.kind, self.name
        if kind not in LOADERS:
            raise ValueError(
                f"source={self.source!r} is not known: {_nearest(kind, LOADERS)}use one of {', '.join(SOURCES)}"
            )
        takes_name = kind not in ("builtin", "persona")
        if takes_name != bool(name):
            raise ValueError(
                f"source={self.source!r} must be written {next(form for form in SOURCES if form.startswith(kind))}"
            )
        for field, kinds in _ONLY_FOR.items():
            if kind not in kinds and getattr(self, field) != _DEFAULTS[field]:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} has no effect on source={self.source!r}, only on {', '.join(kinds)}: leave it unset"
                )
        for field, least in (("seed", 0), ("held_out", 1), ("limit", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"{field}={value} must be at least {least}")
        if self.answer_check not in get_args(AnswerCheck):
            raise ValueError(
                f"answer_check={self.answer_check!r} is not known: use one of {', '.join(get_args(AnswerCheck))}"
            )
        _ = self.task  # refuses bad steps

    @property
    def kind(self) -> str:
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        return self.source.partition(":")[2]

    @property
    def task(self) -> TallySettings:
        return TallySettings(seed=self.seed, min_steps=self.min_steps, max_steps=self.max_steps)


# Settings that only some sources read: elsewhere they would be dropped in silence.
_ONLY_FOR = {
    "answer_check": ("jsonl", "tfds", "hf"),
    "columns": ("jsonl", "tfds", "hf"),
    "train_split": ("tfds", "hf"),
    "held_out_split": ("jsonl", "tfds", "hf"),
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
    return TallyTask(config.task).examples(
        split, config.held_out if split == "held_out" else config.limit or GENERATED
    )


def _persona(config: DataConfig, split: Split) -> Sequence[Example]:
    return persona.examples(config.persona, split)[
        : config.held_out if split == "held_out" else config.limit
    ]


# Sources with rows.

Read = Callable[[str], Iterator[Example]]  # the examples of a file or of a split


def _part(
    read: Read, train: str, held_out: str | None, config: DataConfig, split: Split
) -> list[Example]:
    if held_out == train:
        raise ValueError(
            f"held_out_split={held_out!r} is what is trained on: name another, or leave it unset and a part is cut"
        )
    if held_out is not None:
        part, at_most = (
            (held_out, config.held_out) if split == "held_out" else (train, config.limit)
        )
        examples = list(itertools.islice(read(part), at_most))
    else:
        part, examples = train, _cut(list(read(train)), config, split)
    if not examples:
        raise ValueError(f"{config.source}: {part} holds no examples: give it at least one")
    return examples


def _cut(examples: list[Example], config: DataConfig, split: Split) -> list[Example]:
    """The held-out or the other part of a source that has only one."""
    keys = [
        hashlib.blake2b(json.dumps([config.seed, e.messages]).encode(), digest_size=8).digest()
        for e in examples
    ]
    aside = set(sorted(set(keys))[: config.held_out])
    if split == "held_out":
        return [e for e, key in zip(examples, keys, strict=True) if key in aside][: config.held_out]
    rest = [e for e, key in zip(examples, keys, strict=True) if key not in aside]
    if examples and not rest:
        raise ValueError(
            f"held_out={config.held_out} leaves none of the {len(aside)} different prompts of {config.source} to train on: "
            "lower held_out, or name a held_out_split"
        )
    return rest[: config.limit]


def _example(row: Mapping, names: Mapping[str, str], identity: str, check: AnswerCheck) -> Example:
    """One row, all of it text; errors begin with `identity`, which says where it stands."""
    fields = {field: row.get(column) for field, column in names.items()}
    for field in ("prompt", "solution", "answer", "context"):
        value = fields.get(field)
        if value is not None and not (isinstance(value, str) and value.strip()):
            problem = (
                "is blank"
                if isinstance(value, str)
                else f"is {type(value).__name__} {value!r}, not a string"
            )
            raise ValueError(f"{identity}: {names[field]!r} {problem}: write text, or leave it out")
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        wanted = " or ".join(
            repr(names[field]) for field in ("prompt", "messages") if field in names
        )
        has = "neither" if prompt is None else "both: leave one out, or set columns.prompt=none"
        raise ValueError(f"{identity}: needs either {wanted}, and has {has}")
    messages = (
        [Message(role="user", content=prompt)]
        if prompt is not None
        else _messages(messages, identity)
    )
    solution = fields.get("solution")
    if messages[-1]["role"] == "assistant":
        if solution is not None:
            raise ValueError(
                f"{identity}: the messages end with an assistant's turn, and there is a solution too: drop one of them"
            )
        solution = messages.pop()["content"]
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(
            f"{identity}: the messages must end with a user's turn (or one more of the assistant, the solution)"
        )
    answer, kind = fields.get("answer"), "exact"
    if answer is not None:
        kind = answers.resolve(check, answer)
        try:
            answers.validate(kind, answer)
        except ValueError as error:
            raise ValueError(f"{identity}: {error}") from None
    return Example(identity, tuple(messages), solution, answer, fields.get("context"), kind)


def _messages(value: object, identity: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{identity}: messages must be a list of {{'role': ..., 'content': ...}} that is not empty, not {value!r:.60}"
        )
    roles = get_args(Message.__annotations__["role"])
    for i, message in enumerate(value, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(
                f"{identity}: message {i} must have 'role' and 'content', and nothing else, not {message!r:.60}"
            )
        if message["role"] not in roles:
            raise ValueError(
                f"{identity}: message {i} has role={message['role']!r}: use one of {', '.join(roles)}"
            )
        if message["role"] == "system" and i > 1:
            raise ValueError(
                f"{identity}: message {i} is a system message: only the first may be one"
            )
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(
                f"{identity}: message {i} needs text as its content, not {message['content']!r}"
            )
    return [Message(role=message["role"], content=message["content"]) for message in value]


def _jsonl(config: DataConfig, split: Split) -> Sequence[Example]:
    names = config.columns.names

    def read(path: str) -> Iterator[Example]:
        try:
            lines = Path(path).expanduser().read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"jsonl:{path} can't be read: {error}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{Path(path).name}:{number}"
                yield _example(_object(line, where, names), names, where, config.answer_check)

    return _part(read, config.name, config.held_out_split, config, split)


def _object(line: str, where: str, names: Mapping[str, str]) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error.msg} at column {error.colno}): each line must be one whole object"
        ) from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: holds {type(row).__name__}, not an object: write {{'prompt': ...}}"
        )
    for key in row:
        if key not in names.values():
            raise ValueError(
                f"{where}: unknown key {key!r}: {_nearest(key, names.values())}known are {', '.join(names.values())}; columns.* renames them"
            )
    return row


def _tfds(config: DataConfig, split: Split) -> Sequence[Example]:
    import tensorflow_datasets as tfds

    import jopd.data.tally_dataset  # noqa: F401  (registers "tally")

    try:
        # The format that can be read without TensorFlow.
        builder: Any = tfds.builder(
            config.name, data_dir=config.data_dir, file_format="array_record"
        )
        builder.download_and_prepare()
    except Exception as error:
        raise ValueError(
            f"{config.source} can't be prepared ({_first_line(error)}): check the name and data_dir"
        ) from error

    def read(name: str) -> Iterator[Example]:
        try:
            rows = builder.as_data_source(name)
        except NotImplementedError:
            raise ValueError(
                f"{config.source} was prepared in a format that needs TensorFlow: prepare it as array_record"
            ) from None
        where = f"{config.name}/{name}"
        return _table(
            (rows[i] for i in range(len(rows))), list(builder.info.features), where, config
        )

    return _part(read, *_splits(list(builder.info.splits), config, split), config, split)


def _hf(config: DataConfig, split: Split) -> Sequence[Example]:
    require("datasets", "datasets", config.source)
    import datasets  # pyright: ignore[reportMissingImports]

    name, _, subset = config.name.partition(":")
    try:
        tables = datasets.load_dataset(name, subset or None)
    except Exception as error:
        raise ValueError(
            f"{config.source} can't be loaded ({_first_line(error)}): check the name and the network"
        ) from error

    def read(part: str) -> Iterator[Example]:
        return _table(tables[part], tables[part].column_names, f"{name}/{part}", config)

    return _part(read, *_splits(list(tables), config, split), config, split)


def _splits(available: Sequence[str], config: DataConfig, split: Split) -> tuple[str, str | None]:
    """The names of the split to train on, and of the held-out one if there is any; the one that is
    asked for exists.
    """
    held_out = config.held_out_split or next(
        (name for name in HELD_OUT_SPLITS if name in available), None
    )
    field, name = (
        ("held_out_split", held_out)
        if split == "held_out" and held_out
        else ("train_split", config.train_split)
    )
    if name not in available:
        raise ValueError(
            f"{field}={name!r} is no split of {config.source}: it has {', '.join(available)}"
        )
    return config.train_split, held_out


def _table(
    rows: Iterable[Mapping], columns: Sequence[str], where: str, config: DataConfig
) -> Iterator[Example]:
    """Examples of a table that may have other columns too."""
    for field in FIELDS:
        if (wanted := getattr(config.columns, field)) not in (
            None,
            "none",
        ) and wanted not in columns:
            raise ValueError(
                f"columns.{field}={wanted!r} is no column of {where}: it has {', '.join(columns)}"
            )
    names = {field: column for field, column in config.columns.names.items() if column in columns}
    if "prompt" not in names and "messages" not in names:
        raise ValueError(
            f"{where} has no column 'prompt' or 'messages': say with columns.prompt which of {', '.join(columns)} it is"
        )
    for i, row in enumerate(rows):
        plain = {column: _plain(row[column]) for column in names.values()}
        yield _example(plain, names, f"{where}:{i}", config.answer_check)


def _plain(value: object) -> object:
    """Text as str, numbers as text, nothing as None, sequences (TFDS: a dict of arrays) as lists."""
    if isinstance(value, bytes):
        return _plain(value.decode("utf-8"))
    if isinstance(value, Mapping):
        row = {key: _plain(part) for key, part in value.items()}
        if row and all(isinstance(part, list) for part in row.values()):
            return [dict(zip(row, parts, strict=True)) for parts in zip(*row.values(), strict=True)]
        return row
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, int | float):
        return str(value)
    return None if isinstance(value, str) and not value.strip() else value


def _gym(config: DataConfig, split: Split) -> Sequence[Example]:
    require("reasoning_gym", "reasoning-gym", config.source)
    from reasoning_gym import create_dataset
    from reasoning_gym.factory import DATASETS

    generators = config.name.split(",")
    size = config.held_out + (config.limit or GENERATED)
    made = []
    for name in generators:
        if name not in DATASETS:
            raise ValueError(
                f"gym:{name} is no generator of reasoning-gym: {_nearest(name, DATASETS)}reasoning_gym.factory.DATASETS lists them"
            )
        try:
            made.append(create_dataset(name, seed=config.seed, size=-(-size // len(generators))))
        except (AssertionError, TypeError) as error:
            raise ValueError(
                f"gym:{name} can't be made without settings of its own ({error}): use another generator"
            ) from None

    def problem(i: int) -> GymExample:
        name, entry = generators[i % len(made)], made[i % len(made)][i // len(made)]
        return GymExample(
            id=f"gym-{name}-{config.seed}-{i // len(made)}",
            messages=(Message(role="user", content=entry["question"]),),
            # A few generators only know an answer when they see it.
            answer="(any that the scorer accepts)"
            if entry["answer"] is None
            else str(entry["answer"]),
            answer_check="gym",
            generator=name,
            entry=entry,
        )

    held_out = [problem(i) for i in range(config.held_out)]
    if split == "held_out":
        return held_out
    seen = {example.messages[0]["content"] for example in held_out}
    train = [
        e
        for e in map(problem, range(config.held_out, size))
        if e.messages[0]["content"] not in seen
    ]
    if not train:
        raise ValueError(
            f"{config.source} makes too few different problems to train on beside held_out={config.held_out}: lower it"
        )
    return train


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


LOADERS: dict[str, Callable[[DataConfig, Split], Sequence[Example]]] = {
    "builtin": _builtin,
    "persona": _persona,
    "jsonl": _jsonl,
    "tfds": _tfds,
    "hf": _hf,
    "gym": _gym,
}
SOURCES = ("builtin", "persona", "jsonl:FILE", "tfds:NAME", "hf:NAME", "gym:NAME")
