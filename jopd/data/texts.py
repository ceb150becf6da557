"""Completions as text."""

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
