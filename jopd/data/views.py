"""Views: what each reader of a completion has before it.

| view | shows |
|---|---|
| `student`, `teacher`, `plain`, `initial` | the messages alone |
| `privileged`, `full` | also the privileged context: `Example.context`, or the worked solution |
| `partial` | also the first part of that |

`partial` shows `partial_share` of the characters, cut between two words, without the answer or with
it. The answer that `partial` leaves out, or puts after the cut, is the last of several lines if it
holds `Example.answer`; with `partial_keeps_answer` a text without such a line gets one. (AR-OPD's
appendix removes the answer, its official data builder keeps it.) What the reasoning before that
line gives away stays.

Everything goes through the tokenizer's own chat template, with the same thinking switch for every
reader, and ends where the assistant begins to write: a completion continues any view of its
example. A system prompt that the template brings itself stands before a context too, so that the
readers of an example differ by the context alone.
"""

import dataclasses
import datetime
import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from jopd.data import answers, task
from jopd.data.chat import DATE, THOUGHT, THOUGHT_END, Chat
from jopd.data.example import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """How an example is put before its readers.

    Attributes:
      context_placement: a privileged context is a system message (after the one that is there, if
        any), or follows the user's last words.
      partial_share: how much of the reasoning, in characters, the view `partial` shows, in (0, 1);
        it is cut between two words.
      partial_keeps_answer: whether `partial` shows the answer after that; without, the paper's way,
        it ends at the cut.
      context_template: the words around a context, holding {context}. Unset: a context stands as it
        is, a worked solution after "worked solution: ". White space at its start is kept instead of
        the usual one between it and what it follows.
      system_prompt: the system message of every view, for conversations that have none.
      thinking: the chat template's thinking switch; unset, its own default. False also closes a
        thought that a template without a switch opens.
      template: "chat", the tokenizer's chat template; "raw" for base models: each message's words
        and a blank line (none after words that end in white space), an answer ends with the
        end-of-text token.
      date: what a chat template that writes the day into prompts writes, YYYY-MM-DD: one day for
        all of a run, whenever it goes on.
    """

    context_placement: Literal["system", "user"] = "system"
    partial_share: float = 0.5
    partial_keeps_answer: bool = False
    context_template: str | None = None
    system_prompt: str | None = None
    thinking: bool | None = None
    template: Literal["chat", "raw"] = "chat"
    date: str = DATE

    def __post_init__(self):
        if self.context_placement not in ("system", "user"):
            raise ValueError(
                f"context_placement={self.context_placement!r} is not known: use system or user"
            )
        if not 0 < self.partial_share < 1:
            raise ValueError(
                f"partial_share={self.partial_share} must lie in (0, 1): all of a solution is what "
                "the view full shows"
            )
        if self.context_template is not None and "{context}" not in self.context_template:
            raise ValueError(
                f"context_template={self.context_template!r} shows no context: put {{context}} "
                "where it belongs"
            )
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ValueError(f"system_prompt={self.system_prompt!r} is blank: leave it unset")
        if self.template not in ("chat", "raw"):
            raise ValueError(f"template={self.template!r} is not known: use chat or raw")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date={self.date!r} is no day: write YYYY-MM-DD") from None


# Of scripts that set no spaces between words (Thai to Khmer, Chinese, Japanese) each letter is one.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def _nothing(example: Example, config: ViewConfig) -> None:
    del example, config


def _everything(example: Example, config: ViewConfig) -> str:
    """The context, or else the whole worked solution, in its template."""
    return _in_template(example, config, _privileged(example))


def _first_part(example: Example, config: ViewConfig) -> str:
    """What `_everything` shows, but of its reasoning only the first part."""
    text = _privileged(example).rstrip()
    reasoning, _, line = text.rpartition("\n")
    reasoning = reasoning.rstrip()
    if not (reasoning and _holds_answer(line, example)):
        answer = _readable_answer(example)
        reasoning, line = text, task.ANSWER_LINE.format(answer=answer) if answer else ""
    ends = [word.end() for word in _WORD.finditer(reasoning)] or [0]
    room = int(config.partial_share * len(reasoning))
    shown = reasoning[: max((end for end in ends if end <= room), default=ends[0])]
    return _in_template(
        example, config, f"{shown}\n{line}" if config.partial_keeps_answer and line else shown
    )


def _privileged(example: Example) -> str:
    text = example.solution if example.context is None else example.context
    if text is None:
        raise ValueError(
            f"example {example.id} has neither a context nor a solution for a privileged view: add "
            "one, or use a method without that view"
        )
    return text


def _in_template(example: Example, config: ViewConfig, text: str) -> str:
    usual = task.CONTEXT_TEMPLATE if example.context is None else "{context}"
    return (config.context_template or usual).replace("{context}", text)


def _readable_answer(example: Example) -> str | None:
    """The answer and nothing else, for a reader; None where what is known is for a checker alone,
    such as a pattern.
    """
    if example.answer is None or example.answer_check in ("regex", "gym"):
        return None
    # What is checked by its last number may be a whole solution.
    return (
        answers.last_number_text(example.answer)
        if example.answer_check == "number"
        else example.answer
    )


def _holds_answer(line: str, example: Example) -> bool:
    """Whether the answer is there as whole words: 4 is neither in 14 nor in 4.5."""
    if example.answer is None:
        return False
    if example.answer_check == "regex":
        return re.search(example.answer, line) is not None
    if example.answer_check == "number":
        return answers.last_number(line) is not None and answers.last_number(
            line
        ) == answers.last_number(example.answer)
    return (
        re.search(rf"(?<![\w.]){re.escape(example.answer)}(?!\w|\.\w)", line, re.IGNORECASE)
        is not None
    )


# View name to what it shows besides the messages; None is nothing. Views with the same function are
# rendered once.
VIEWS: dict[str, Callable[[Example, ViewConfig], str | None]] = {
    "student": _nothing,
    "teacher": _nothing,
    "plain": _nothing,
    "privileged": _everything,
    "full": _everything,
    "partial": _first_part,
    "initial": _nothing,
}


# Those that show more than the student sees.
PRIVILEGED = ("privileged", "full", "partial")


def shown(view: str) -> Callable[[Example, ViewConfig], str | None]:
    """What a view shows besides the messages, as a function of (example, config)."""
    if view not in VIEWS:
        raise ValueError(f"view={view!r} is not known: use one of {', '.join(VIEWS)}")
    return VIEWS[view]


def messages(example: Example, view: str, config: ViewConfig) -> list[Message]:
    """The conversation as a view's reader has it."""
    turns = [*example.messages]
    if config.system_prompt is not None and turns[0]["role"] != "system":
        turns.insert(0, Message(role="system", content=config.system_prompt))
    context = shown(view)(example, config)
    if context is None:
        return turns
    if config.context_placement == "user":
        turns[-1] = Message(role="user", content=_after(turns[-1]["content"], " ", context))
    elif turns[0]["role"] == "system":
        turns[0] = Message(role="system", content=_after(turns[0]["content"], "\n\n", context))
    else:
        turns.insert(0, Message(role="system", content=context))
    return turns


def _after(text: str, space: str, more: str) -> str:
    return text + ("" if more[:1].isspace() else space) + more


def render(
    example: Example, view: str, tokenizer: "PreTrainedTokenizerBase", config: ViewConfig
) -> list[int]:
    """The token ids of a view, up to where the completion begins.

    Raises:
      ValueError: an unknown view; an example without what the view shows; a tokenizer without a
        chat template, or with one that refuses the messages or has no thinking switch.
    """
    chat, bare = chat_of(tokenizer, config), messages(example, "student", config)
    turns = messages(example, view, config)
    if turns[0]["role"] == "system" and chat.default_system and bare[0]["role"] != "system":
        # Without the context the template says this; with it, it is to say both.
        both = _after(chat.default_system, "\n\n", turns[0]["content"])
        turns[0] = Message(role="system", content=both)
    return chat.prompt(turns, f"example {example.id}")


def render_reference(
    example: Example, tokenizer: "PreTrainedTokenizerBase", config: ViewConfig = ViewConfig()
) -> list[int]:
    """The token ids of the worked solution as a completion, with the token that ends an assistant's
    turn, so that who learns it learns to stop.

    Raises:
      ValueError: an example without a solution; a prompt that ends inside a thought where the
        solution closes none.
    """
    if example.solution is None:
        raise ValueError(
            f"example {example.id} has no solution to use as a reference completion: add one, or "
            "use a method that needs none"
        )
    chat, solution = chat_of(tokenizer, config), example.solution
    if chat.opens_thought:
        if THOUGHT_END not in solution:
            raise ValueError(
                f"example {example.id}: the chat template of {tokenizer.name_or_path!r} opens a "
                f"thought ({THOUGHT}) and the solution never ends it: set view.thinking=false, for "
                f"an empty thought before it, or write {THOUGHT_END} after its reasoning"
            )
        # The prompt has opened it already.
        solution = re.sub(rf"^\s*{THOUGHT}\n?", "", solution)
    return [*tokenizer.encode(solution, add_special_tokens=False), chat.stop_token]


def chat_of(tokenizer: "PreTrainedTokenizerBase", config: ViewConfig) -> Chat:
    """How prompts are written under these settings; what it finds out, it finds out once."""
    return _chat(
        tokenizer, str(tokenizer.chat_template), config.template, config.thinking, config.date
    )


@functools.lru_cache(maxsize=8)
def _chat(tokenizer, chat_template, *settings) -> Chat:
    del chat_template  # another is another chat
    return Chat(tokenizer, *settings)


def remarks(
    tokenizer: "PreTrainedTokenizerBase", views: Sequence[str], config: ViewConfig
) -> list[str]:
    """What the template brings to these views that nobody asked for, a sentence each."""
    chat, lines = chat_of(tokenizer, config), []
    if chat.stamps_date:
        lines.append(
            f"the chat template writes the day into prompts: it is view.date={config.date}, today "
            "and in every later start"
        )
    if chat.closes_thought:
        lines.append(
            "view.thinking=False: the chat template opens a thought and has no switch; every "
            "prompt closes it, empty"
        )
    adds_context = {*views} & {*PRIVILEGED} and config.context_placement == "system"
    if adds_context and config.system_prompt is None:
        if chat.default_system is None:
            lines.append(
                "the chat template writes a default system prompt that a context takes the place "
                "of: student and teacher differ by it too; set view.system_prompt to make it the "
                "same for both"
            )
        elif chat.default_system:
            lines.append(
                f"the chat template's own system prompt ({chat.default_system.strip()!r}) stands "
                "before a context too: student and teacher differ by the context alone"
            )
    return lines


def describe(
    example: Example, views: Sequence[str], tokenizer: "PreTrainedTokenizerBase", config: ViewConfig
) -> dict[str, str]:
    """View name to its text, as the model gets it, special tokens included: what a run shows of its
    first example.
    """
    return {view: str(tokenizer.decode(render(example, view, tokenizer, config))) for view in views}
