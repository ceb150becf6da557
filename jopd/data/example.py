"""What a data source yields: one problem, before any tokenizer has seen it."""

import dataclasses
from typing import Literal, TypedDict


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with whatever is known about its answer.

    Attributes:
      id: unique within its source; names the example in logs and errors.
      messages: the conversation that the student sees, ending with a user turn.
      solution: a worked solution or reference completion, for SFT and for privileged views.
      answer: the verifiable final answer.
      context: privileged text that only a teacher's view shows (a persona, a private fact). Views
        that show one fall back to `solution`.
      answer_check: how `answer` is compared with a completion: one of `jopd.data.answers.CHECKS`,
        or a function of a file, `path/to/file.py:name`.
      group: the kind of problem, if kinds are told apart.
    """

    id: str
    messages: tuple[Message, ...]
    solution: str | None = None
    answer: str | None = None
    context: str | None = None
    answer_check: str = "exact"
    group: str | None = None
