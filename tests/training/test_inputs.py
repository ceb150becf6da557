from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from jopd import losses
from jopd.data.example import Example, Message
from jopd.rollout.sampler import Rollout
from jopd.training import inputs
from jopd.training.setup import Run
from tests.training.problem import mesh_of


def example(answer: str | None) -> Example:
    return Example("a", (Message(role="user", content="?"),), answer=answer, answer_check="number")


# Three prompts with two completions each: right, wrong; right, right; and one that has no answer.
TEXTS = ["answer: 4", "answer: 5", "7", "7", "4", "5"]


RUN = Run._make([None] * len(Run._fields))._replace(
    mesh=mesh_of(),
    program=SimpleNamespace(method=SimpleNamespace(updates=2)),
    config=SimpleNamespace(rollout=SimpleNamespace(samples=2)),
    train=SimpleNamespace(examples_at=lambda step: [example("4"), example("7"), example(None)]),
    student=SimpleNamespace(
        tokenizer=SimpleNamespace(decode=lambda tokens, skip_special_tokens: TEXTS[int(tokens[0])])
    ),
)

ROLLOUT = Rollout(
    tokens=jnp.arange(6)[:, None] * jnp.ones((1, 3), jnp.int32),
    mask=jnp.ones((6, 3), bool),
    logp=-jnp.ones((6, 3)),
    stopped=jnp.array([0, 1, 1, 0, 2, 1]),
)


def test_what_a_method_may_ask_of_a_batch():
    given = {name: inputs.of(RUN, name, 4, ROLLOUT) for name in losses.INPUTS}
    np.testing.assert_array_equal(given["behaviour_logp"], -np.ones((6, 3)))
    np.testing.assert_array_equal(given["truncated"], [[1], [0], [0], [1], [0], [0]])
    np.testing.assert_array_equal(given["step"], np.full((6, 1), 6))
    np.testing.assert_array_equal(given["reward"], [[1], [0], [1], [1], [0], [0]])
    # Mean 1/2, sample deviation sqrt(1/2); groups of equals have nothing to compare.
    wanted = 0.5 / (np.sqrt(0.5) + 1e-4)
    np.testing.assert_allclose(
        given["group_advantage"], [[wanted], [-wanted], [0], [0], [0], [0]], rtol=1e-6
    )
