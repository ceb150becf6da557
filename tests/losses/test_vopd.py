import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.losses import evaluate
from jopd.losses.vopd import VOPD
from tests.reference import divergences as reference
from tests.reference import enumeration

WORLD = enumeration.world()
STUDENT, TEACHER = np.random.default_rng(1).normal(size=(2, WORLD.inner, enumeration.TOKENS))


def test_the_baseline_leaves_the_expected_gradient_as_it_is():
    length = enumeration.expected_length(WORLD, STUDENT)
    found = enumeration.expected_gradient(VOPD(), WORLD, STUDENT, TEACHER, per_row=length)
    np.testing.assert_allclose(
        found, enumeration.fixed_state_gradient(WORLD, STUDENT, TEACHER), atol=1e-10
    )


def test_by_hand():
    # pi = (1/4, 3/4), q = (1/2, 1/2): l(0) = log 2, l(1) = log 2/3, KL = 3/4 log 3 - log 2, so A is
    # 3/4 log 3, -1/4 log 3.
    student, teacher = (
        jnp.log(jnp.asarray([[[0.25, 0.75], [0.25, 0.75], [0.9, 0.1]]])),
        jnp.zeros((1, 3, 2)),
    )
    tokens, mask = jnp.asarray([[0, 1, 1]]), jnp.asarray([[1, 1, 0]])
    loss = jax.jit(
        jax.value_and_grad(
            lambda z: evaluate(VOPD(), z, {"teacher": teacher}, tokens, mask), has_aux=True
        )
    )
    (value, metrics), gradient = loss(student)
    np.testing.assert_allclose(
        value, -np.log(3) * (0.75 * np.log(0.25) - 0.25 * np.log(0.75)) / 2, rtol=1e-5
    )
    # -A (e_y - pi) / 2: both tokens say the same.
    np.testing.assert_allclose(gradient[0, 0], 9 / 32 * np.log(3) * np.array([-1, 1]), rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 1], 1 / 32 * np.log(3) * np.array([-1, 1]), rtol=1e-5)
    np.testing.assert_array_equal(gradient[0, 2], 0)
    np.testing.assert_allclose(metrics["advantage"], np.log(3) / 4, rtol=1e-5)


@pytest.mark.parametrize(
    "method", [VOPD(log_ratio_clip=0.5), losses.get("opd_pg", baseline="kl", log_ratio_clip=0.5)]
)
def test_the_baseline_of_clipped_rewards_is_their_own_mean(method):
    # Every token of the vocabulary as the sampled one, a row each; a far teacher, so that most
    # rewards are clipped.
    student, teacher = 2 * np.random.default_rng(0).normal(size=(2, 6))
    spread = lambda row: jnp.broadcast_to(jnp.asarray(row, jnp.float32), (6, 1, 6))
    mask = jnp.ones((6, 1), bool)
    terms = method.token_terms(
        spread(student), {"teacher": spread(teacher)}, jnp.arange(6)[:, None], {}
    )
    advantage = method.estimate(terms, mask, {}).advantage[:, 0]
    pi, q = reference.softmax(student), reference.softmax(teacher)
    reward = np.clip(np.log(q / pi), -0.5, 0.5)
    np.testing.assert_allclose(advantage, reward - (pi * reward).sum(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose((pi * np.asarray(advantage)).sum(), 0, atol=1e-6)


def test_it_says_what_it_reads_and_what_it_is():
    assert VOPD().inputs == () and VOPD(reward_weight=1.0).inputs == ("group_advantage",)
    assert VOPD(log_ratio_clip=5.0).variables().gates == "log-ratio clip 5"
    assert VOPD().variables().credit == "immediate, baseline -KL"
