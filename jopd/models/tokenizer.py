"""The tokenizer that a folder's `tokenizer.json` says, whatever class its config names.

transformers 5 rebuilds the splitting of some classes by name and drops what the file says: "2023"
may read as 20|23 where the weights were trained on 20|2|3. So the file decides, and a probe of
texts holds what was loaded against it, in both directions.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jopd.models.files import one_line, read_json, refuse_pointer

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

PROBE = (
    "Hello world, it's 2023 and I've 1,234,567.89 reasons (or 12345678?).",
    "  two  spaces,   three;\ttab\t\ttabs  \n\n\nlines\r\n\n  end  ",
    "def f(x):\n    if x >= 10:\n        return {'a': [x ** 2, -1]}  # done\n",
    "naïve café Ångström, e\u0301 Straße ÀÉÎÕÜ ﬁ ½ ²",
    "日本語のテキスト。中文,한국어 русский العربية हिन्दी ไทย",
    "👍🏽 👩‍👩‍👧 🇫🇷 ☃ ∑∫ “quoted” — dash… don't DON'T we'll . , ! ? n't 's",
    "a",
    " ",
    "\n",
)


def tokenizer_from(folder: Path) -> PreTrainedTokenizerBase:
    """Loads a folder's tokenizer, with its special tokens and chat template.

    Raises:
      ValueError: there is none, a file of it is broken, or it can't be made to read and write as
        `tokenizer.json` says.
    """
    present = [name for name in FILES if (folder / name).is_file()]
    if not present:
        raise ValueError(f"{folder} has no tokenizer: put its tokenizer.json beside config.json")
    for name in present:
        refuse_pointer(folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            read_json(folder / name)
    stated = backend_from(folder / FILES[0]) if FILES[0] in present else None
    # The plain class takes the file as it is; without the file, the class is all that is known.
    loader = AutoTokenizer if stated is None else PreTrainedTokenizerFast
    try:
        tokenizer: Any = loader.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise ValueError(
            f"the tokenizer in {folder} can't be loaded ({one_line(error)}): fetch "
            f"{', '.join(present)} and tokenizer_config.json again"
        ) from error
    if stated is None or difference(tokenizer, stated) is None:
        return tokenizer
    tokenizer = in_plain_clothes(tokenizer, stated)
    if (text := difference(tokenizer, stated)) is not None:
        raise ValueError(
            f"{folder} reads {text!r} as its tokenizer_config.json says, not as its tokenizer.json "
            "does: keep the one that the model was trained with"
        )
    return tokenizer


def backend_from(file: Path) -> Tokenizer:
    """What the file says of text and ids, without the padding and cutting of somebody's batches."""
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the only class that tokenizers raises
        raise ValueError(
            f"{file.name} is no tokenizer ({one_line(error)}): fetch it again"
        ) from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def in_plain_clothes(tokenizer: Any, stated: Tokenizer) -> PreTrainedTokenizerFast:
    """The file's own backend under the special tokens and template of what was loaded."""
    again = PreTrainedTokenizerFast(
        tokenizer_object=stated,
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        padding_side=tokenizer.padding_side,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )
    again.name_or_path = tokenizer.name_or_path
    return again


def difference(tokenizer: Any, stated: Tokenizer) -> str | None:
    """The first text of the probe that the two read or write differently."""
    special = [token.content for token in stated.get_added_tokens_decoder().values()][:256]
    for text in (*PROBE, *(f"a{token}b {token} c" for token in special)):
        for add in (False, True):
            ids = stated.encode(text, add_special_tokens=add).ids
            if tokenizer.encode(text, add_special_tokens=add) != ids:
                return text
            if tokenizer.decode(ids) != stated.decode(ids, skip_special_tokens=False):
                return text
    return None
