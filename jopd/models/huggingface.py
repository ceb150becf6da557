"""Hugging Face folders, opened and checked before any weight is read."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from jopd.data.chat import Chat
from jopd.models.families import architecture_from
from jopd.models.files import read_json
from jopd.models.settings import Architecture
from jopd.models.tokenizer import tokenizer_from
from jopd.models.weights import Tensor, open_safetensors


class Checkpoint(NamedTuple):
    """What a model's files say, before any weight is read.

    Attributes:
      tensors: by Hugging Face name, whatever the file's format.
      stop_tokens: the ids that end a completion, ascending.
      files: what a fingerprint of the weights is taken from.
    """

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...]
    files: tuple[Path, ...]


def open_folder(folder: Path) -> Checkpoint:
    """Opens a Hugging Face folder: config, tokenizer, and its safetensors, one file or many with an
    index.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: give a Hugging Face folder, or the .gguf file itself"
        )
    config = read_json(folder / "config.json")
    architecture = architecture_from(config)
    tensors, files = open_safetensors(folder)
    tokenizer = tokenizer_from(folder)
    check_vocabulary(tokenizer, architecture.vocabulary_size)
    generation = folder / "generation_config.json"
    sources = {
        "generation_config.json": read_json(generation) if generation.is_file() else {},
        "config.json": config,
    }
    return Checkpoint(
        architecture,
        tensors,
        tokenizer,
        stop_tokens(sources, tokenizer.eos_token_id, architecture.vocabulary_size),
        files,
    )


def stop_tokens(
    sources: Mapping[str, Mapping[str, Any]], tokenizer_eos: Any, vocabulary: int
) -> tuple[int, ...]:
    """The ids that end a completion, ascending: those of the first file that names any, as
    transformers does it, and the tokenizer's own end of text.

    Args:
      sources: by file, what it says under `eos_token_id`.

    Raises:
      ValueError: something there is no id of a vocabulary of this size, by file and key.
    """
    stated = {file: token_ids(settings, file, vocabulary) for file, settings in sources.items()}
    first = next((ids for ids in stated.values() if ids), ())
    return tuple(sorted({*first} | ({tokenizer_eos} if tokenizer_eos is not None else set())))


def with_end_of_turn(checkpoint: Checkpoint, source: str) -> tuple[int, ...]:
    """The stop tokens, and the token with which the chat template ends an assistant's turn: what a
    chat model writes at its end, and what references end with.
    """
    stops, tokenizer = checkpoint.stop_tokens, checkpoint.tokenizer
    if tokenizer.chat_template is None:
        return stops
    try:
        end = Chat(tokenizer).stop_token
    except ValueError:  # a template that can't say is refused where a conversation needs it
        return stops
    if end in stops:
        return stops
    names = tokenizer.convert_ids_to_tokens([end, *stops])
    warnings.warn(
        f"model {source!r}: its chat template ends a turn with {names[0]!r}, its configuration "
        f"stops at {names[1:]}: it stops at both",
        stacklevel=4,
    )
    return tuple(sorted({*stops, end}))


def token_ids(
    settings: Mapping[str, Any], file: str, vocabulary: int, key: str = "eos_token_id"
) -> tuple[int, ...]:
    """The ids under a key, which holds one, a list of them or null."""
    value = settings.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        whole = isinstance(token, int) and not isinstance(token, bool)
        if not whole or not 0 <= token < vocabulary:
            raise ValueError(
                f"{file}: {key}={value!r} holds {token!r}, no id of a vocabulary of {vocabulary}: "
                "correct it, or leave the key out"
            )
    return tuple(ids)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Raises ValueError where the model has no row for some token."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= size:
        raise ValueError(
            f"the tokenizer has token id {largest}, vocab_size is {size}: use the tokenizer saved "
            "with the weights"
        )
