"""From a row of somebody's data to an example: plain text, chats, and the ways in which worked
solutions and answers are written down.

    prompt       the user's words, or a list of messages
    messages     a list of {"role", "content"} instead; a last turn of the assistant is the solution
    completion   the assistant's words or turn: the solution under another name
    solution     a worked solution or reference completion
    answer       the verifiable answer; GSM8K's form, a solution and then "#### 72", gives both
    context      privileged text that only a teacher's view shows
    group        the kind of problem, which evaluations report apart
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from jopd.data import answers
from jopd.data.example import Example, Message
from jopd.nearest import did_you_mean

FIELDS = ("prompt", "messages", "completion", "solution", "answer", "context", "group")
# What an evaluation's record holds under names of its own.
RESERVED = (
    "teacher",
    "support",
    "late",
    "shortcuts",
    "by_problem",
    "accuracy",
    "kl",
    "step",
    "seconds",
)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column, or JSON key, holds what. Unset: the one of that very name, where there is one;
    "none": no column at all.

    Attributes:
      prompt: the user's words, or the conversation.
      messages: the conversation, a list of {"role", "content"}, instead of a prompt.
      completion: the assistant's words or turn: a solution under its other name.
      solution: a worked solution or reference completion.
      answer: the verifiable answer; of a solution that ends in "#### ANSWER" both.
      context: privileged text that only a teacher's view shows.
      group: the kind of problem; evaluations report the KL and accuracy of each kind.
    """

    prompt: str | None = None
    messages: str | None = None
    completion: str | None = None
    solution: str | None = None
    answer: str | None = None
    context: str | None = None
    group: str | None = None

    def of(self, field: str) -> str | None:
        chosen = getattr(self, field) or field
        return None if chosen == "none" else chosen

    @property
    def names(self) -> dict[str, str]:
        """Field to column, of the fields that are read."""
        return {field: column for field in FIELDS if (column := self.of(field))}

    @property
    def named(self) -> dict[str, str]:
        """The same, of those that somebody has set."""
        return {
            field: column
            for field, column in self.names.items()
            if getattr(self, field) is not None
        }


class BadRow(ValueError):
    """A row that is no example; the message says what is wrong with it, whoever read it says where
    it stands.
    """


class NoPrompt(BadRow):
    """A row without a prompt and without messages."""


def examples(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    columns: Columns,
    check: str,
    where: str,
    *,
    at_most: int | None = None,
) -> list[Example]:
    """The examples of rows, each with its name. Blank rows, and keys that no field has, are left
    out, and that is said once.

    Args:
      check: an `answer_check`, "auto" included.
      where: what the rows are of, for messages.
      at_most: no more examples than that are read.

    Raises:
      ValueError: a row that is no example, by its name; a column that somebody has named and no row
        has.
    """
    read: list[Example] = []
    keys: dict[str, None] = {}
    blank = 0
    for name, row in rows:
        if len(read) == at_most:
            break
        keys |= dict.fromkeys(map(str, row))
        if all(is_blank(value) for value in row.values()):
            blank += 1
            continue
        try:
            read.append(example(row, columns, name, check))
        except BadRow as error:
            raise ValueError(f"{name}: {error}") from None
    for field, column in columns.named.items():
        if keys and column not in keys:
            raise ValueError(
                f"columns.{field}={column!r} is no column of {where}"
                f"{did_you_mean(column, keys)}: it has {', '.join(keys)}"
            )
    known = columns.names.values()
    if ignored := [f"{key!r}{did_you_mean(key, known)}" for key in keys if key not in known]:
        warnings.warn(
            f"{where}: not read: {', '.join(ignored)} (columns.* says which column holds what)",
            stacklevel=2,
        )
    if blank:
        rows_are = "row" if blank == 1 else "rows"
        warnings.warn(f"{where}: {blank} blank {rows_are} left out", stacklevel=2)
    return read


def is_blank(value: Any) -> bool:
    """Nothing, white space, or a table's NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def example(row: Mapping[str, Any], columns: Columns, name: str, check: str) -> Example:
    """One row; raises BadRow."""
    names = columns.names
    fields = {field: row.get(column) for field, column in names.items()}
    text = {
        field: as_text(fields.get(field), names.get(field, field))
        for field in ("solution", "answer", "context", "group")
    }
    try:
        messages, last_turn = conversation(fields, names)
    except NoPrompt as error:
        raise BadRow(
            f"{error}: it has {', '.join(map(str, row))}; columns.prompt says which is the prompt"
        ) from None
    written = {
        "messages": last_turn,
        "completion": completion(fields.get("completion"), names.get("completion", "")),
        "solution": text["solution"],
    }
    solutions = [field for field, value in written.items() if value is not None]
    if len(solutions) > 1:
        raise BadRow(
            f"has a solution in {' and in '.join(solutions)}: drop one of them, or set its column "
            "to none"
        )
    solution = written[solutions[0]] if solutions else None
    answer, kind = text["answer"], "exact"
    if answer is not None:
        if check != "regex" and (worked := WORKED.fullmatch(answer)):
            answer = worked["answer"]
            solution = solution or reasoning(worked["solution"])
        kind = answers.resolve(check, answer)
        try:
            answers.validate(kind, answer)
        except ValueError as error:
            raise BadRow(str(error)) from None
    if text["group"] in RESERVED:
        raise BadRow(f"group={text['group']!r} is a name that evaluations use: call it otherwise")
    return Example(
        name, tuple(messages), solution, answer, text["context"], kind, group=text["group"]
    )


# A worked solution, then its answer, in the form of GSM8K.
WORKED = re.compile(
    r"(?P<solution>.*?)\s*^####[ \t]*(?P<answer>\S[^\n]*?)\s*", re.DOTALL | re.MULTILINE
)
CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def reasoning(solution: str) -> str | None:
    """A worked solution without GSM8K's calculator marks; None where nothing is left."""
    return CALCULATOR.sub("", solution).strip() or None


def as_text(value: Any, column: str) -> str | None:
    """Text or a number as text; None where there is none."""
    if is_blank(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"{column!r} is {type(value).__name__} {value!r:.60}, not text or a number")
    text = str(value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadRow(
            f"{column!r} holds half of a surrogate pair, which is no character: mend the text"
        )
    return text


def conversation(
    fields: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[list[Message], str | None]:
    """The turns up to the user's last, and the words of an assistant's turn after it."""
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if is_blank(prompt) == is_blank(messages):
        wanted = " or ".join(
            repr(names[field]) for field in ("prompt", "messages") if field in names
        )
        if is_blank(prompt):
            raise NoPrompt(f"needs either {wanted}, and has neither")
        raise BadRow(
            f"needs either {wanted}, and has both: leave one out, or set columns.prompt=none"
        )
    if is_blank(messages) and not isinstance(prompt, list):
        text = as_text(prompt, names["prompt"])
        return [Message(role="user", content=text or "")], None
    listing = prompt if is_blank(messages) else messages
    turns = [turn(value, i) for i, value in enumerate(listed(listing), 1)]
    solution = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    if not turns or turns[-1]["role"] != "user":
        raise BadRow(
            "the messages must end with a user's turn (or one more of the assistant, the solution)"
        )
    return turns, solution


def completion(value: Any, column: str) -> str | None:
    """An assistant's words, or its one turn."""
    if not isinstance(value, list):
        return as_text(value, column)
    turns = [turn(it, i) for i, it in enumerate(listed(value), 1)]
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise BadRow(f"{column!r} must be text or one turn of the assistant")
    return turns[0]["content"]


def listed(value: Any) -> list:
    if not isinstance(value, list) or not value:
        raise BadRow(
            "messages must be a list of {'role': ..., 'content': ...} that is not empty, "
            f"not {value!r:.60}"
        )
    return value


def turn(value: Any, number: int) -> Message:
    """One message; keys without a value are as good as absent."""
    if not isinstance(value, Mapping) or not {"role", "content"} <= set(value):
        raise BadRow(f"message {number} must have 'role' and 'content', not {value!r:.60}")
    roles = get_args(Message.__annotations__["role"])
    role = value["role"]
    if role not in roles:
        raise BadRow(f"message {number} has role={role!r}: use one of {', '.join(roles)}")
    if role == "system" and number > 1:
        raise BadRow(f"message {number} is a system message: only the first may be one")
    if calls := value.get("tool_calls"):
        raise BadRow(f"message {number} calls tools ({calls!r:.60}), which is not supported")
    content = value["content"]
    if isinstance(content, list):  # of parts, as multimodal chats have it
        if not all(
            isinstance(part, Mapping)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
            for part in content
        ):
            raise BadRow(f"message {number} has parts that are not text: {content!r:.60}")
        content = "".join(part["text"] for part in content)
    if is_blank(content) or not isinstance(content, str):
        raise BadRow(f"message {number} needs text as its content, not {content!r:.60}")
    return Message(role=role, content=as_text(content, f"message {number}") or "")
