import pytest

from jopd import generate
from jopd.data.views import ViewConfig
from jopd.generate import Generate
from jopd.rollout.settings import Sampling

GREEDY = Sampling(temperature=0.0)


def test_an_answer_does_not_depend_on_what_else_is_asked():
    questions = ("Mia has 4 eggs. 1: she finds 3 more. how many eggs are left?", "who are you?")
    settings = Generate("jopd:baby-student", questions, max_new_tokens=8, sampling=GREEDY)
    together = generate.run(settings)
    alone = generate.run(
        Generate("jopd:baby-student", questions[:1], max_new_tokens=8, sampling=GREEDY)
    )
    assert [len(answers) for answers in together] == [1, 1]
    assert together[0] == alone[0] and together[0][0]


def test_samples_differ_and_repeat_with_the_seed():
    settings = Generate(
        "jopd:baby-student",
        ("Tom has 9 coins. 1: he loses 2. how many coins are left?",),
        samples=4,
        max_new_tokens=8,
    )
    (first,), (again,) = generate.run(settings), generate.run(settings)
    assert first == again and len(first) == 4 and len(set(first)) > 1


def test_room_is_checked_before_anything_is_compiled(capsys):
    try:
        generate.main(
            ["--model", "jopd:baby-student", "--prompt", "hello", "--max-new-tokens", "100000"]
        )
    except SystemExit as stopped:
        assert stopped.code == 2
    assert "max_new_tokens=100000" in capsys.readouterr().err


def test_settings_of_a_context_are_refused_where_there_is_none():
    with pytest.raises(ValueError, match="view.context_placement=user has no effect"):
        Generate("x", view=ViewConfig(context_placement="user"))


def test_a_very_small_temperature_is_greedy():
    answers = [
        generate.run(
            Generate(
                "jopd:baby-teacher", max_new_tokens=24, sampling=Sampling(temperature=temperature)
            )
        )
        for temperature in (0.0, 1e-8)
    ]
    assert answers[0] == answers[1] and all(text for (text,) in answers[0])
