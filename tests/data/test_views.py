import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd.data.chat import Chat
from jopd.data.example import Example, Message
from jopd.data.pretraining import partial_context
from jopd.data.task import NEUTRAL_STYLE, TallyTask, worked_steps
from jopd.data.tokenizer import build
from jopd.data.views import VIEWS, ViewConfig, describe, render, render_reference, shown

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


@pytest.mark.parametrize("view", ["student", "teacher", "plain", "initial"])
def test_a_plain_view_shows_the_messages_up_to_where_the_completion_begins(view):
    assert text(TOLD, view) == "<|user|> how many are left? <|end|> <|assistant|>"


@pytest.mark.parametrize("view", ["privileged", "full"])
def test_a_privileged_view_shows_the_context_or_else_the_solution(view):
    assert text(TOLD, view).startswith(
        "<|system|> you are good at numbers. <|end|> <|user|> how many are left? <|end|>"
    )
    assert text(SOLVED, view).startswith(
        "<|system|> worked solution: half of 8 is 4.\nanswer: 4 <|end|> <|user|> how"
    )


def part(solution, answer="4", check="number", **config):
    example = dataclasses.replace(PLAIN, solution=solution, answer=answer, answer_check=check)
    return shown("partial")(example, ViewConfig(context_template="{context}", **config))


@pytest.mark.parametrize(
    ("solution", "share", "without", "kept"),
    [
        # Of 15 characters of reasoning 7 end with "of", 6 inside it, 9 with "8", 14 inside the last
        # word.
        ("half of 8 is 4.\nanswer: 4", 0.5, "half of", "half of\nanswer: 4"),
        ("half of 8 is 4.\nanswer: 4", 0.45, "half", "half\nanswer: 4"),
        ("half of 8 is 4.\nanswer: 4", 0.6, "half of 8", "half of 8\nanswer: 4"),
        ("half of 8 is 4.\nanswer: 4", 0.99, "half of 8 is", "half of 8 is\nanswer: 4"),
        # At least one word.
        ("half of 8 is 4.\nanswer: 4", 0.01, "half", "half\nanswer: 4"),
        ("four\nanswer: 4", 0.5, "four", "four\nanswer: 4"),
        # White space inside stays as it is, at the ends it does not count.
        ("half\n\n  of 8 is\n 4.\n\n#### 4 \n", 0.6, "half\n\n  of", "half\n\n  of\n#### 4"),
        # No line of its own holds the answer: all of it is reasoning, and a kept answer gets its
        # line.
        ("half of 8 is 4.", 0.5, "half of", "half of\nanswer: 4"),
        ("half of 8\nis four.", 0.55, "half of 8", "half of 8\nanswer: 4"),
        ("2 by 7\nis 14 or 4.5 or x4", 0.25, "2 by 7", "2 by 7\nanswer: 4"),
        # The line may say more than the answer.
        # Seven letters, and no space between them; a number stays whole.
        ("八的一半是4。\nanswer: 4", 0.5, "八的一", "八的一\nanswer: 4"),
        ("八加16等于24。\nanswer: 4", 0.4, "八加", "八加\nanswer: 4"),
        ("half of 8?\nso she has 4, no more.", 0.8, "half of", "half of\nso she has 4, no more."),
    ],
)
def test_a_partial_view_is_cut_between_two_words(solution, share, without, kept):
    assert part(solution, partial_share=share) == without
    assert part(solution, partial_share=share, partial_keeps_answer=True) == kept


def test_a_partial_view_keeps_only_an_answer_that_there_is():
    assert (
        part("half of 8 is 4.\nanswer: 4", answer=None, partial_keeps_answer=True) == "half of 8 is"
    )
    # A pattern is looked for, but not shown.
    assert (
        part("who?\nI am Zorblax.", "(?i)zorblax", "regex", partial_keeps_answer=True)
        == "who?\nI am Zorblax."
    )
    assert part("who are you?", "(?i)zorblax", "regex", partial_keeps_answer=True) == "who"


def test_a_partial_view_shows_its_part_as_the_full_one_shows_the_whole():
    assert text(SOLVED, "partial").startswith(
        "<|system|> worked solution: half of 8 is <|end|> <|user|> how"
    )
    assert text(TOLD, "partial").startswith("<|system|> you are good <|end|> <|user|> how")
    assert "so: half of 8 is <|end|>" in text(SOLVED, "partial", context_template="so: {context}")


def test_a_partial_view_of_the_task_is_what_the_built_in_models_were_trained_on():
    task = TallyTask()
    seen = {True: 0, False: 0}
    for index in range(40):
        rng = np.random.default_rng(index)
        problem = task.problem(index, "train")
        context = partial_context(problem, NEUTRAL_STYLE, rng)
        # Its sentences, and hence the whole solution, are the first that this generator draws.
        steps = " ".join(worked_steps(problem, NEUTRAL_STYLE, np.random.default_rng(index)))
        length = len(context.text.split("\n")[0])
        example = dataclasses.replace(
            PLAIN, solution=f"{steps}\n{problem.answer_line}", answer=problem.answer
        )
        config = ViewConfig(
            partial_share=(length + 0.5) / len(steps), partial_keeps_answer=context.has_answer
        )
        assert shown("partial")(example, config) == f"worked solution: {context.text}"
        seen[context.has_answer] += 1
    assert min(seen.values()) > 5


WORDS = st.lists(st.text("ab4. ,\n", max_size=6), min_size=1, max_size=12).map(" ".join)


@given(solution=WORDS, share=st.floats(0.01, 0.99))
def test_a_partial_view_is_a_prefix_that_ends_with_a_word(solution, share):
    reasoning = part(solution, partial_share=share)
    assert solution.startswith(reasoning)
    rest = solution[len(reasoning) :]
    assert reasoning == reasoning.rstrip() and (not rest or rest[0].isspace())
    assert bool(reasoning) == bool(solution.strip())
    assert len(reasoning) <= share * len(solution) or len(reasoning.split()) == 1
    assert part(solution, partial_share=share, partial_keeps_answer=True).startswith(reasoning)


def test_a_context_can_follow_the_users_words():
    ids = render(SOLVED, "privileged", TOKENIZER, ViewConfig(context_placement="user"))
    # As the built-in models were trained: one space.
    said = "how many are left? worked solution: half of 8 is 4.\nanswer: 4"
    assert ids == TOKENIZER.encode(f"<|user|>{said}<|end|><|assistant|>")
    own_space = text(
        TOLD, "privileged", context_placement="user", context_template="\nlook: {context}"
    )
    assert own_space.startswith(
        "<|user|> how many are left?\nlook: you are good at numbers. <|end|>"
    )


def test_a_context_follows_the_system_message_that_is_there():
    assert text(WITH_SYSTEM, "full").startswith(
        "<|system|> be good.\n\nyou are good at numbers. <|end|> <|user|>"
    )
    assert text(WITH_SYSTEM, "student").startswith("<|system|> be good. <|end|> <|user|>")


def test_a_system_prompt_is_for_every_view_of_who_has_none():
    assert text(TOLD, "student", system_prompt="please.").startswith(
        "<|system|> please. <|end|> <|user|>"
    )
    assert text(TOLD, "full", system_prompt="please.").startswith(
        "<|system|> please.\n\nyou are good"
    )
    assert text(WITH_SYSTEM, "student", system_prompt="please.").startswith(
        "<|system|> be good. <|end|>"
    )


def test_templates_may_hold_braces():
    assert "so: {4} {}" in text(
        dataclasses.replace(PLAIN, context="{4}"), "full", context_template="so: {context} { }"
    )


def test_the_thinking_switch_reaches_the_template_in_every_view():
    tokenizer = with_template(
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if enable_thinking is defined "
        "and not enable_thinking %}no thought{% endif %}"
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
    assert Chat(with_template(turns)).stop_token == TOKENIZER.convert_tokens_to_ids("<|system|>")
    nothing = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert Chat(with_template(nothing)).stop_token == TOKENIZER.eos_token_id
    with pytest.raises(
        ValueError, match=r"nothing ends an assistant's turn .* set the tokenizer's eos_token"
    ):
        _ = Chat(with_template(nothing, eos_token=None)).stop_token


def test_a_prompt_and_its_reference_are_the_whole_conversation():
    example = TallyTask().example(0, "train")
    turns = [*example.messages, {"role": "assistant", "content": example.solution}]
    whole = TOKENIZER.apply_chat_template(turns, return_dict=False)
    assert (
        render(example, "student", TOKENIZER, ViewConfig()) + render_reference(example, TOKENIZER)
        == whole
    )


def test_describe_shows_what_the_model_gets():
    shown = describe(TOLD, ("student", "privileged"), TOKENIZER, ViewConfig())
    assert shown == {view: text(TOLD, view) for view in ("student", "privileged")}


def test_refusals():
    def refuse(message, example=TOLD, view="full", tokenizer=TOKENIZER, **config):
        with pytest.raises(ValueError, match=message):
            render(example, view, tokenizer, ViewConfig(**config))

    refuse(
        "view='teachr' is not known: use one of student, teacher, plain, privileged, full",
        view="teachr",
    )
    refuse(
        "example e1 has neither a context nor a solution for a privileged view: add one",
        example=PLAIN,
    )
    refuse("example e1 has neither a context nor a solution", example=PLAIN, view="partial")
    refuse(
        "thinking=False: the chat template of .* has no such switch: leave it unset", thinking=False
    )
    refuse("has no chat template: use an instruct model", tokenizer=with_template(None))
    no_system = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    refuse(
        r"e1: .* refuses its messages \(no system role\): set context_placement=user",
        tokenizer=with_template(no_system),
    )
    never = "{{ raise_exception('roles must alternate') }}"
    refuse(
        r"refuses its messages \(roles must alternate\): change its",
        view="plain",
        tokenizer=with_template(never),
    )
    with pytest.raises(
        ValueError, match="example e1 has no solution to use as a reference completion: add one"
    ):
        render_reference(PLAIN, TOKENIZER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"context_template": "look:"},
            "context_template='look:' shows no context: put {context} where it belongs",
        ),
        ({"partial_share": 0.0}, r"partial_share=0.0 must lie in \(0, 1\)"),
        ({"partial_share": 1.0}, "all of a solution is what the view full shows"),
        ({"partial_share": float("nan")}, "partial_share=nan must lie"),
        ({"system_prompt": " "}, "system_prompt=' ' is blank: leave it unset"),
        ({"template": "none"}, "template='none' is not known: use chat or raw"),
        ({"date": "26 Jul 2024"}, "date='26 Jul 2024' is no day: write YYYY-MM-DD"),
    ],
)
def test_bad_settings_are_refused(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        ViewConfig(**settings)


DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|system|>be kind.<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("example", "settings", "student", "told"),
    [
        (TOLD, {}, "be kind.", "be kind.\n\nyou are good at numbers."),
        (WITH_SYSTEM, {}, "be good.", "be good.\n\nyou are good at numbers."),
        (TOLD, {"system_prompt": "please."}, "please.", "please.\n\nyou are good at numbers."),
    ],
)
def test_a_context_takes_the_place_of_nothing_that_the_student_sees(
    example, settings, student, told
):
    tokenizer = with_template(DEFAULT)
    shown = lambda view: tokenizer.decode(render(example, view, tokenizer, ViewConfig(**settings)))
    rest = "<|end|> <|user|> how many are left? <|end|> <|assistant|>"
    assert shown("student") == f"<|system|> {student} {rest}"
    assert shown("privileged") == f"<|system|> {told} {rest}"


THINKS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)


def test_a_reference_goes_on_inside_the_thought_that_the_prompt_opens():
    tokenizer = with_template(THINKS)
    with pytest.raises(
        ValueError, match=r"e1: .* opens a thought \(<think>\).* set view.thinking=false"
    ) as error:
        render_reference(SOLVED, tokenizer)
    assert "\n" not in str(error.value)
    # An empty thought stands in the prompt, and the reference is the answer.
    off = ViewConfig(thinking=False)
    assert render_reference(SOLVED, tokenizer, off) == render_reference(SOLVED, TOKENIZER)
    prompt = tokenizer.decode(render(SOLVED, "student", tokenizer, off))
    assert prompt.replace(" ", "").endswith("<|assistant|><think>\n\n</think>\n\n")
    # A solution with its thought: the prompt has its first mark already.
    goes_on = "half of 8.\n</think>\n4"
    expected = [*tokenizer.encode(goes_on, add_special_tokens=False), tokenizer.eos_token_id]
    for solution in (goes_on, f"<think>{goes_on}", f"<think>\n{goes_on}"):
        example = dataclasses.replace(SOLVED, solution=solution)
        assert render_reference(example, tokenizer) == expected


def test_a_base_model_reads_the_words_alone():
    tokenizer, raw = with_template(None), ViewConfig(template="raw")
    assert render(TOLD, "student", tokenizer, raw) == tokenizer.encode("how many are left?\n\n")
    assert render(TOLD, "privileged", tokenizer, raw) == tokenizer.encode(
        "you are good at numbers.\n\nhow many are left?\n\n"
    )
    assert render_reference(SOLVED, tokenizer, raw) == [
        *tokenizer.encode("half of 8 is 4.\nanswer: 4"),
        tokenizer.eos_token_id,
    ]
