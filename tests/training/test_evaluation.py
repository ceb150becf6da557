from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jopd.data.example import Example, Message
from jopd.rollout.sampler import Rollout
from jopd.rollout.settings import Decoding
from jopd.training.evaluation import Evaluator
from tests.training.problem import mesh_of


def example(name: str, answer: str | None) -> Example:
    return Example(name, (Message(role="user", content=f"{name}?"),), answer=answer)


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
    def answer(index, contexts, rows):
        # Batch by batch the width is 3, 1 and 2; row r writes r + 1 everywhere, as many tokens as
        # the batch has columns.
        width = {0: 3, 2: 1, 4: 2}[int(rows[0])]
        ids = jnp.broadcast_to(jnp.asarray(contexts["student"].tokens) + 1, (2, width))
        mask = jnp.ones((2, width), bool)
        kl = {"kl": 0.5 * ids.astype(float)}
        # Only the first two batches are looked at.
        seen = {"likeliest": jnp.stack([ids, -ids], axis=-1)} if index < 2 else {}
        return Rollout(ids, mask, jnp.zeros(ids.shape), jnp.asarray(rows)), kl, seen

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
    first = answers.tokens[:4]
    np.testing.assert_array_equal(answers.seen["likeliest"], np.stack([first, -first], axis=-1))
    assert answers.text == [
        "True [1, 1, 1]",
        "True [2, 2, 2]",
        "True [3]",
        "True [4]",
        "True [5, 5]",
    ]
