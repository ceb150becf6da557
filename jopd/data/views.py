"""Views: what each reader of a completion has before it.

| view | shows |
|---|---|
| `student`, `teacher`, `plain` | the messages alone |
| `privileged`, `full` | the messages and the privileged context: `Example.context`, or the worked solution |

Everything goes through the tokenizer's own chat template, with the same thinking switch for every reader, and ends where the assistant begins to
write: a completion continues any view of its example.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerBase

from jopd.data import task
from jopd.data.example import Example, Message


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """How an example is put before its readers.

    Attributes:
      context_placement: a privileged context is a system message (after the one that is there, if any), or follows the user's last words.
      context_template: the words around a context, holding {context}. Unset: a context stands as it is, a worked solution after
        "worked solution: ". White space at its start is kept instead of the usual one between it and what it follows.
      system_prompt: the system message of every view, for conversations that have none.
      thinking: the chat template's thinking switch; unset, its own default.
    """

    context_placement: Literal["system", "user"] = "system"
    context_template: str | None = None
    system_prompt: str | None = None
    thinking: bool | None = None

    def __post_init__(self):
        if self.context_placement not in ("system", "user"):
            raise ValueError(f"context_placement={self.context_placement!r} is not known: use system or user")
        if self.context_template is not None and "{context}" not in self.context_template:
            raise ValueError(
                f"context_template={self.context_template!r} shows no context: put {{context}} where it belongs"
            )
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ValueError(f"system_prompt={self.system_prompt!r} is blank: leave it unset")


def _nothing(example: Example, config: ViewConfig) -> None:
    del example, config


def _everything(example: Example, config: ViewConfig) -> str:
    """The context, or else the whole worked solution, in its template."""
    if example.context is not None:
        return (config.context_template or "{context}").replace("{context}", example.context)
    if example.solution is not None:
        return (config.context_template or task.CONTEXT_TEMPLATE).replace("{context}", example.solution)
    raise ValueError(
        f"example {example.id} has neither a context nor a solution for a privileged view: add one, or use a method without that view"
    )


# View name to what it shows besides the messages; None is nothing. Views with the same function are rendered once.
VIEWS: dict[str, Callable[[Example, ViewConfig], str | None]] = {
    "student": _nothing,
    "teacher": _nothing,
    "plain": _nothing,
    "privileged": _everything,
    "full": _everything,
}


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


def render(example: Example, view: str, tokenizer: PreTrainedTokenizerBase, config: ViewConfig) -> list[int]:
    """The token ids of a view, up to where the completion begins.

    Raises:
      ValueError: an unknown view; an example without what the view shows; a tokenizer without a chat template, or with one that refuses the
        messages or has no thinking switch.
    """
    switch = {}
    if config.thinking is not None:
        if "enable_thinking" not in _template(tokenizer):
            raise ValueError(
                f"thinking={config.thinking}: the chat template of {tokenizer.name_or_path!r} has no such switch: leave it unset"
            )
        switch = {"enable_thinking": config.thinking}
    return _apply(
        tokenizer,
        messages(example, view, config),
        f"example {example.id}",
        add_generation_prompt=True,
        return_dict=False,
        **switch,
    )


def render_reference(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of the worked solution as a completion, with the token that ends an assistant's turn, so that who learns it learns to stop."""
    if example.solution is None:
        raise ValueError(
            f"example {example.id} has no solution to use as a reference completion: add one, or use a method that needs none"
        )
    return [*tokenizer.encode(example.solution, add_special_tokens=False), stop_token(tokenizer)]


def stop_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which the chat template ends an assistant's turn: the first special one after its words, or else the end-of-text token."""
    turns = [Message(role="user", content="Say it."), Message(role="assistant", content="That is it.")]
    text = _apply(tokenizer, turns, "the end of a turn", tokenize=False)
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    ending = tokenizer.encode(text.rpartition("That is it.")[2], add_special_tokens=False)
    stop: Any = next((token for token in ending if token in special), tokenizer.eos_token_id)
    if stop is None:
        raise ValueError(
            f"nothing ends an assistant's turn for {tokenizer.name_or_path!r}: set the tokenizer's eos_token"
        )
    return stop


def describe(
    example: Example, views: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: ViewConfig
) -> dict[str, str]:
    """View name to its text, as the model gets it, special tokens included: what a run shows of its first example."""
    return {view: str(tokenizer.decode(render(example, view, tokenizer, config))) for view in views}


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        cure = "use an instruct model, or put the family's chat_template.jinja into the model's folder"
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: {cure}") from None


def _apply(tokenizer: PreTrainedTokenizerBase, turns: Any, what: str, **options) -> Any:
    """`apply_chat_template` (its annotations know neither TypedDicts nor which of its six results comes), with a refusal in our words."""
    _template(tokenizer)
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except jinja2.TemplateError as error:
        cure = (
            "set context_placement=user and no system_prompt" if turns[0]["role"] == "system" else "change its messages"
        )
        raise ValueError(f"{what}: the chat template refuses its messages ({error}): {cure}") from None
