import dataclasses

import pytest

from jopd.data.example import Example, Message
from jopd.data.task import TallyTask
from jopd.data.tokenizer import build
from jopd.data.views import VIEWS, ViewConfig, describe, render, render_reference, stop_token

TOKENIZER = build()
USER = Message(role="user", content="how many are left?")
PLAIN = Example("e1", (USER,))
SOLVED = dataclasses.replace(PLAIN, solution="half of 8 is 4.\nanswer: 4")
TOLD = dataclasses.replace(SOLVED, context="you are good at numbers.")
WITH_SYSTEM = dataclasses.replace(TOLD, messages=(Message(role="system", content="be good."), USER))


def text(example, view, **config):
    return TOKENIZER.decode(render(example, view, TOKENIZER, ViewConfig(**config)))


def with_template(template, **settings):
    tokenizer = build()
    tokenizer.chat_template = template
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize("view", ["student", "teacher", "plain"])
def test_a_plain_view_shows_the_messages_up_to_where_the_completion_begins(view):
    assert text(TOLD, view) == "<|user|> how many are left? <|end|> <|assistant|>"


@pytest.mark.parametrize("view", ["privileged", "full"])
def test_a_privileged_view_shows_the_context_or_else_the_solution(view):
    assert text(TOLD, view).startswith(
        "<|system|> you are good at numbers. <|end|> <|user|> how many are left? <|end|>"
    )
    assert text(SOLVED, view).startswith("<|system|> worked solution: half of 8 is 4.\nanswer: 4 <|end|> <|user|> how")


def test_a_context_can_follow_the_users_words():
    ids = render(SOLVED, "privileged", TOKENIZER, ViewConfig(context_placement="user"))
    # As the built-in models were trained: one space.
    said = "how many are left? worked solution: half of 8 is 4.\nanswer: 4"
    assert ids == TOKENIZER.encode(f"<|user|>{said}<|end|><|assistant|>")
    own_space = text(TOLD, "privileged", context_placement="user", context_template="\nlook: {context}")
    assert own_space.startswith("<|user|> how many are left?\nlook: you are good at numbers. <|end|>")


def test_a_context_follows_the_system_message_that_is_there():
    assert text(WITH_SYSTEM, "full").startswith("<|system|> be good.\n\nyou are good at numbers. <|end|> <|user|>")
    assert text(WITH_SYSTEM, "student").startswith("<|system|> be good. <|end|> <|user|>")


def test_a_system_prompt_is_for_every_view_of_who_has_none():
    assert text(TOLD, "student", system_prompt="please.").startswith("<|system|> please. <|end|> <|user|>")
    assert text(TOLD, "full", system_prompt="please.").startswith("<|system|> please.\n\nyou are good")
    assert text(WITH_SYSTEM, "student", system_prompt="please.").startswith("<|system|> be good. <|end|>")


def test_templates_may_hold_braces():
    assert "so: {4} {}" in text(dataclasses.replace(PLAIN, context="{4}"), "full", context_template="so: {context} { }")


def test_the_thinking_switch_reaches_the_template_in_every_view():
    tokenizer = with_template(
        "{{ messages[-1]['content'] }}{% if enable_thinking is defined and not enable_thinking %}no thought{% endif %}"
    )
    for view in VIEWS:
        for thinking, seen in ((None, False), (True, False), (False, True)):
            ids = render(TOLD, view, tokenizer, ViewConfig(thinking=thinking))
            assert tokenizer.decode(ids).endswith("no <|unk|>") == seen


def test_a_reference_ends_as_the_chat_template_ends_a_turn():
    ids = render_reference(SOLVED, TOKENIZER)
    assert TOKENIZER.decode(ids) == "half of 8 is 4.\nanswer: 4 <|end|>"
    assert ids[-1] == TOKENIZER.eos_token_id
    # The end of a turn may be another token than the end of a text, and line breaks may follow it.
    turns = "{% for m in messages %}{{ m['content'] }}<|system|>\n{% endfor %}"
    assert stop_token(with_template(turns)) == TOKENIZER.convert_tokens_to_ids("<|system|>")
    nothing = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert stop_token(with_template(nothing)) == TOKENIZER.eos_token_id
    with pytest.raises(ValueError, match=r"nothing ends an assistant's turn .* set the tokenizer's eos_token"):
        stop_token(with_template(nothing, eos_token=None))


def test_a_prompt_and_its_reference_are_the_whole_conversation():
    example = TallyTask().example(0, "train")
    turns = [*example.messages, {"role": "assistant", "content": example.solution}]
    whole = TOKENIZER.apply_chat_template(turns, return_dict=False)
    assert render(example, "student", TOKENIZER, ViewConfig()) + render_reference(example, TOKENIZER) == whole


def test_describe_shows_what_the_model_gets():
    shown = describe(TOLD, ("student", "privileged"), TOKENIZER, ViewConfig())
    assert shown == {view: text(TOLD, view) for view in ("student", "privileged")}


def test_refusals():
    def refuse(message, example=TOLD, view="full", tokenizer=TOKENIZER, **config):
        with pytest.raises(ValueError, match=message):
            render(example, view, tokenizer, ViewConfig(**config))

    refuse("view='teachr' is not known: use one of student, teacher, plain, privileged, full", view="teachr")
    refuse("example e1 has neither a context nor a solution for a privileged view: add one", example=PLAIN)
    refuse("thinking=False: the chat template of .* has no such switch: leave it unset", thinking=False)
    refuse("has no chat template: use an instruct model", tokenizer=with_template(None))
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    refuse(
        r"e1: .* refuses its messages \(no system role\): set context_placement=user",
        tokenizer=with_template(no_system),
    )
    never = "{{ raise_exception('roles must alternate') }}"
    refuse(r"refuses its messages \(roles must alternate\): change its", view="plain", tokenizer=with_template(never))
    with pytest.raises(ValueError, match="example e1 has no solution to use as a reference completion: add one"):
        render_reference(PLAIN, TOKENIZER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_template": "look:"}, "context_template='look:' shows no context: put {context} where it belongs"),
        ({"system_prompt": " "}, "system_prompt=' ' is blank: leave it unset"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ViewConfig(**settings)
