import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jopd.losses import evaluate
from jopd.losses.credit import group_advantage
from jopd.losses.rlsd import RLSD, reweighted_advantage
from tests.losses import six_tokens

# The reweighted advantage.


def test_reweighted_advantage_worked_by_hand():
    advantage = jnp.asarray([[2.0], [-1.0], [0.0]])
    log_ratio = jnp.log(jnp.asarray([[1.1, 3.0, 0.5], [1.1, 3.0, 0.5], [0.0, jnp.inf, 1.0]]))
    found = reweighted_advantage(advantage, log_ratio, mix=0.5, clip=0.2)
    # Weights 1.1, 1.2 (clipped), .8 (clipped); below zero their inverses, 1/1.1, .8, 1.2; halfway
    # to 1; times A.
    expected = [[2.1, 2.2, 1.8], [-(1 + 1 / 1.1) / 2, -0.9, -1.1], [0, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # An advantage a token, and a mix a row.
    per_token = jnp.asarray([[2.0, -1.0, 0.0]])
    found = reweighted_advantage(per_token, log_ratio[:1], mix=jnp.asarray([[1.0]]), clip=0.2)
    np.testing.assert_allclose(found, [[2.2, -0.8, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(
        reweighted_advantage(advantage, log_ratio, mix=0, clip=0.2), np.repeat(advantage, 3, 1)
    )


reweighted = jax.jit(reweighted_advantage, static_argnames="clip")


@given(
    advantage=st.floats(-3, 3, width=32),
    log_ratio=st.floats(-100, 100, width=32),
    mix=st.floats(0, 1),
    clip=st.sampled_from([0.01, 0.2, 0.99]),
)
def test_the_teacher_never_turns_a_sign(advantage, log_ratio, mix, clip):
    one = lambda x: np.array([[x]], np.float32)
    found = reweighted(one(advantage), one(log_ratio), mix=one(mix), clip=clip)
    assert (
        np.sign(found) == np.sign(np.float32(advantage)) or abs(advantage) < 1e-35
    )  # what small numbers round to
    assert abs(found) <= abs(advantage) * (1 + clip) * 1.0001


def test_neither_argument_has_a_gradient():
    of = lambda a, d: reweighted_advantage(a, d, mix=0.5, clip=0.9).sum()
    for gradient in jax.grad(of, argnums=(0, 1))(jnp.ones((1, 1)), jnp.full((1, 2), 0.1)):
        np.testing.assert_array_equal(gradient, 0)


# The loss by hand, one row: pi = (1/4, 3/4), q = (1/2, 1/2) with the context, (11/20, 9/20)
# without; tokens 0 and 1, and a third that is masked out. D = a = (log 2, log 2/3).

PI, PRIVILEGED, PLAIN = [0.25, 0.75], [0.5, 0.5], [0.55, 0.45]
SCORE_0, SCORE_1 = np.array([0.75, -0.75]), np.array([-0.25, 0.25])  # e_y - pi
LOG_PI = np.log(PI)


@functools.partial(jax.jit, static_argnums=0)
def found(method, z, views, tokens, mask, inputs):
    views = {view: views[view] for view in method.views}
    loss = lambda z, views: evaluate(method, z, views, tokens, mask, **inputs)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(z, views)


def by_hand(dtype=np.float32, weight=None, method=RLSD(), **inputs):
    row = lambda p: np.log([[p, p, [0.9, 0.1]]]).astype(dtype)
    views = {"privileged": row(PRIVILEGED), "plain": row(PLAIN)}
    inputs = {name: np.array([[value]], np.float32) for name, value in inputs.items()}
    inputs |= {} if weight is None else {"weight": np.array([weight], np.float32)}
    args = row(PI), views, np.array([[0, 1, 1]]), np.array([[1, 1, 0]]), inputs
    (value, metrics), (gradient, of_views) = jax.device_get(found(method, *args))
    np.testing.assert_array_equal(gradient[0, 2], 0)
    assert not any(gradient.any() for gradient in of_views.values())
    return value, gradient[0, :2].astype(np.float32), metrics


def agrees(found, advantages, weights=(0.5, 0.5)):
    shares = np.array(advantages) * weights
    np.testing.assert_allclose(found[0], -(shares * LOG_PI).sum(), rtol=1e-5)
    np.testing.assert_allclose(found[1], [-shares[0] * SCORE_0, -shares[1] * SCORE_1], rtol=1e-5)


@pytest.mark.parametrize(
    "given_advantage, step, expected",
    [
        (2.0, 0, [2 * 1.1, 2 * 0.9]),  # weights 1.2 and .8, both clipped, at mix .5
        (2.0, 25, [2 * 1.05, 2 * 0.95]),  # at mix .25
        (2.0, 50, [2, 2]),  # at mix 0: GRPO
        (2.0, 80, [2, 2]),
        (-2.0, 0, [-2 * 0.9, -2 * 1.1]),  # what the teacher likes is blamed less
    ],
)
def test_with_a_verifier_by_hand(given_advantage, step, expected):
    found = by_hand(group_advantage=given_advantage, step=float(step))
    agrees(found, expected)
    np.testing.assert_allclose(found[2]["advantage"], np.mean(expected), rtol=1e-6)


def test_without_a_verifier_by_hand():
    # a_0 = log 2 > 0 and exp(e_0) = 10/11; a_1 = log 2/3 < 0 and exp(-e_1) = 9/10.
    expected = [math.log(2) * 10 / 11, math.log(2 / 3) * 9 / 10]
    found = by_hand(method=RLSD(verifier=False))
    agrees(found, expected)
    np.testing.assert_allclose(
        found[2]["evidence"], (math.log(10 / 11) + math.log(10 / 9)) / 2, rtol=1e-4
    )
    agrees(by_hand(method=RLSD(verifier=False), weight=[3.0, 1.0, 5.0]), expected, (0.75, 0.25))
    tight = [math.log(2) * 0.95, math.log(2 / 3) * 0.95]  # both weights at the clip
    agrees(by_hand(method=RLSD(verifier=False, clip=0.05)), tight)


def test_bfloat16_logits_are_compared_in_float32():
    value, gradient, _ = by_hand(jnp.bfloat16, group_advantage=2.0, step=0.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(gradient, [-1.1 * SCORE_0, -0.9 * SCORE_1], rtol=1e-2)


# Random batches.

MASK = np.arange(5) < np.array([5, 1, 0, 3])[:, None]


def at_random(method, z, mask=MASK, advantages=None):
    views, tokens = {"privileged": z[1], "plain": z[2]}, np.repeat([[3], [0], [0], [0]], 5, axis=1)
    inputs = (
        {}
        if advantages is None
        else {"group_advantage": advantages, "step": np.full((4, 1), 10, np.float32)}
    )
    (value, _), (gradient, _) = jax.device_get(found(method, z[0], views, tokens, mask, inputs))
    return value, gradient


def logits(extra=0):
    z = np.random.default_rng(0).normal(size=(3, *MASK.shape, 6))
    return np.concatenate([z, np.full((3, *MASK.shape, extra), -np.inf)], axis=-1).astype(
        np.float32
    )


def advantages(*rewards):
    return np.asarray(group_advantage(jnp.asarray(rewards), 2))


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_where_all_samples_are_rewarded_alike_nothing_is_learnt(reward):
    # The claim of EDGE-OPD about identity, where a verifier accepts nothing; the teacher's opinion
    # changes nothing.
    value, gradient = at_random(RLSD(), logits(), advantages=advantages(*[reward] * 4))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_at_the_teacher_it_is_grpo_with_a_verifier_and_nothing_without():
    z = np.repeat(logits()[:1], 3, axis=0)
    value, gradient = at_random(RLSD(), z, advantages=advantages(1.0, 0.0, 0.0, 1.0))
    # GRPO by hand: the mean over nine tokens of A (pi - e_y); +-A is .5 / (sqrt .5 + 1e-4).
    pi, one_hot = (
        np.exp(z[0]) / np.exp(z[0]).sum(axis=-1, keepdims=True),
        np.eye(6)[[3, 0, 0, 0]][:, None],
    )
    size = 0.5 / (math.sqrt(0.5) + 1e-4) * np.array([1, -1, -1, 1])[:, None, None]
    np.testing.assert_allclose(gradient, size * (pi - one_hot) * MASK[..., None] / 9, atol=1e-6)
    assert not RLSD().vanishes_at_teacher and RLSD(verifier=False).vanishes_at_teacher
    value, gradient = at_random(RLSD(verifier=False), z)
    # Rounding: the same logits go through two programs, which a compiler need not make alike.
    assert abs(value) < 1e-6
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("verifier", [True, False])
def test_rows_of_nothing_and_tokens_that_nobody_allows_are_harmless(verifier):
    method, given = (
        RLSD(verifier=verifier),
        {"advantages": advantages(1.0, 0.0, 0.0, 1.0)} if verifier else {},
    )
    value, gradient = at_random(method, logits(), **given)
    assert value != 0 and not gradient[2].any()
    found, more = at_random(method, logits(extra=1), **given)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(more[..., :-1], gradient, atol=1e-7)
    assert not more[..., -1].any()
    value, gradient = at_random(method, logits(), np.zeros_like(MASK), **given)
    assert value == 0 and not gradient.any()


# The six-token toy.


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"verifier": False, "guided_share": 0.5}, 0.70),
        ({"verifier": False}, 0.0),
        ({"guided_share": 0.5}, 0.0),  # no completion is ever rewarded
    ],
)
def test_a_name_is_learnt_guided_and_without_a_verifier(settings, expected):
    method, zeros = RLSD(**settings), jnp.zeros((six_tokens.ROWS,))
    inputs = (
        {"group_advantage": group_advantage(zeros, 8), "step": zeros[:, None]}
        if method.verifier
        else {}
    )
    found = six_tokens.learn(six_tokens.loss_of(method, **inputs), method.guided_share)
    np.testing.assert_allclose(found[six_tokens.NAME], expected, atol=0.005)


# Description and refusals.


def test_says_what_it_is():
    assert RLSD().views == ("privileged",) and RLSD().inputs == ("group_advantage", "step")
    assert (
        RLSD(verifier=False).views == ("privileged", "plain") and RLSD(verifier=False).inputs == ()
    )
    assert RLSD().variables().gates == "log-ratio weight ±0.2, 0.5 of it, to 0 in 50 steps"
    words = RLSD(verifier=False, guided_share=0.5).variables()
    assert words.state == "student rollouts, 0.5 of them written by the student with the context"
    assert (words.credit, words.gates) == ("immediate", "evidence weight ±0.2")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mix": 1.5}, r"mix=1.5 must lie in \[0, 1\]"),
        ({"mix_steps": 0}, "mix_steps=0 must be at least 1"),
        ({"clip": 1.0}, r"clip=1.0 must lie in \(0, 1\)"),
        ({"verifier": False, "mix": 0.4}, "mix=0.4 does nothing with verifier=False"),
        ({"verifier": False, "mix_steps": 20}, "mix_steps=20 does nothing with verifier=False"),
        ({"guided_share": -0.5}, r"guided_share=-0.5 must lie in \[0, 1\]"),
        (
            {"guided_writer": "teacher"},
            "guided_writer='teacher' writes nothing with guided_share=0",
        ),
        ({"temperature": -1.0}, "temperature=-1.0 must be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        RLSD(**settings)
