"""The tokenizer in a GGUF file's metadata.

It is built with `tokenizers`, since transformers reads GGUF only where torch is installed.
"""

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jopd.models.huggingface import token_ids

# How text is cut before byte pairs are merged, by `tokenizer.ggml.pre`. The two regular expressions
# differ in how many digits stay together.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(WORDS % ""), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # `tokenizer.ggml.token_type`


class Metadata:
    """The key-value part of a file, decoded a field at a time: the vocabulary alone takes a
    second.
    """

    def __init__(self, reader):
        self.fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default


def tokenizer_from(metadata: Metadata) -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer that the metadata describes, chat template included."""
    of = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)
    kind, pre = of("model"), of("pre")
    if kind != "gpt2" or pre not in SPLITS:
        known = f"tokenizer.ggml.model 'gpt2' with tokenizer.ggml.pre of {', '.join(SPLITS)}"
        raise ValueError(
            f"tokenizer {kind!r}, {pre!r} is not supported ({known}): use the Hugging Face folder "
            "of the same model"
        )
    tokens, pairs = of("tokens"), of("merges")
    for name, value in (("tokens", tokens), ("merges", pairs)):
        if not isinstance(value, list):
            raise ValueError(f"the file has no tokenizer.ggml.{name}: fetch it again")
    types = of("token_type", [])
    typed = lambda wanted: [
        token for token, has in zip(tokens, types, strict=False) if has == wanted
    ]
    fillers = set(typed(UNUSED))  # rows that only pad the embedding
    vocabulary = {token: i for i, token in enumerate(tokens) if token not in fillers}
    merges = [tuple(merge.split(" ")) for merge in pairs]

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in typed(CONTROL)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in typed(USER_DEFINED)])
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: of(f"{name}_token_id") for role, name in roles.items()}
    for role, name in roles.items():
        key = f"tokenizer.ggml.{name}_token_id"
        token_ids({key: ids[role]}, "the file", len(tokens), key)
    if ids["bos"] is not None and of("add_bos_token", pre == "llama-bpe"):
        bos = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids["bos"])]
        )
    special = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
    template = metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **special,
    )
