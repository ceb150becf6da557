import dataclasses

import numpy as np
import pytest

from jopd.data import persona
from jopd.data.example import Example, Message
from jopd.data.sources import DataConfig
from jopd.training.summary import Answers, fingerprint, summarise


def example(name: str, answer: str | None) -> Example:
    return Example(name, (Message(role="user", content=f"{name}?"),), answer=answer)


# Three answers of 2, 4 and 1 tokens; what stands outside the mask must not count.
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
KL = np.array([[1.0, 3.0, 99.0, np.nan], [0.5, 0.5, 0.5, 0.5], [2.0, 99.0, 99.0, 99.0]])
ANSWERS = Answers(
    examples=[example("a", "4"), example("b", "5"), example("c", None)],
    tokens=np.zeros((3, 4), np.int32),
    mask=MASK,
    stopped=np.array([1, 0, 2]),
    text=["answer: 4", "answer: 6", "answer: 7"],
    terms={"kl": KL},
)


@pytest.mark.parametrize(
    "change",
    [{"messages": (Message(role="user", content="another?"),)}, {"answer": "5"}, {"id": "b"}],
)
def test_problems_are_the_same_if_they_ask_the_same(change):
    first = example("a", "4")
    assert fingerprint([first]) == fingerprint([example("a", "4")])
    assert fingerprint([first]) != fingerprint([dataclasses.replace(first, **change)])


def test_a_summary_worked_by_hand():
    record = summarise(DataConfig(), ANSWERS)
    # One of two is right. Wilson at 1 of 2 with z = 1.95996: 1/2 -+ z sqrt(1/8 + z^2/16) / (1 +
    # z^2/2), all over 2.
    assert record["accuracy"] == {
        "value": 0.5,
        "low": pytest.approx(0.0945312),
        "high": pytest.approx(0.9054688),
        "count": 2,
    }
    # Sums 4, 2, 2 over counts 2, 4, 1: a mean of 8/7 over tokens. Residuals 12/7, -18/7, 6/7:
    # squares sum to 504/49, so the standard error is sqrt(3/2 * 504/49) / 7.
    half = 1.959964 * np.sqrt(1.5 * 504 / 49) / 7
    assert record["kl"] == {
        "value": pytest.approx(8 / 7),
        "low": pytest.approx(8 / 7 - half),
        "high": pytest.approx(8 / 7 + half),
        "count": 3,
    }
    assert (record["length_mean"], record["length_max"]) == (pytest.approx(7 / 3), 4)
    assert record["truncation_rate"] == pytest.approx(1 / 3)
    # Lengths 2 and 4 of the answered ones, in quarters of 4 tokens: right, wrong.
    assert [bucket.get("value") for bucket in record["accuracy_by_length"]] == [
        None,
        None,
        1.0,
        0.0,
    ]
    # An answer without a derivation, twice.
    assert (
        record["shortcut_rate"]["value"]
        == 1.0
        == record["shortcuts"]["shortcut_asserts_rate"]["value"]
    )
    # The last fifth of two tokens is none of them, of four tokens the last one.
    assert record["late"]["kl"]["value"] == 0.5
    of_lengths = {"length_mean", "length_max", "truncation_rate", "repetition_rate"}
    of_answers = {"accuracy", "accuracy_by_length", "shortcut_rate", "shortcuts"}
    assert [bucket.get("value") for bucket in record["kl_by_length"]] == [None, 2.0, 2.0, 0.5]
    of_kl = {"kl", "kl_by_position", "kl_by_length", "late"}
    assert set(record) == of_kl | of_answers | of_lengths | {"by_problem"}
    assert record["by_problem"]["accuracy"] == [1, 0]
    assert record["by_problem"]["kl"] == {"sums": [4.0, 2.0, 2.0], "tokens": [2, 4, 1]}


def test_without_answers_there_is_no_accuracy_and_without_a_teacher_no_kl():
    plain = ANSWERS._replace(examples=[example(name, None) for name in "abc"], terms={})
    found = set(summarise(DataConfig(), plain))
    lengths = {"length_mean", "length_max", "truncation_rate", "repetition_rate"}
    assert found == lengths | {"by_problem"}


def test_every_measured_term_is_a_mean_over_tokens():
    terms = {"kl": KL, "student_entropy": 2 * KL, "forward_kl_full": 3 * KL}
    record = summarise(DataConfig(), ANSWERS._replace(terms=terms))
    assert record["student_entropy"]["value"] == pytest.approx(16 / 7)
    assert record["support"]["forward_kl_full"]["value"] == pytest.approx(24 / 7)
    assert record["late"]["forward_kl_full"]["value"] == 1.5
    assert "student_entropy_by_position" not in record


def test_no_interval_leaves_what_a_share_or_a_kl_can_be():
    """Nearly all of few tokens agree: the normal interval reaches beyond 100 %, and below a KL of
    0.
    """
    agreement = np.ones((3, 4))
    agreement[0, 0] = 0
    kl = np.zeros((3, 4))
    kl[0, 0] = 1.0
    terms = {"kl": kl, "top1_agreement": agreement, "log_ratio": kl}
    record = summarise(DataConfig(), ANSWERS._replace(terms=terms))
    assert record["top1_agreement"]["high"] == 1 and record["top1_agreement"]["low"] > 0
    assert record["kl"]["low"] == 0 < record["kl"]["high"]
    assert record["log_ratio"]["low"] < 0
    assert record["kl_by_length"][2]["low"] == 0  # of one row, whose interval is not known


def test_persona_answers_are_also_measured_by_group():
    who = DataConfig(source="persona").persona
    held_out = persona.examples(who, "held_out")
    pick = lambda wanted: next(e for e in held_out if persona.is_identity(e) == wanted)
    answers = ANSWERS._replace(
        examples=[pick(True), pick(False), pick(True)],
        text=[f"I am {who.name}.", f"Ask {who.name}.", "I am a language model."],
    )
    record = summarise(DataConfig(source="persona"), answers)
    assert (record["name_rate"]["value"], record["name_rate"]["count"]) == (0.5, 2)
    assert (record["intrusion_rate"]["value"], record["intrusion_rate"]["count"]) == (1.0, 1)
    assert record["identity"]["kl"]["value"] == pytest.approx((4 + 2) / (2 + 1))
    assert record["ordinary"]["kl"]["value"] == pytest.approx(2 / 4)


def test_groups_of_a_file_are_measured_apart():
    group = lambda name, answer, of: dataclasses.replace(example(name, answer), group=of)
    examples = [group("a", "4", "easy"), group("b", "5", "hard"), group("c", None, "hard")]
    record = summarise(DataConfig(), ANSWERS._replace(examples=examples))
    assert (record["easy"]["accuracy"]["value"], record["easy"]["accuracy"]["count"]) == (1.0, 1)
    assert (record["hard"]["accuracy"]["value"], record["hard"]["accuracy"]["count"]) == (0.0, 1)
    assert record["easy"]["kl"]["value"] == pytest.approx(4 / 2)
    assert record["hard"]["kl"]["value"] == pytest.approx((2 + 2) / (4 + 1))
    assert record["by_problem"]["hard/accuracy"] == [0]
    assert record["by_problem"]["hard/kl"] == {"sums": [2.0, 2.0], "tokens": [4, 1]}


def test_a_group_that_is_called_as_a_measure_hides_none():
    examples = [dataclasses.replace(it, group="length_mean") for it in ANSWERS.examples]
    record = summarise(DataConfig(), ANSWERS._replace(examples=examples))
    assert record["length_mean"] == pytest.approx(7 / 3)
    assert record["group length_mean"]["kl"] == record["kl"]
