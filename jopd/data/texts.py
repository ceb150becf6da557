"""Completions as text."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int


@runtime_checkable
class Decoder(Protocol):
    """The part of a Hugging Face tokenizer that makes text of ids."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> Any: ...


def texts(
    tokenizer: Decoder, tokens: Int[np.ndarray, "b t"], mask: Bool[np.ndarray, "b t"]
) -> list[str]:
    """Each row's completion, special tokens left out."""
    return [
        str(tokenizer.decode(row[written], skip_special_tokens=True))
        for row, written in zip(tokens, mask, strict=True)
    ]


def pieces_of(tokenizer: Decoder, tokens: Sequence[int]) -> list[str]:
    """The text that each token adds; one that ends inside a character adds none, the next the whole
    character.
    """
    pieces, begin, done = [], 0, 0
    for end in range(1, len(tokens) + 1):
        # A token's text depends on its left neighbour (spaces), not on more: decoding a short
        # window keeps this linear.
        before = _decoded(tokenizer, tokens[begin:done])
        after = _decoded(tokenizer, tokens[begin:end])
        if after.endswith("\ufffd") and end < len(tokens):
            pieces.append("")
            continue
        pieces.append(visible(after[len(before) :]))
        begin, done = done, end
    return pieces


def text_after(tokenizer: Decoder, previous: int | None, token: int) -> str:
    """The text that a token would add after another one, or by itself."""
    before = [] if previous is None else [previous]
    of = lambda ids: _decoded(tokenizer, ids)
    return visible(of([*before, token])[len(of(before)) :])


def visible(text: str) -> str:
    """The text with control characters spelt out."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _decoded(tokenizer: Decoder, ids: Sequence[int]) -> str:
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
