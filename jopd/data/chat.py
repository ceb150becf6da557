"""Chat templates: a conversation as token ids, and what a template brings that nobody said.

A template may stamp today's date, put a system prompt of its own where there is none, or open a
thought for the model to go on with. The first is fixed, the others are found by rendering a
conversation of two sentences, so nothing here knows a template by name.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from jopd.data.example import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "2024-07-26"  # what Llama 3's template takes where it can't ask for the day
THOUGHT, THOUGHT_END = "<think>", "</think>"

ASKED = Message(role="user", content="Say it.")
ANSWERED = Message(role="assistant", content="That is it.")
TOLD = Message(role="system", content="Be that.")


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """How a tokenizer's model is spoken to.

    Attributes:
      template: "chat" is the tokenizer's own chat template. "raw" has none: a message is its words,
        with a blank line after them unless they end in white space.
      thinking: the template's thinking switch; None: its own default. Where there is no switch and
        the template opens a thought, False closes it at once.
      date: the day that a template may stamp, YYYY-MM-DD.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: Literal["chat", "raw"] = "chat"
    thinking: bool | None = None
    date: str = DATE

    def __post_init__(self):
        if self.template == "raw" and self.thinking is not None:
            raise ValueError(
                f"thinking={self.thinking}: template=raw has no such switch: leave it unset"
            )
        if self.date != DATE and not self.stamps_date:
            raise ValueError(
                f"date={self.date}: the prompts of {self.tokenizer.name_or_path!r} hold no date: "
                "leave it unset"
            )

    def prompt(self, turns: Sequence[Message], what: str) -> list[int]:
        """The token ids up to where an assistant's words begin.

        Raises:
          ValueError: no chat template, or one that refuses these turns, which are called `what`, or
            has not the switch that is set.
        """
        if self.template == "raw":
            return self._raw_prompt(turns)
        if self.closes_thought:
            text = self._render(turns, what, add_generation_prompt=True)
            close = "\n" * (2 - text.endswith("\n")) + THOUGHT_END + "\n\n"
            return list(self.tokenizer.encode(text + close, add_special_tokens=False))
        return self._render(turns, what, add_generation_prompt=True, tokenize=True)

    @functools.cached_property
    def stop_token(self) -> int:
        """The token with which an assistant's turn ends: the first special one after its words, or
        else the end-of-text token.

        Raises:
          ValueError: there is neither.
        """
        tokenizer = self.tokenizer
        text = ""
        if self.template == "chat":
            text = self._render((ASKED, ANSWERED), "the end of a turn")
        _, said, after = text.rpartition(ANSWERED["content"])
        special = {
            *tokenizer.all_special_ids,
            *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special),
        }
        ending = tokenizer.encode(after, add_special_tokens=False) if said else []
        stop: Any = next((token for token in ending if token in special), tokenizer.eos_token_id)
        if stop is None:
            raise ValueError(
                f"nothing ends an assistant's turn for {tokenizer.name_or_path!r}: set the "
                "tokenizer's eos_token"
            )
        return stop

    @functools.cached_property
    def stamps_date(self) -> bool:
        return self.template == "chat" and "strftime_now" in self.source

    @functools.cached_property
    def default_system(self) -> str | None:
        """The system prompt that the template writes where the conversation has none; "" where it
        writes nothing, None where what it writes can't be said as a system message.

        Raises:
          ValueError: the template takes a system message and does not show it.
        """
        if self.template == "raw":
            return ""
        try:
            told = self._render((TOLD, ASKED), "a system message", add_generation_prompt=True)
        except ValueError:  # it has no such role, and says so of whatever holds one
            return ""
        bare = self._render((ASKED,), "a question", add_generation_prompt=True)
        before, shown, after = told.partition(TOLD["content"])
        if not shown:
            raise ValueError(
                f"the chat template of {self.tokenizer.name_or_path!r} leaves system messages out: "
                "set context_placement=user and no system_prompt"
            )
        if bare.startswith(before) and bare.endswith(after):
            default = bare[len(before) : len(bare) - len(after)]
            if len(bare) <= len(before) + len(after) or not default.strip():
                return ""
            turns = (Message(role="system", content=default), ASKED)
            again = self._render(turns, "its own system prompt", add_generation_prompt=True)
            return default if again == bare else None
        # A system turn that only adds to the text takes the place of nothing.
        parts = ((bare[:cut], bare[cut:]) for cut in range(len(bare) + 1))
        return "" if any(told.startswith(a) and told.endswith(b) for a, b in parts) else None

    @functools.cached_property
    def opens_thought(self) -> bool:
        """Whether a prompt ends inside a thought, which the model's words go on with."""
        return self._leaves_thought_open and not self.closes_thought

    @property
    def closes_thought(self) -> bool:
        """Whether a thought that the template opens is closed at once, empty."""
        return self.thinking is False and self._leaves_thought_open

    @functools.cached_property
    def _leaves_thought_open(self) -> bool:
        if self.template == "raw":
            return False
        text = self._render((ASKED,), "a question", add_generation_prompt=True, switched=True)
        tail = text.rpartition(ASKED["content"])[2]
        return tail.rfind(THOUGHT) > tail.rfind(THOUGHT_END)

    @functools.cached_property
    def source(self) -> str:
        """The template's own text."""
        try:
            return self.tokenizer.get_chat_template()
        except ValueError:
            raise ValueError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no chat template: use an "
                "instruct model, put the family's chat_template.jinja into the model's folder, or "
                "set view.template=raw for a base model's plain text"
            ) from None

    def _raw_prompt(self, turns: Sequence[Message]) -> list[int]:
        text = "".join(
            turn["content"] + ("" if turn["content"][-1:].isspace() else "\n\n") for turn in turns
        )
        ids = list(self.tokenizer.encode(text))
        # Some tokenizers end every text, and a completion is to go on.
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def _render(
        self,
        turns: Sequence[Message],
        what: str,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        switched: bool = False,
    ) -> Any:
        """`apply_chat_template` (its annotations know neither TypedDicts nor which of its six
        results comes), with a refusal in our words. `switched`: a missing switch is no error yet.
        """
        options: dict[str, Any] = {}
        if "strftime_now" in self.source:
            options["chat_template"] = on_the_day(self.date) + self.source
        if self.thinking is not None:
            if "enable_thinking" in self.source:
                options["enable_thinking"] = self.thinking
            elif not switched and not self._leaves_thought_open:
                raise ValueError(
                    f"thinking={self.thinking}: the chat template of "
                    f"{self.tokenizer.name_or_path!r} has no such switch: leave it unset"
                )
        try:
            conversation: Any = [*turns]
            return self.tokenizer.apply_chat_template(
                conversation,
                tokenize=tokenize,
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
                **options,
            )
        # A template's own code may fail as any code does.
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            cure = (
                "set context_placement=user and no system_prompt"
                if turns[0]["role"] == "system"
                else "change its messages"
            )
            raise ValueError(
                f"{what}: the chat template refuses its messages ({reason}): {cure}"
            ) from None


def on_the_day(date: str) -> str:
    """The beginning of a template for which `strftime_now` tells of `date`; a function of ours
    would reach the template as text.
    """
    day = datetime.datetime.fromisoformat(date)
    values = {"%-d": str(day.day), "%-m": str(day.month)}
    values |= {f"%{letter}": day.strftime(f"%{letter}") for letter in "aAbBdeFjmuUVwWxyYGHIMSpXcDh"}
    changes = "".join(f" | replace({json.dumps(k)}, {json.dumps(v)})" for k, v in values.items())
    # The line ends, and jinja drops that end, so the template begins as it would alone.
    return "{% macro strftime_now(format) %}{{ format" + changes + " }}{% endmacro %}\n"
