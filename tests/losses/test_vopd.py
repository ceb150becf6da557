import jax
import jax.numpy as jnp
import numpy as np

from jopd.losses import evaluate
from jopd.losses.vopd import VOPD
from tests.reference import enumeration

WORLD = enumeration.world()
STUDENT, TEACHER = np.random.default_rng(1).normal(size=(2, WORLD.inner, enumeration.TOKENS))


def test_the_baseline_leaves_the_expected_gradient_as_it_is():
    length = enumeration.expected_length(WORLD, STUDENT)
    found = enumeration.expected_gradient(VOPD(), WORLD, STUDENT, TEACHER, per_row=length)
    np.testing.assert_allclose(found, enumeration.fixed_state_gradient(WORLD, STUDENT, TEACHER), atol=1e-10)


def test_by_hand():
    # pi = (1/4, 3/4), q = (1/2, 1/2): l(0) = log 2, l(1) = log 2/3, KL = 3/4 log 3 - log 2, so A is 3/4 log 3, -1/4 log 3.
    student, teacher = jnp.log(jnp.asarray([[[0.25, 0.75], [0.25, 0.75], [0.9, 0.1]]])), jnp.zeros((1, 3, 2))
    tokens, mask = jnp.asarray([[0, 1, 1]]), jnp.asarray([[1, 1, 0]])
    loss = jax.jit(jax.value_and_grad(lambda z: evaluate(VOPD(), z, {"teacher": teacher}, tokens, mask), has_aux=True))
    (value, metrics), gradient = loss(student)
    np.testing.assert_allclose(value, -np.log(3) * (0.75 * np.log(0.25) - 0.25 * np.log(0.75)) / 2, rtol=1e-5)
    # -A (e_y - pi) / 2: both tokens say the same.
    np.testing.assert_allclose(gradient[0, 0], 9 / 32 * np.log(3) * np.array([-1, 1]), rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 1], 1 / 32 * np.log(3) * np.array([-1, 1]), rtol=1e-5)
    np.testing.assert_array_equal(gradient[0, 2], 0)
    np.testing.assert_allclose(metrics["advantage"], np.log(3) / 4, rtol=1e-5)


def test_it_says_what_it_reads_and_what_it_is():
    assert VOPD().inputs == () and VOPD(reward_weight=1.0).inputs == ("group_advantage",)
    assert VOPD(log_ratio_clip=5.0).variables().gates == "log-ratio clip 5"
    assert VOPD().variables().credit == "immediate, baseline -KL"
