import datetime

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jopd.data.chat import Chat
from jopd.data.example import Message
from jopd.data.views import ViewConfig, remarks

USER, SYSTEM = Message(role="user", content="Hi."), Message(role="system", content="Be brief.")

# Qwen2.5's, without its tools.
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] "
    "+ '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif "
    "%}{%- for m in messages %}{%- if m.role != 'system' or not loop.first %}{{- '<|im_start|>' + "
    "m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if "
    "add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# DeepSeek-R1's: a system prompt has no marks, and a prompt ends inside a thought.
R1 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ '<|bos|>' + ns.system }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<|Assistant|>' + m['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# Llama 3.2's: every prompt has a system turn, which tells the day.
LLAMA = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}{%- else %}{%- "
    "set today = '26 Jul 2024' %}{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set "
    "system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set "
    "system = '' %}{%- endif %}{{- '<h>system<e>Today Date: ' + today + '\n\n' + system + "
    "'<|eot|>' }}{%- for m in messages %}{{- '<h>' + m['role'] + '<e>' + m['content'] + '<|eot|>' "
    "}}{%- endfor %}{%- if add_generation_prompt %}{{- '<h>assistant<e>' }}{%- endif %}"
)
SILENT = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
STERN = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + SILENT
OTHERWISE = (  # what it says without a system message, it can't be made to say as one
    "{% if messages[0].role == 'system' %}{{ 'S:' + messages[0].content }}{% else %}default"
    "{% endif %}{{ messages[-1].content }}"
)


def chat_with(chat_template, **settings):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|im_end|>", "<|eot|>", "<|bos|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template=chat_template
    )
    return Chat(tokenizer, **settings)


def said(chat, *turns):
    return chat.tokenizer.decode(chat.prompt(turns, "it"))


@pytest.mark.parametrize(
    ("template", "default"),
    [
        (QWEN, "You are Qwen."),
        (R1, ""),
        (LLAMA, ""),
        (STERN, ""),
        (OTHERWISE, None),
        ("{{ bos }}{% for m in messages %}{{ m.role + m.content }}{% endfor %}", ""),
    ],
)
def test_the_default_system_prompt_is_what_a_template_writes_for_want_of_one(template, default):
    assert chat_with(template).default_system == default


def test_a_template_that_leaves_system_messages_out_is_refused():
    with pytest.raises(ValueError, match="leaves system messages out: set context_placement=user"):
        _ = chat_with(SILENT).default_system


@pytest.mark.parametrize("date", ["2024-07-26", "2025-01-02"])
def test_a_template_that_asks_for_the_day_gets_that_of_the_settings(date):
    chat = chat_with(LLAMA, date=date)
    day = datetime.date.fromisoformat(date).strftime("%d %b %Y")
    expected = f"<h>system<e>Today Date: {day}\n\nBe brief.<|eot|><h>user<e>Hi.<|eot|>"
    assert said(chat, SYSTEM, USER) == expected + "<h>assistant<e>"


def test_every_format_of_a_day_is_written_and_nothing_around_it_changes():
    wanted = "%Y-%m-%d %A %-d. %B %y %H:%M %j"
    template = "\n  {{ strftime_now('" + wanted + "') }}\n{% if true %}\n a{% endif %}\nb"
    written = said(chat_with(template, date="2025-03-09"), USER)
    assert written == "\n  2025-03-09 Sunday 9. March 25 00:00 068\n ab"
    plain = template.replace("strftime_now", "'2025-03-09 Sunday 9. March 25 00:00 068' or ")
    assert written == said(chat_with(plain), USER)


def test_a_thought_that_a_template_opens_stays_open_or_is_closed_empty():
    thinks, answers = chat_with(R1), chat_with(R1, thinking=False)
    assert (thinks.opens_thought, answers.opens_thought) == (True, False)
    assert said(thinks, USER) == "<|bos|><|User|>Hi.<|Assistant|><think>\n"
    # As Qwen3's template writes it where thinking is off.
    assert said(answers, USER) == "<|bos|><|User|>Hi.<|Assistant|><think>\n\n</think>\n\n"
    assert not chat_with(QWEN).opens_thought


def test_raw_prompts_are_the_words_with_blank_lines():
    chat = chat_with(None, template="raw")
    assert said(chat, SYSTEM, USER) == "Be brief.\n\nHi.\n\n"
    assert said(chat, Message(role="user", content="Q: 2?\nA: ")) == "Q: 2?\nA: "
    assert chat.tokenizer.convert_ids_to_tokens(chat.stop_token) == "<|end|>"


@pytest.mark.parametrize(
    ("template", "end"),
    [(QWEN, "<|im_end|>"), (R1, "<|end|>"), (LLAMA, "<|eot|>"), ("{{ '<|bos|>a' }}", "<|end|>")],
)
def test_a_turn_ends_with_the_first_special_token_after_its_words(template, end):
    chat = chat_with(template)
    assert chat.tokenizer.convert_ids_to_tokens(chat.stop_token) == end


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (QWEN, {"thinking": True}, "thinking=True: .* no such switch: leave it unset"),
        (QWEN, {"date": "2025-01-02"}, "date=2025-01-02: .* hold no date: leave it"),
        ("{{ 'a'() }}", {}, "it: the chat template refuses its messages .*: change its messages"),
        (None, {}, "no chat template: .* or set view.template=raw"),
    ],
)
def test_a_setting_that_a_template_can_not_follow_is_refused(template, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        said(chat_with(template, **settings), USER)
    assert "\n" not in str(error.value)


def test_raw_has_no_thinking_switch():
    with pytest.raises(ValueError, match="template=raw has no such switch"):
        Chat(chat_with(None).tokenizer, template="raw", thinking=True)


def test_what_a_template_brings_is_remarked_once():
    of = lambda template, *views, **settings: remarks(
        chat_with(template).tokenizer, views, ViewConfig(**settings)
    )
    assert of(QWEN, "teacher") == of(R1, "privileged") == []
    assert of(QWEN, "privileged", context_placement="user") == []
    assert of(QWEN, "privileged", system_prompt="Be good.") == []
    (line,) = of(QWEN, "privileged")
    assert "'You are Qwen.'" in line and "differ by the context alone" in line
    (line,) = of(OTHERWISE, "full")
    assert "differ by it too; set view.system_prompt" in line
    (line,) = of(LLAMA, "privileged")
    assert "view.date=2024-07-26" in line
    (line,) = of(R1, "teacher", thinking=False)
    assert "every prompt closes it, empty" in line
