import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.losses import evaluate
from jopd.losses.cr_opd import CROPD
from jopd.losses.credit import (
    generalized_advantage,
    group_advantage,
    immediate,
    return_to_go,
    td_errors,
)
from jopd.losses.gae_opd import GAEOPD
from jopd.losses.opd_pg import OPDPolicyGradient
from tests.reference import credit as reference

LENGTHS = (4, 0, 1, 3)
MASK = np.arange(4)[None, :] < np.array(LENGTHS)[:, None]
REWARDS, VALUES = np.where(
    MASK, np.random.default_rng(0).normal(size=(2, 4, 4)), np.nan
)  # padding holds anything
BOOTSTRAP = np.array([0.0, np.nan, 2.0, -1.0])


def in_float64(function, *arrays, **settings):
    with jax.enable_x64(True):
        return np.asarray(function(*(jnp.asarray(a) for a in arrays), **settings))


def agrees(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_by_hand():
    rewards, mask = jnp.asarray([[1.0, 2.0, 4.0, 9.0]]), jnp.asarray([[1, 1, 1, 0]])
    np.testing.assert_array_equal(immediate(rewards, mask), [[1, 2, 4, 0]])
    np.testing.assert_array_equal(return_to_go(rewards, mask), [[7, 6, 4, 0]])
    np.testing.assert_array_equal(return_to_go(rewards, mask, discount=0.5), [[3, 4, 4, 0]])
    # delta = 4 + 3/2 - 1 = 4.5; 2 + 1/2 - 0 = 2.5; 1 + 0 - 1 = 0, and gae_lambda discount = 1/4.
    values, bootstrap = jnp.asarray([[1.0, 0.0, 1.0, 9.0]]), jnp.asarray([3.0])
    settings = {"discount": 0.5, "gae_lambda": 0.5, "bootstrap": bootstrap}
    found = generalized_advantage(rewards, values, mask, **settings)
    np.testing.assert_array_equal(found, [[0.90625, 3.625, 4.5, 0]])
    np.testing.assert_array_equal(
        td_errors(rewards, values, mask, discount=0.5, bootstrap=bootstrap), [[0, 2.5, 4.5, 0]]
    )


@pytest.mark.parametrize("discount", [0.0, 0.7, 1])
def test_returns_are_the_sums_in_the_definition(discount):
    expected = reference.by_row(
        lambda rewards: reference.return_to_go(rewards, discount), LENGTHS, REWARDS
    )
    agrees(in_float64(return_to_go, REWARDS, MASK, discount=discount), expected)


@pytest.mark.parametrize("discount, gae_lambda", [(0.9, 0.95), (1, 1), (0.5, 0.0), (0.0, 1.0)])
def test_generalized_advantages_are_the_sums_in_the_definition(discount, gae_lambda):
    expected = reference.by_row(
        lambda rewards, values, bootstrap: reference.generalized_advantage(
            rewards, values, discount, gae_lambda, bootstrap
        ),
        LENGTHS,
        REWARDS,
        VALUES,
        BOOTSTRAP,
    )
    with jax.enable_x64(True):
        bootstrap = jnp.asarray(BOOTSTRAP)
        found = in_float64(
            generalized_advantage,
            REWARDS,
            VALUES,
            MASK,
            discount=discount,
            gae_lambda=gae_lambda,
            bootstrap=bootstrap,
        )
    agrees(found, expected)


def test_without_a_bootstrap_every_row_ended():
    expected = reference.by_row(
        lambda rewards, values: reference.generalized_advantage(rewards, values, 0.9, 0.5, 0.0),
        LENGTHS,
        REWARDS,
        VALUES,
    )
    agrees(
        in_float64(generalized_advantage, REWARDS, VALUES, MASK, discount=0.9, gae_lambda=0.5),
        expected,
    )


def test_narrow_numbers_are_summed_in_float32():
    # 257 is no bfloat16: a sum that stays narrow sticks at 256.
    ones, mask = jnp.ones((1, 300), jnp.bfloat16), jnp.ones((1, 300), bool)
    total = return_to_go(ones, mask)
    assert total.dtype == jnp.float32 and total[0, 0] == 300
    assert generalized_advantage(ones, ones, mask, discount=1.0, gae_lambda=1.0)[0, 0] == 299


# The mask.

HOLES = np.array([[1, 1, 0, 0], [1, 0, 1, 0]])


@pytest.mark.parametrize(
    "function",
    [
        lambda mask: return_to_go(jnp.ones((2, 4)), mask),
        lambda mask: generalized_advantage(
            jnp.ones((2, 4)), jnp.ones((2, 4)), mask, discount=1.0, gae_lambda=1.0
        ),
    ],
)
def test_a_hole_in_the_mask_is_refused_where_it_can_be_seen(function):
    for mask in (HOLES, HOLES.astype(bool)):
        with pytest.raises(ValueError, match="row 1 is off before a token"):
            function(jnp.asarray(mask))
    traced = jax.jit(function)(jnp.asarray(HOLES))
    np.testing.assert_array_equal(np.asarray(traced)[HOLES == 0], 0)


def test_immediate_credit_knows_no_order():
    np.testing.assert_array_equal(immediate(jnp.ones((2, 4)), jnp.asarray(HOLES)), HOLES)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"discount": 1.1, "gae_lambda": 1.0}, r"discount=1.1 must lie in \[0, 1\]"),
        ({"discount": 1.0, "gae_lambda": -0.1}, r"gae_lambda=-0.1 must lie in \[0, 1\]"),
    ],
)
def test_shares_outside_the_unit_interval_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        generalized_advantage(
            jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool), **settings
        )
    with pytest.raises(ValueError, match=r"discount=nan must lie"):
        return_to_go(jnp.ones((1, 2)), jnp.ones((1, 2), bool), discount=float("nan"))


# Groups.


def test_a_group_advantage_is_the_reward_in_sample_deviations():
    # (1, 0, 0): mean 1/3, variance (4/9 + 1/9 + 1/9) / 2 = 1/3.
    found = group_advantage(jnp.asarray([1.0, 0, 0, 0.1, 0.1, 0.1]), 3)
    assert found.shape == (6, 1)
    np.testing.assert_allclose(
        found[:3, 0], np.array([2, -1, -1]) / 3 / (np.sqrt(1 / 3) + 1e-4), rtol=1e-6
    )
    np.testing.assert_array_equal(
        found[3:], 0
    )  # exactly, although three times .1 divided by 3 is not .1


@pytest.mark.parametrize("rows, samples", [(4, 1), (4, 3)])
def test_groups_need_two_rows_and_one_size(rows, samples):
    with pytest.raises(ValueError, match=f"samples={samples} with {rows} rows"):
        group_advantage(jnp.ones(rows), samples)


# What every policy gradient with such credit must hold, in the settings that take their own way
# through the code.

METHODS = [
    OPDPolicyGradient(credit="return_to_go", baseline="kl"),
    OPDPolicyGradient(
        credit="discounted", discount=0.9, log_ratio_clip=1.0, reward_weight=0.5, temperature=2.0
    ),
    GAEOPD(critic="kl_split", discount=0.9, temperature=2.0),
    CROPD(credit="return_to_go", empty_route="abstain", student_power=0.5, temperature=2.0),
    CROPD(credit="gae", discount=0.9, teacher_reachable=0.01),
]
B, T, V = 4, 4, 6


def batch(method):
    """Logits [B, T, V] whose last token is next to impossible, and inputs."""
    draw = np.random.default_rng(3).normal
    student, teacher = jnp.asarray(
        np.pad(draw(size=(2, B, T, V - 1)) * 2, [(0, 0)] * 3 + [(0, 1)]), jnp.float32
    )
    made = {
        "group_advantage": draw(size=(B, 1)),
        "truncated": np.array([[1.0], [0], [1], [0]]),
        "values": draw(size=(B, T)),
        "bootstrap": draw(size=(B, 1)),
    }
    inputs = {
        name: jnp.asarray(made[name], jnp.float32)
        for name in (*method.inputs, *method.module_inputs)
    }
    return student.at[..., -1].set(-1e9), teacher.at[..., -1].set(-1e9), inputs


@functools.cache
def compiled(method):
    """((loss, metrics), (student's gradient, teacher's gradient)) as a function of logits, inputs
    and mask.
    """
    tokens = jnp.asarray(np.random.default_rng(4).integers(V - 1, size=(B, T)))
    loss = lambda z, q, inputs, mask: evaluate(method, z, {"teacher": q}, tokens, mask, **inputs)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_only_what_the_mask_lets_through_counts_and_only_the_student_learns(method):
    student, teacher, inputs = batch(method)
    mask = jnp.asarray(MASK)
    spoil = lambda a: (
        jnp.where(jnp.expand_dims(mask, range(2, a.ndim)), a, jnp.nan) if a.shape[1] == T else a
    )
    spoilt = jax.device_get(
        compiled(method)(*jax.tree.map(spoil, (student, teacher, inputs)), mask)
    )
    chex.assert_trees_all_equal(
        spoilt,
        jax.device_get(compiled(method)(*batch(method), mask)),
    )
    (value, metrics), (gradient, teacher_gradient) = spoilt
    assert np.isfinite(value) and gradient[MASK].any(axis=-1).all()
    assert not gradient[~MASK].any() and not teacher_gradient.any()
    assert all(np.isfinite(metric) for metric in metrics.values())
    # Nothing written at all.
    (value, _), (gradient, _) = compiled(method)(student, teacher, inputs, jnp.zeros_like(mask))
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_impossible_tokens_are_harmless(method):
    student, teacher, inputs = batch(method)
    never = lambda a: a.at[..., -1].set(-jnp.inf)
    mask = jnp.asarray(MASK)
    found = compiled(method)(never(student), never(teacher), inputs, mask)
    chex.assert_trees_all_equal(found, compiled(method)(student, teacher, inputs, mask))
    assert not found[1][0][..., -1].any()
    # What the teacher wants most and the student can never write.
    (value, _), (gradient, _) = compiled(method)(
        never(student), teacher.at[..., -1].set(3.0), inputs, mask
    )
    assert np.isfinite(value) and np.isfinite(gradient).all() and not gradient[..., -1].any()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_teacher_that_is_the_student_teaches_nothing(method):
    student, _, inputs = batch(method)
    (value, _), (gradient, _) = compiled(method)(student, student, inputs, jnp.asarray(MASK))
    still = abs(float(value)) < 1e-6 and not np.any(np.abs(gradient) > 1e-7)
    assert still == method.vanishes_at_teacher


def test_narrow_logits_are_computed_with_in_float32():
    method = METHODS[-1]
    student, teacher, inputs = batch(method)
    narrow = [logits.astype(jnp.bfloat16) for logits in (student, teacher)]
    found = compiled(method)(*narrow, inputs, jnp.asarray(MASK))
    expected = compiled(method)(
        *(logits.astype(jnp.float32) for logits in narrow), inputs, jnp.asarray(MASK)
    )
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5)
    assert found[1][0].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found[1][0].astype(jnp.float32), expected[1][0], rtol=0.01, atol=1e-6
    )
