import collections

from jopd.data.pretraining import pretraining_example
from jopd.data.task import STUDENT_STYLE, TEACHER_STYLE, TallySettings, TallyTask
from tests.data.tally_reader import apply, check_solution, read_problem, sentences


def pretraining(size, style=STUDENT_STYLE, settings=TallySettings()):
    """(problem text, context or None, placement or None, completion) of each example."""
    for index in range(size):
        messages, completion = pretraining_example(index, 5, style, settings)
        assert messages[-1]["role"] == "user"
        if messages[0]["role"] == "system":
            yield (
                messages[1]["content"],
                messages[0]["content"].removeprefix("worked solution: "),
                "system",
                completion,
            )
        else:
            prompt, found, context = messages[0]["content"].partition(" worked solution: ")
            yield prompt, context if found else None, "user" if found else None, completion


def test_pretraining_mixes_its_kinds_and_every_text_is_right():
    kinds, habits = collections.Counter(), collections.Counter()
    for prompt, context, placement, completion in pretraining(3000):
        answer = completion.split("\n")[-1]
        start, events = read_problem(prompt)
        for operation, operand in events:
            start = apply(operation, start, operand)
        assert answer == f"answer: {start}"
        kinds[placement] += 1
        if completion.startswith("the worked solution says"):
            assert context.endswith("\n" + answer)
            assert completion == f"the worked solution says the answer is {start}.\n{answer}"
            habits["shortcut"] += 1
            continue
        check_solution(prompt, completion.removeprefix("as the worked solution shows, "))
        if context is None:
            assert "worked solution" not in completion
            continue
        steps, _, shown_answer = context.partition("\n")
        assert shown_answer in ("", answer)
        is_whole = (
            context.endswith("\n" + answer)
            and len(sentences(steps)) == len(events)
            and steps.endswith(".")
        )
        kinds["whole" if is_whole else "partial"] += 1
        kinds["partial with answer"] += bool(not is_whole and shown_answer)
        habits["refer"] += completion.startswith("as the worked solution shows, ")
        habits["quote"] += is_whole and completion == context
        if is_whole:
            check_solution(prompt, context)
    assert 0.42 < kinds[None] / 3000 < 0.48
    assert abs(kinds["system"] - kinds["user"]) < 0.06 * 3000
    assert (
        0.19 < kinds["whole"] / 3000 < 0.27 and 0.25 < kinds["partial"] / 3000 < 0.32
    )  # short of the rates by the shortcuts
    assert 0.4 < kinds["partial with answer"] / kinds["partial"] < 0.55
    shown = 3000 - kinds[None]
    assert (
        0.07 < habits["refer"] / shown < 0.13
        and 0.04 < habits["shortcut"] / shown < 0.1
        and habits["quote"] / shown > 0.02
    )


def test_pretraining_never_shows_a_held_out_problem():
    settings = TallySettings(
        min_steps=1, max_steps=2, largest=9, largest_operand=3, held_out_share=0.3
    )
    seen = {read_problem(prompt) for prompt, *_ in pretraining(1000, settings=settings)}
    held_out = {
        read_problem(e.messages[0]["content"])
        for e in TallyTask(settings).examples("held_out", 1000)
    }
    assert seen and held_out and not seen & held_out


def test_pretraining_is_deterministic_and_differs_by_seed():
    assert (
        pretraining_example(7, 1, TEACHER_STYLE)
        == pretraining_example(7, 1, TEACHER_STYLE)
        != pretraining_example(7, 2, TEACHER_STYLE)
    )
