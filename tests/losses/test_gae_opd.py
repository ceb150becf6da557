import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.losses import evaluate
from jopd.losses.gae_opd import GAEOPD
from tests.reference import credit, enumeration

WORLD = enumeration.world()
STUDENT, TEACHER = np.random.default_rng(2).normal(size=(2, WORLD.inner, enumeration.TOKENS))
LOGP, LOGQ = enumeration.log_softmax(STUDENT), enumeration.log_softmax(TEACHER)
REWARDS = (LOGQ - LOGP)[WORLD.states, WORLD.tokens]  # [R, horizon]
LENGTHS = WORLD.mask.sum(axis=1)
KL = np.append(
    (np.exp(LOGP) * (LOGP - LOGQ)).sum(axis=1), np.zeros(len(WORLD.prefixes) - WORLD.inner)
)
GUESS = np.random.default_rng(3).normal(size=len(WORLD.prefixes))
ENDED = np.zeros((len(WORLD.tokens), 1))
DISCOUNT = 0.8

VALUES = {
    "none": np.zeros(len(WORLD.prefixes)),
    "exact": enumeration.true_values(WORLD, STUDENT, TEACHER, DISCOUNT),
    "the KL": -KL,
    "a guess": GUESS,
}


def critic_says(values, truncated=ENDED):
    """The inputs of the method, of values at every prefix."""
    return {
        "values": values[WORLD.states],
        "bootstrap": values[WORLD.last_states][:, None],
        "truncated": truncated,
    }


def of_advantages(values, discount, gae_lambda):
    advantages = enumeration.expected_advantages(
        WORLD, STUDENT, TEACHER, values, discount, gae_lambda
    )
    return enumeration.policy_gradient(WORLD, STUDENT, advantages)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_the_table_of_biases(gae_lambda):
    """Rows that ended: no bias at lambda 1 whatever the critic says, and none with the exact values
    whatever lambda.
    """
    unbiased = of_advantages(VALUES["none"], DISCOUNT, 1.0)
    method = GAEOPD(discount=DISCOUNT, gae_lambda=gae_lambda)
    for critic, values in VALUES.items():
        ended = np.append(values[: WORLD.inner], np.zeros(len(values) - WORLD.inner))
        found = enumeration.expected_gradient(
            method, WORLD, STUDENT, TEACHER, **critic_says(values)
        )
        np.testing.assert_allclose(
            found, of_advantages(ended, DISCOUNT, gae_lambda), atol=1e-10, err_msg=critic
        )
        bias = np.abs(found - unbiased).max()
        if gae_lambda == 1 or critic == "exact":
            assert bias < 1e-10, critic
        else:
            assert bias > 0.001, critic


def test_undiscounted_at_lambda_1_it_descends_the_kl_between_rows():
    method = GAEOPD(gae_lambda=1.0)
    found = enumeration.expected_gradient(method, WORLD, STUDENT, TEACHER, **critic_says(GUESS))
    np.testing.assert_allclose(
        found, enumeration.sequence_kl_gradient(WORLD, STUDENT, TEACHER), atol=1e-10
    )


@pytest.mark.parametrize(
    "settings, values, advantages",
    [
        ({"discount": 0.0}, -KL, REWARDS + KL[WORLD.states]),
        ({"discount": 0.0, "critic": "kl_split"}, GUESS, REWARDS + KL[WORLD.states]),
        (
            {"discount": 0.8, "gae_lambda": 1.0},
            0 * KL,
            credit.by_row(lambda r: credit.return_to_go(r, 0.8), LENGTHS, REWARDS),
        ),
        ({"discount": 0.8, "gae_lambda": 0.0}, 0 * KL, REWARDS),
    ],
    ids=[
        "discount 0 with V = -KL: vOPD",
        "discount 0, split: vOPD",
        "V = 0, lambda 1: discounted",
        "both 0: immediate",
    ],
)
def test_limits_hold_row_by_row(settings, values, advantages):
    found = enumeration.gradient(GAEOPD(**settings), WORLD, STUDENT, TEACHER, **critic_says(values))
    expected = enumeration.sampled_gradient(WORLD, STUDENT, advantages) / len(WORLD.tokens)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_exact_split_critic_is_unbiased_at_any_lambda():
    later = (VALUES["exact"] + KL) / DISCOUNT  # what U estimates
    method = GAEOPD(discount=DISCOUNT, gae_lambda=0.3, critic="kl_split")
    found = enumeration.expected_gradient(method, WORLD, STUDENT, TEACHER, **critic_says(later))
    np.testing.assert_allclose(found, of_advantages(VALUES["none"], DISCOUNT, 1.0), atol=1e-10)


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_a_bootstrap_makes_up_for_what_the_limit_cut_off(gae_lambda):
    # Rows of four tokens, cut after three: the states are in the same order, those of length three
    # now the cut ones.
    longer = enumeration.world(4)
    student, teacher = np.random.default_rng(4).normal(size=(2, longer.inner, enumeration.TOKENS))
    whole = enumeration.sequence_kl_gradient(longer, student, teacher)[: WORLD.inner]
    values = enumeration.true_values(longer, student, teacher, 1.0)[: len(WORLD.prefixes)]
    student, teacher = student[: WORLD.inner], teacher[: WORLD.inner]
    method = GAEOPD(gae_lambda=gae_lambda)
    cut = critic_says(values, truncated=WORLD.truncated[:, None].astype(float))
    found = enumeration.expected_gradient(method, WORLD, student, teacher, **cut)
    np.testing.assert_allclose(found, whole, atol=1e-10)
    without = enumeration.expected_gradient(method, WORLD, student, teacher, **critic_says(values))
    assert np.abs(without - whole).max() > 0.01


# The critic.


def test_the_critic_regresses_on_returns_worked_by_hand():
    # One row cut after two tokens, l = (-log 2, log 2), KL = log(2) / 4; discount and lambda 1/2.
    student = jnp.log(jnp.asarray([[[0.5, 0.25, 0.25]] * 2 + [[1 / 3] * 3]]))
    teacher = jnp.log(jnp.asarray([[[0.25, 0.5, 0.25]] * 2 + [[0.5, 0.25, 0.25]]]))
    tokens, mask, truncated = jnp.asarray([[0, 1, 2]]), jnp.asarray([[1, 1, 0]]), jnp.asarray([[1]])
    given = jnp.asarray([[-1.0, -2.0, jnp.nan]]), jnp.asarray([[-4.0]])
    kl = np.log(2) / 4
    for critic, (first, second, bootstrap) in {
        "plain": (-1.0, -2.0, -4.0),
        "kl_split": (-0.5 - kl, -1.0 - kl, -2.0),
    }.items():
        method = GAEOPD(discount=0.5, gae_lambda=0.5, critic=critic, value_weight=0.6)

        def loss(student, values, bootstrap, method=method):
            inputs = {"values": values, "bootstrap": bootstrap, "truncated": truncated}
            return evaluate(method, student, {"teacher": teacher}, tokens, mask, **inputs)

        value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
            student, *given
        )
        rewards = [-np.log(2), np.log(2)]
        advantages = np.array(
            credit.generalized_advantage(rewards, [first, second], 0.5, 0.5, bootstrap)
        )
        metrics = value[1]
        # The policy's gradient, a sum over the row; the critic's, a mean over its tokens: c_v (V -
        # R) / 2 with V - R = -A.
        expected = -advantages[:, None] * (np.eye(3)[[0, 1]] - [0.5, 0.25, 0.25])
        np.testing.assert_allclose(gradient[0][0, :2], expected, rtol=1e-5, err_msg=critic)
        slope = 1.0 if critic == "plain" else 0.5
        np.testing.assert_allclose(
            gradient[1][0], [*(-0.3 * slope * advantages), 0], rtol=1e-5, err_msg=critic
        )
        np.testing.assert_array_equal(gradient[2], 0)
        policy = -(advantages * np.log([0.5, 0.25])).sum()
        np.testing.assert_allclose(
            value[0], policy + 0.3 * (advantages**2).mean(), rtol=1e-5, err_msg=critic
        )
        returns = advantages + [first, second]
        for name, expected in {
            "value": [first, second],
            "td_error": [rewards[0] + second / 2 - first, rewards[1] + bootstrap / 2 - second],
            "gae": advantages,
            "gae_squared": advantages**2,
            "return": returns,
            "return_squared": returns**2,
        }.items():
            np.testing.assert_allclose(metrics[name], np.mean(expected), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("trunk_gradient", [False, True])
def test_the_head_reads_the_state_before_each_token_and_after_the_last(trunk_gradient):
    method = GAEOPD(trunk_gradient=trunk_gradient)
    start = method.init_modules(2, jax.random.key(0))
    assert {name: (a.shape, a.dtype) for name, a in start.items()} == {
        "value_weights": ((2,), jnp.float32),
        "value_bias": ((), jnp.float32),
    }
    # Three columns of tokens, four of states; rows of three tokens, of one, of none. Behind them
    # stands nothing.
    hidden = np.full((3, 4, 2), np.nan)
    hidden[0], hidden[1, :2], hidden[2, :1] = np.arange(8).reshape(4, 2), [[1, 0], [0, 1]], [[5, 5]]
    mask = jnp.asarray([[True] * 3, [True, False, False], [False] * 3])
    modules = {"value_weights": jnp.asarray([1.0, 10.0]), "value_bias": jnp.asarray(0.5)}

    def made(modules, hidden):
        out = method.apply_modules(modules, hidden, mask)
        return jnp.where(mask, out["values"], 0).sum() + 100 * out["bootstrap"][:2].sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(made, argnums=(0, 1), has_aux=True))(
        modules, jnp.asarray(hidden, jnp.bfloat16)
    )
    np.testing.assert_array_equal(out["values"][0], [10.5, 32.5, 54.5])
    assert out["values"][1, 0] == 1.5 and out["values"].dtype == jnp.float32
    np.testing.assert_array_equal(out["bootstrap"], [[76.5], [10.5], [55.5]])
    np.testing.assert_array_equal(
        gradient[0]["value_weights"], [0 + 2 + 4 + 600 + 1 + 0, 1 + 3 + 5 + 700 + 0 + 100]
    )
    on_hidden = np.where(np.isnan(hidden), 0, gradient[1].astype(jnp.float32))
    assert on_hidden.any() == trunk_gradient and not np.isnan(gradient[1].astype(jnp.float32)).any()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"discount": 1.5}, r"discount=1.5 must lie in \[0, 1\]"),
        ({"gae_lambda": -0.5}, r"gae_lambda=-0.5 must lie in \[0, 1\]"),
        ({"value_weight": 0.0}, "value_weight=0.0 must be positive.*opd_pg"),
        ({"modules_learning_rate": 0.0}, "modules_learning_rate=0.0 must be positive"),
        ({"critic": "split"}, "unknown critic 'split'"),
        ({"log_ratio_clip": -1.0}, "log_ratio_clip=-1.0 must be positive"),
    ],
)
def test_bad_settings_are_refused_with_the_cure(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        GAEOPD(**settings)


def test_it_says_what_it_reads_and_what_it_is():
    assert GAEOPD().inputs == ("truncated",) and GAEOPD().module_inputs == ("values", "bootstrap")
    assert GAEOPD(reward_weight=1.0).inputs == ("group_advantage", "truncated")
    assert (
        GAEOPD(critic="kl_split").variables().credit
        == "GAE, discount 1, lambda 0.95, critic split at the KL"
    )
