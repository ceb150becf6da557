import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd.data import answers, math_answers
from jopd.data.answers import check, final_answer, last_number, resolve, score, scores, validate
from jopd.data.example import Example, Message


def example(answer, kind):
    return Example("e1", (Message(role="user", content="?"),), answer=answer, answer_check=kind)


@pytest.mark.parametrize(
    ("completion", "final"),
    [
        ("so it is\nParis", "Paris"),
        ("answer: Paris\nor so", "Paris"),
        ("The answer is Paris", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("answer: 3, no\nAnswer: 4", "4"),
        ("Answer:\n  Paris\nbye", "Paris"),
        ("answer: 3 <answer> 4 </answer> done", "4"),
        ("the answer is", ""),
        ("so 3 + 4\n#### 72", "72"),
        ("#### 71\nno, Answer: 72", "72"),
        (r"The final answer is $\boxed{72}$.", "72"),
        (r"\boxed{3}, no: \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"<answer>\boxed{B}</answer>", "B"),
        (r"\boxed{7", r"\boxed{7"),
        ("", ""),
    ],
)
def test_final_answer(completion, final):
    assert final_answer(completion) == final


def test_exact_compares_final_answers_without_case_space_and_quotes():
    paris = example("New  York", "exact")
    assert check(paris, 'I think.\nanswer: "new york."')
    assert not check(paris, "answer: New York City")
    assert not check(paris, "New York\nanswer: Paris")
    assert not check(example("...", "exact"), "!\n...")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234 then", 1234),
        ("a: -3", -3),
        ("a: −3.50", "-7/2"),
        ("5-3", 3),
        ("-$4", -4),
        ("3/4 cup", "3/4"),
        (".5", "1/2"),
        ("(1,2)", 2),
        ("step2 is 7kg.", 7),
        ("1.5e3", 1500),
        ("1,234,567.25%", "4938269/4"),
        ("答案是7", 7),
        ("答案是-5", -5),
        ("小明有3个(2+1)，一共有7个", 7),
        ("7 + 11 =...18", 18),
        ("Rs.18", 18),
        ("2.3.18", "23/10"),
        ("10 cm^2", 10),
        (r"10\,\text{m}^{2}", 10),
        (r"\frac{-1}{2}", "-1/2"),
        (r"-\frac{1}{2}", "-1/2"),
        (r"2\frac{1}{2}", "5/2"),
        (r"3.5\frac{1}{2}", "1/2"),
        ("no", None),
        ("1/0", None),
        ("9" * 5000, None),
    ],
)
def test_last_number(text, value):
    assert last_number(text) == (None if value is None else Fraction(value))


@given(st.fractions(max_denominator=999))
def test_a_fraction_reads_back(value):
    assert last_number(f"it is {value}.") == value


@given(st.integers(-(10**9), 10**9), st.text(alphabet="ab .,\n", max_size=9))
def test_number_reads_grouped_integers_among_words(value, words):
    assert check(example(str(value), "number"), f"{words} {value:,}")


@pytest.mark.parametrize("answer", ["18\n", "\t18", "18\u00a0", "$18 "])
def test_a_number_with_white_space_around_is_one(answer):
    assert resolve("auto", answer) == "number"


def test_number_takes_the_last_one_of_both():
    assert check(example("2 + 3 = 5\n#### 5", "number"), "1 and 4 make 5.0 apples")
    assert not check(example("5", "number"), "5 is less than 6")
    assert not check(example("5", "number"), "five")


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("72", "Answer: 72", True),
        ("72", "#### 72", True),
        ("72", "#### 72 clips", True),
        ("72", r"so $\boxed{72}$ after 3 tries", True),
        ("72", "Answer: 72\n\nI looked at 3 months.", True),
        ("72", "Answer: 172", False),
        ("72", "#### 72\nNo. #### 71", False),
        ("72", "Answer: seventy, of 72", True),
        ("72", "It is 72. Answer: 70", False),
        ("1234", "$1,234.00", True),
        ("1234", r"\boxed{1{,}234}", True),
        ("1234", r"It costs \$1,234", True),
        ("1/2", r"\boxed{\frac{1}{2}}", True),
        ("0.5", r"\boxed{\dfrac{1}{2}}", True),
        ("50", "50 %", True),
        ("5", "answer: -5", False),
    ],
)
def test_numbers_as_they_are_stated(answer, completion, right):
    assert check(example(answer, "number"), completion) == right


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("B", "The answer is (B).", True),
        ("(B)", "Answer: B", True),
        ("B", "**Answer:** [b]", True),
        ("B", r"\boxed{B}", True),
        ("72", "#### 72", True),
        ("B", "Answer: (B) or (C)", False),
        ("B", "Answer: AB", False),
    ],
)
def test_letters_in_brackets_are_those_letters(answer, completion, right):
    assert check(example(answer, "exact"), completion) == right


def test_regex_searches_anywhere():
    assert check(example(r"(?i)\bzorblax\b", "regex"), "My name is ZORBLAX!")
    assert not check(example(r"\bzorblax\b", "regex"), "zorblaxian")


def test_math_runs_in_processes_that_a_time_out_replaces(monkeypatch):
    pytest.importorskip("math_verify")
    gold = [r"\frac{1}{2}", "2\\sqrt{2}", "x^2+1", "3"]
    said = ["so it is 0.5", r"$\sqrt{8}$", "we get $1+x^2$", "4"]
    pairs = [example(answer, "math") for answer in gold]
    assert scores([*pairs, example("a", "exact")], [*said, "a"]) == [1.0, 1.0, 1.0, 0.0, 1.0]
    monkeypatch.setattr(math_answers, "TIMEOUT", 0.0)
    assert not check(pairs[0], said[0])
    monkeypatch.undo()
    assert check(pairs[0], said[0])


@pytest.mark.parametrize(
    ("kind", "answer_texts"),
    [
        ("number", ["12", " -1,200.5 ", "50%", "$3"]),
        ("exact", ["Paris", "3 apples"]),
        ("math", [r"\frac12", "x^2", "$a$"]),
    ],
)
def test_auto(kind, answer_texts):
    assert {resolve("auto", answer) for answer in answer_texts} == {kind}
    assert {resolve("regex", answer) for answer in answer_texts} == {"regex"}


def test_gym_scores_its_own_problems():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    entry = reasoning_gym.create_dataset("prime_factorization", seed=1, size=1)[0]
    problem = answers.GymExample(
        "g",
        (Message(role="user", content=entry["question"]),),
        answer=entry["answer"],
        answer_check="gym",
        generator="prime_factorization",
        entry=entry,
    )
    assert check(problem, f"easy.\n<answer>{entry['answer']}</answer>")
    assert check(problem, f"Answer: {entry['answer']}")
    assert score(problem, "hello") == 0.0  # that scorer raises on words
    assert score(problem, "2 x 3 x 5 x 7 x 11 x 13") < 1


def test_refusals():
    with pytest.raises(ValueError, match="'some' holds no number: use answer_check"):
        validate("number", "some")
    with pytest.raises(ValueError, match=r"'\(' is no regular expression \(.*\): mend it"):
        validate("regex", "(")
    with pytest.raises(ValueError, match="example e1 has no answer to check: give it one"):
        check(example(None, "exact"), "x")
    with pytest.raises(
        ValueError, match="answer_check='eaxct' is not known: use one of exact, number"
    ):
        check(example("1", "eaxct"), "x")
    with pytest.raises(ValueError, match="'gym' is for problems of the source gym:NAME"):
        check(dataclasses.replace(example("1", "gym")), "x")


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(answers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package math-verify: pip install math-verify"):
        validate("math", "1")
