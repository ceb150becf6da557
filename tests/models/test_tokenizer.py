"""Tokenizers of folders, against `tokenizers` on the same file."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from jopd.models import tokenizer as loading
from jopd.models.tokenizer import tokenizer_from

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = {token: i for i, token in enumerate([*ALPHABET, "20", "23", "he", "Ġa"])}
TEXTS = ("2023 and 1234567", "a b  c , . 's", " \n\n\tx", "日本 café 👍🏽", "a<end> b <think> c")


def backend():
    """Digits by up to three from the left, then 20|2|3 since no token is 202."""
    made = Tokenizer(BPE(VOCABULARY, [("2", "0"), ("2", "3"), ("h", "e"), ("Ġ", "a")]))
    digits = Regex(r"\p{N}{1,3}| ?\p{L}+|\s+| ?[^\s\p{L}\p{N}]+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(digits, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<begin>", "<end>"])
    made.add_tokens(["<think>"])
    begin = made.token_to_id("<begin>")
    made.post_processor = processors.TemplateProcessing(
        single="<begin> $A", pair="<begin> $A $B", special_tokens=[("<begin>", begin)]
    )
    return made


@pytest.fixture
def folder(tmp_path):
    """`make(tokenizer_class, ...) -> folder` of a Llama's shape, without weights."""

    def make(tokenizer_class, file=None, **settings):
        (file or backend()).save(str(tmp_path / "tokenizer.json"))
        special = {"bos_token": "<begin>", "eos_token": "<end>", "chat_template": "{{ messages }}"}
        config = {"tokenizer_class": tokenizer_class, **special, **settings}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("tokenizer_class", "settings"),
    [
        ("GPT2Tokenizer", {}),
        ("Qwen2Tokenizer", {}),
        ("LlamaTokenizer", {"add_bos_token": True, "legacy": False}),
        ("LlamaTokenizerFast", {"add_bos_token": True, "add_eos_token": False}),
        ("PreTrainedTokenizerFast", {"clean_up_tokenization_spaces": True}),
        ("TokenizersBackend", {}),
        ("NoSuchTokenizer", {}),
    ],
)
def test_the_file_decides_whatever_class_is_named(tokenizer_class, settings, folder):
    path = folder(tokenizer_class, **settings)
    tokenizer, stated = tokenizer_from(path), Tokenizer.from_file(str(path / "tokenizer.json"))
    tokens = ["20", "2", "3"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("2023", add_special_tokens=False)) == (
        tokens
    )
    for text in TEXTS:
        ids = stated.encode(text).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids[1:]) == text
        assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<begin>", "<end>")
    assert tokenizer.chat_template == "{{ messages }}"


def test_somebodys_padding_and_cutting_are_not_read(folder):
    file = backend()
    file.enable_padding(length=8)
    file.enable_truncation(4)
    tokenizer = tokenizer_from(folder("PreTrainedTokenizerFast", file))
    assert tokenizer.decode(tokenizer.encode("he is a", add_special_tokens=False)) == "he is a"


def test_what_was_loaded_otherwise_is_built_again_from_the_file(folder, monkeypatch):
    path = folder("GPT2Tokenizer")
    monkeypatch.setattr(loading, "PreTrainedTokenizerFast", Otherwise)
    tokenizer = tokenizer_from(path)
    assert (
        tokenizer.encode("2023", add_special_tokens=False)
        == backend().encode("2023", add_special_tokens=False).ids
    )
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<end>", "{{ messages }}")
    assert tokenizer.name_or_path == str(path)


class Otherwise(loading.PreTrainedTokenizerFast):
    """As a class that splits in its own way when it is loaded."""

    @classmethod
    def from_pretrained(cls, folder):
        tokenizer = loading.AutoTokenizer.from_pretrained(folder)
        assert len(tokenizer.encode("2023")) != 4
        return tokenizer


def test_what_can_not_be_made_equal_is_refused_in_one_line(folder, monkeypatch):
    monkeypatch.setattr(loading, "PreTrainedTokenizerFast", Otherwise)
    monkeypatch.setattr(loading, "in_plain_clothes", lambda tokenizer, stated: tokenizer)
    with pytest.raises(ValueError, match="not as its tokenizer.json does: keep the one") as error:
        tokenizer_from(folder("GPT2Tokenizer"))
    assert "\n" not in str(error.value)
