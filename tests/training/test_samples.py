import numpy as np

from jopd.data.example import Example, Message
from jopd.data.sources import DataConfig
from jopd.training.samples import LOOKED_AT, TOKENS, samples
from jopd.training.summary import Answers, summarise


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(
        self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None
    ) -> str:
        return "".join("abcde"[id] for id in token_ids)


def example(name: str, answer: str | None) -> Example:
    return Example(name, (Message(role="user", content=f"{name}?"),), answer=answer)


# Three answers of 2, 3 and 1 tokens; what stands outside the mask must not be shown.
ANSWERS = Answers(
    examples=[example("p", None), example("q", "4"), example("r", "5")],
    tokens=np.array([[0, 1, 4], [2, 3, 0], [1, 4, 4]]),
    mask=np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool),
    stopped=np.array([1, 0, 2]),
    text=["no answer", "answer: 4", "answer: 7"],
    terms={
        "kl": np.array([[1.0, 3.0, 99.0], [0.123456, 0.5, 0.5], [2.0, 99.0, 99.0]]),
        "kl_partial": np.array([[4.0, 5.0, 99.0], [6.0, 7.0, 8.0], [9.0, 99.0, 99.0]]),
        "overlap_mass": np.ones((3, 3)),
    },
    seen={
        "kl": np.full((2, 3), 7.0),
        "push": np.array([[-1.5, np.nan, 99.0], [0.0, 1.0, 2.0]]),
        "likeliest/student_ids": np.array([[[0, 1], [1, 2], [3, 3]], [[2, 0], [3, 0], [0, 1]]]),
        "likeliest/student_probabilities": np.array(
            [[[0.75, 0.25], [0.5, 0.125], [9, 9]], [[1.0, 0.0], [0.5, 0.5], [0.6, 0.4]]]
        ),
    },
)


def test_samples_are_the_first_answers_with_what_was_asked():
    assert samples(ANSWERS, 2) == [
        {"id": "p", "prompt": "p?", "completion": "no answer", "answer": None},
        {"id": "q", "prompt": "q?", "completion": "answer: 4", "answer": "4"},
    ]
    assert samples(ANSWERS, 0) == []


def test_whether_an_answer_was_right_is_said_of_problems_that_have_one():
    record = summarise(DataConfig(), ANSWERS._replace(seen={}))
    assert [line.get("right") for line in samples(ANSWERS, 3, record)] == [None, True, False]


def test_every_token_carries_what_was_measured_of_it():
    first, second = (line["tokens"] for line in samples(ANSWERS, 2, tokenizer=Letters()))
    assert first == {
        "text": ["a", "b"],
        "measures": {"kl": [1.0, 3.0], "kl_partial": [4.0, 5.0]},
        "method": {"push": [-1.5, None]},
        "length": 2,
        "likeliest": {
            "student": [
                [("a", 0.75, True), ("b", 0.25, False)],
                [("b", 0.5, True), ("c", 0.125, False)],
            ]
        },
    }
    assert second["measures"]["kl"] == [0.1235, 0.5, 0.5]
    assert second["likeliest"]["student"][2] == [("a", 0.6, True), ("b", 0.4, False)]


def test_long_answers_are_looked_at_in_their_beginning():
    length = TOKENS + 3
    long = Answers(
        examples=[example("p", None)],
        tokens=np.zeros((1, length), int),
        mask=np.ones((1, length), bool),
        stopped=np.array([0]),
        text=["a" * length],
        terms={"kl": np.ones((1, length))},
    )
    (line,) = samples(long, 1, tokenizer=Letters())
    assert len(line["tokens"]["text"]) == len(line["tokens"]["measures"]["kl"]) == TOKENS
    assert (line["tokens"]["length"], line["completion"]) == (length, "a" * length)


def test_of_many_answers_the_first_are_looked_at():
    count = LOOKED_AT + 2
    many = ANSWERS._replace(
        examples=[example(str(i), None) for i in range(count)],
        tokens=np.zeros((count, 3), int),
        mask=np.ones((count, 3), bool),
        text=["a"] * count,
        terms={},
        seen={},
    )
    lines = samples(many, count, tokenizer=Letters())
    assert ["tokens" in line for line in lines] == [True] * LOOKED_AT + [False] * 2
