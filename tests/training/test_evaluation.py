from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.data import persona
from jopd.data.example import Example, Message
from jopd.data.sources import DataConfig
from jopd.rollout.sampler import Decoding, Rollout
from jopd.training.evaluation import Answers, Evaluator, samples, summarise
from tests.training.problem import mesh_of


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
    assert set(record) == {"kl", "kl_by_position", "kl_by_length", "late"} | of_answers | of_lengths


def test_without_answers_there_is_no_accuracy_and_without_a_teacher_no_kl():
    plain = ANSWERS._replace(examples=[example(name, None) for name in "abc"], terms={})
    found = set(summarise(DataConfig(), plain))
    assert found == {"length_mean", "length_max", "truncation_rate", "repetition_rate"}


def test_every_measured_term_is_a_mean_over_tokens():
    terms = {"kl": KL, "student_entropy": 2 * KL, "forward_kl_full": 3 * KL}
    record = summarise(DataConfig(), ANSWERS._replace(terms=terms))
    assert record["student_entropy"]["value"] == pytest.approx(16 / 7)
    assert record["support"]["forward_kl_full"]["value"] == pytest.approx(24 / 7)
    assert record["late"]["forward_kl_full"]["value"] == 1.5
    assert "student_entropy_by_position" not in record


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


def test_samples_are_the_first_answers_with_what_was_asked():
    shown = samples(ANSWERS, 2)
    assert shown == [
        {"id": "a", "prompt": "a?", "completion": "answer: 4", "answer": "4"},
        {"id": "b", "prompt": "b?", "completion": "answer: 6", "answer": "5"},
    ]
    assert samples(ANSWERS, 0) == []


# Gathering.


class Problems:
    """Five problems, two at a time; the last batch is filled up with the first problem."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = np.arange(2 * index, 2 * index + 2, dtype=np.int32)
        return {
            "rows": rows,
            "contexts": {"student": {"tokens": rows[:, None] % 5, "valid": np.ones((2, 1), bool)}},
        }

    def examples_at(self, index):
        return [example(str(row), None) for row in range(2 * index, min(2 * index + 2, 5))]


def test_answers_of_all_batches_are_gathered_without_what_fills_the_last_one():
    def answer(contexts, rows):
        # Batch by batch the width is 3, 1 and 2; row r writes r + 1 everywhere, as many tokens as
        # the batch has columns.
        width = {0: 3, 2: 1, 4: 2}[int(rows[0])]
        ids = jnp.broadcast_to(jnp.asarray(contexts["student"].tokens) + 1, (2, width))
        mask = jnp.ones((2, width), bool)
        return Rollout(ids, mask, jnp.zeros(ids.shape), jnp.asarray(rows)), {
            "kl": 0.5 * ids.astype(float)
        }

    decode = lambda tokens, skip_special_tokens: (
        f"{skip_special_tokens} {[int(token) for token in tokens]}"
    )
    evaluator = Evaluator(
        program=None,
        jitted=None,
        mesh=mesh_of(),
        problems=Problems(),
        tokenizer=SimpleNamespace(decode=decode),
        decoding=Decoding(4, (), 0, 9),
        key=jax.random.key(0),
    )
    answers = evaluator._collect(answer)
    assert [e.id for e in answers.examples] == list("01234")
    np.testing.assert_array_equal(
        answers.tokens, [[1, 1, 1, 0], [2, 2, 2, 0], [3, 0, 0, 0], [4, 0, 0, 0], [5, 5, 0, 0]]
    )
    np.testing.assert_array_equal(answers.mask, answers.tokens > 0)
    np.testing.assert_array_equal(answers.terms["kl"], 0.5 * answers.tokens)
    np.testing.assert_array_equal(answers.stopped, np.arange(5))
    assert answers.text == [
        "True [1, 1, 1]",
        "True [2, 2, 2]",
        "True [3]",
        "True [4]",
        "True [5, 5]",
    ]
