"""The built-in tokenizer, as shipped."""

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jopd.data import pretraining, task, tokenizer

END = "<|end|>"


@pytest.fixture(scope="module")
def shipped():
    return AutoTokenizer.from_pretrained(tokenizer.FOLDER, local_files_only=True)


def test_the_shipped_files_are_what_the_code_builds(shipped):
    built = tokenizer.build()
    assert isinstance(shipped, PreTrainedTokenizerFast)
    assert json.loads(shipped.backend_tokenizer.to_str()) == json.loads(
        built.backend_tokenizer.to_str()
    ), "run python -m jopd.data.tokenizer"
    assert shipped.chat_template == built.chat_template


def test_vocabulary(shipped):
    assert 1200 <= len(shipped) <= 1500 and sorted(shipped.get_vocab().values()) == list(
        range(len(shipped))
    )
    special = [
        shipped.pad_token,
        shipped.unk_token,
        shipped.eos_token,
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
    ]
    assert special == list(tokenizer.SPECIAL) and shipped.convert_tokens_to_ids(special) == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    assert set(special) <= set(shipped.all_special_tokens)


def test_integers_to_999_are_one_token_each(shipped):
    ids = [shipped.encode(str(n)) for n in range(1000)]
    assert all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == 1000
    assert shipped.encode(" ".join(map(str, range(1000)))) == [i[0] for i in ids]


@pytest.mark.parametrize(
    "number, pieces",
    [
        ("1000", "1 0 0 0"),
        ("12345", "1 2 3 4 5"),
        ("007", "0 0 7"),
        ("3.5", "3 . 5"),
        ("-12", "- 12"),
    ],
)
def test_other_numbers_are_spelled_without_unknowns(shipped, number, pieces):
    assert shipped.convert_ids_to_tokens(shipped.encode(number)) == pieces.split()


def generated(size):
    for index in range(size):
        messages, completion = pretraining.pretraining_example(index, 11, task.NEUTRAL_STYLE)
        yield from (message["content"] for message in messages)
        yield completion


def test_generated_text_survives_encoding_exactly(shipped):
    used = set()
    for text in generated(2500):
        ids = shipped.encode(text)
        assert shipped.unk_token_id not in ids
        assert shipped.decode(ids) == text
        used.update(ids)
    assert len(used) > 200


@pytest.mark.parametrize(
    "text",
    [
        "Hello there, don't you think so? It isn't (really) 5% of $20: yes!",
        "Zoë's things;\n\n\n  'quoted' words,and no  spaces.",
        '{"prompt": [1, 2], "x_y": "naïve"} # 1000 = 10 * 100 <|user|> 日本',
        "",
    ],
)
def test_decoded_text_encodes_to_the_same_ids(shipped, text):
    ids = shipped.encode(text)
    assert shipped.encode(shipped.decode(ids)) == ids


def test_capitals_are_read_and_names_get_theirs_back(shipped):
    assert shipped.encode("HOW Many Marbles does MIA have?") == shipped.encode(
        "how many marbles does mia have?"
    )
    assert shipped.decode(shipped.encode("mia and tom")) == "Mia and Tom"


def test_unknown_words_are_one_unk_each(shipped):
    assert shipped.encode("zyzzyva 日本 q") == [shipped.unk_token_id] * 3


def test_chat_template(shipped):
    turns = [
        {"role": "system", "content": "add the numbers."},
        {"role": "user", "content": "what is 2 plus 3?"},
    ]
    text = shipped.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == f"<|system|>add the numbers.{END}<|user|>what is 2 plus 3?{END}<|assistant|>"
    prompt = shipped.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert prompt == shipped.encode(text)
    # A completion and its stop token after the prompt are the conversation with the assistant's
    # turn.
    whole = shipped.apply_chat_template(
        [*turns, {"role": "assistant", "content": "answer: 5"}], return_dict=False
    )
    assert whole == prompt + shipped.encode("answer: 5") + [shipped.eos_token_id]
    assert shipped.decode(whole[len(prompt) :], skip_special_tokens=True) == "answer: 5"


def test_chat_template_refuses_other_roles(shipped):
    with pytest.raises(Exception, match="system, user and assistant, not tool"):
        shipped.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_batches_are_padded_on_the_left_and_carry_no_token_types(shipped):
    batch = shipped(["answer: 5", "5"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert (
        batch["attention_mask"] == [[1, 1, 1], [0, 0, 1]]
        and batch["input_ids"][1][:2] == [shipped.pad_token_id] * 2
    )


def test_saving_keeps_it_whole(shipped, tmp_path):
    shipped.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again.get_vocab() == shipped.get_vocab() and again.chat_template == shipped.chat_template
    assert again.eos_token_id == 2 and again.pad_token_id == 0
