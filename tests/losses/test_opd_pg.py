import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.losses import evaluate
from jopd.losses.opd_pg import OPDPolicyGradient
from tests.reference import enumeration

WORLD = enumeration.world()
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, WORLD.inner, enumeration.TOKENS))
LENGTH = enumeration.expected_length(WORLD, STUDENT)


def found(per_row=1.0, **settings):
    return enumeration.expected_gradient(
        OPDPolicyGradient(**settings), WORLD, STUDENT, TEACHER, per_row=per_row
    )


def of_returns(discount):
    nothing = np.zeros(len(WORLD.prefixes))
    advantages = enumeration.expected_advantages(WORLD, STUDENT, TEACHER, nothing, discount, 1.0)
    return enumeration.policy_gradient(WORLD, STUDENT, advantages)


SEQUENCE = enumeration.sequence_kl_gradient(WORLD, STUDENT, TEACHER)
FIXED = enumeration.fixed_state_gradient(WORLD, STUDENT, TEACHER)


def test_the_world_is_whole_and_its_two_ways_to_a_gradient_agree():
    assert len(WORLD.tokens) == 15 and WORLD.mask.sum(axis=1).tolist() == [1, 2, 2] + [3] * 12
    np.testing.assert_allclose(
        np.exp(enumeration.log_probabilities(WORLD, STUDENT)).sum(), 1, rtol=1e-14
    )
    np.testing.assert_allclose(of_returns(1.0), SEQUENCE, atol=1e-14)
    np.testing.assert_allclose(of_returns(0.0), FIXED, atol=1e-14)
    assert np.abs(SEQUENCE - FIXED).max() > 0.1  # or the tests below could not tell the two apart


@pytest.mark.parametrize("baseline", ["none", "kl"])
def test_immediate_credit_descends_the_kl_at_the_states_reached(baseline):
    np.testing.assert_allclose(found(per_row=LENGTH, baseline=baseline), FIXED, atol=1e-10)


@pytest.mark.parametrize("baseline", ["none", "kl"])
def test_return_to_go_descends_the_kl_between_rows(baseline):
    np.testing.assert_allclose(
        found(credit="return_to_go", baseline=baseline), SEQUENCE, atol=1e-10
    )


@pytest.mark.parametrize("baseline", ["none", "kl"])
def test_a_discount_lies_between_and_is_biased_for_both(baseline):
    gradient = found(credit="discounted", discount=0.6, baseline=baseline)
    np.testing.assert_allclose(gradient, of_returns(0.6), atol=1e-10)
    assert min(np.abs(gradient - SEQUENCE).max(), np.abs(gradient - FIXED).max()) > 0.01


def test_an_advantage_of_the_state_alone_teaches_nothing():
    class StateOnly(OPDPolicyGradient):
        def estimate(self, terms, mask, inputs):
            return (
                super().estimate(terms, mask, inputs)._replace(advantage=terms["expected_reward"])
            )

    gradient = enumeration.expected_gradient(StateOnly(baseline="kl"), WORLD, STUDENT, TEACHER)
    np.testing.assert_allclose(gradient, 0, atol=1e-10)


# One row of two tokens, by hand: pi(y) = (1/2, 1/4), q(y) = (1/4, 1/2), so l = (-log 2, log 2).
LOGITS = np.log([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]])
VIEW = np.log([[[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [1.0, 2.0, 3.0]]])
ONE_HOT = np.eye(3)[[0, 1]]


def gradient_and_metrics(dtype=jnp.float32, **settings):
    group_advantage = (
        {"group_advantage": jnp.asarray([[2.0]])} if settings.get("reward_weight") else {}
    )
    view = {"teacher": jnp.asarray(VIEW, dtype)}
    tokens, mask = jnp.asarray([[0, 1, 2]]), jnp.asarray([[1, 1, 0]])
    loss = lambda z: evaluate(
        OPDPolicyGradient(**settings), z, view, tokens, mask, **group_advantage
    )
    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(LOGITS, dtype))
    np.testing.assert_array_equal(gradient[0, 2], 0)
    return gradient[0, :2], metrics


@pytest.mark.parametrize(
    "settings, advantages, count",
    [
        ({}, [-np.log(2), np.log(2)], 2),
        ({"credit": "return_to_go"}, [0, np.log(2)], 1),
        ({"credit": "discounted", "discount": 0.25}, [-0.75 * np.log(2), np.log(2)], 1),
        # KL(pi || q) = 1/2 log 2 - 1/4 log 2
        ({"baseline": "kl"}, [-0.75 * np.log(2), 1.25 * np.log(2)], 2),
        ({"credit": "return_to_go", "baseline": "kl"}, [0.25 * np.log(2), 1.25 * np.log(2)], 1),
        ({"log_ratio_clip": 0.5}, [-0.5, 0.5], 2),
        ({"credit": "return_to_go", "log_ratio_clip": 0.5}, [0, 0.5], 1),
        (
            {"credit": "discounted", "discount": 0.25, "reward_weight": 0.5},
            [1 - 0.75 * np.log(2), 1 + np.log(2)],
            1,
        ),
    ],
    ids=str,
)
def test_advantages_and_counts_worked_by_hand(settings, advantages, count):
    gradient, metrics = gradient_and_metrics(**settings)
    expected = -np.array(advantages)[:, None] * (ONE_HOT - [0.5, 0.25, 0.25]) / count
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["advantage"], np.mean(advantages), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["log_ratio"], 0, atol=1e-6)


def test_the_baseline_has_the_losss_temperature():
    # At temperature 2 pi ~ (sqrt 2, 1, 1) and q ~ (1, sqrt 2, 1): KL = (sqrt 2 - 1) log(sqrt 2) /
    # (2 + sqrt 2).
    _, metrics = gradient_and_metrics(baseline="kl", temperature=2.0)
    np.testing.assert_allclose(
        -metrics["expected_reward"], (np.sqrt(2) - 1) * np.log(2) / 2 / (2 + np.sqrt(2)), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["kl"], np.log(2) / 4, rtol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"credit": "return"}, "unknown credit 'return'"),
        ({"credit": "kl"}, "of the state alone, whose expected gradient is exactly zero"),
        ({"baseline": "KL"}, "unknown baseline 'KL'"),
        (
            {"discount": 0.9},
            "discount=0.9 has nothing to act on with credit='immediate'.*not at all",
        ),
        (
            {"credit": "return_to_go", "discount": 0.9},
            "with credit='return_to_go'.*in full.*'discounted'",
        ),
        ({"credit": "discounted"}, r"discount=None must lie in \(0, 1\)"),
        ({"credit": "discounted", "discount": 1.0}, "1 is 'return_to_go'"),
        ({"credit": "discounted", "discount": 0.0}, "0 is 'immediate'"),
        ({"reward_weight": -1.0}, "reward_weight=-1.0 must be finite and not negative"),
        ({"log_ratio_clip": 0.0}, "log_ratio_clip=0.0 must be positive"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"updates": 0}, "updates=0 must be at least 1"),
        ({"ratio_clip": 0.2}, "ratio_clip=0.2 can never act with updates=1"),
        ({"updates": 2, "ratio_clip": 1.2}, r"ratio_clip=1.2 must lie in \(0, 1\)"),
    ],
)
def test_bad_settings_are_refused_with_the_cure(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        OPDPolicyGradient(**settings)


def test_it_says_what_it_reads_and_what_it_is():
    assert OPDPolicyGradient().inputs == ()
    both = OPDPolicyGradient(updates=2, ratio_clip=0.2, log_ratio_clip=5.0, reward_weight=0.5)
    assert both.inputs == ("group_advantage", "behaviour_logp") and not both.vanishes_at_teacher
    assert both.variables().gates == "log-ratio clip 5, ratio clip 0.2"
    assert both.variables().credit == "immediate, + 0.5 x task reward"
    discounted = OPDPolicyGradient(credit="discounted", discount=0.9, baseline="kl").variables()
    assert (discounted.credit, discounted.gates) == ("discounted 0.9, baseline -KL", "none")
