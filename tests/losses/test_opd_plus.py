import math

import jax.numpy as jnp
import numpy as np
import pytest

from jopd.losses.opd_plus import OPDPlus, faithful_advantage
from tests.losses.one_token import at, expected_gradient, holds_where_arrays_end
from tests.reference.divergences import softmax
from tests.reference.enumeration import complex_step

DIVERGENCES = ["reverse_kl", "forward_kl", "jensen_shannon", "total_variation"]
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 6))

# By hand, token 0: u = 4.
PI, Q = [[0.125, 0.875], [0.9, 0.1]], [[0.5, 0.5], [0.3, 0.7]]


def f_divergence(name, logits, q, beta=0.5):
    """sum_v pi f(q / pi), analytic in the logits: |u - 1| is the side that u is on, times u - 1."""
    weights = np.exp(logits - logits.real.max())
    pi = weights / weights.sum()
    u = q / pi
    blend = beta * u + 1 - beta
    f = {
        "reverse_kl": -np.log(u),
        "forward_kl": u * np.log(u),
        "jensen_shannon": beta * u * np.log(u / blend) - (1 - beta) * np.log(blend),
        "total_variation": np.sign(u.real - 1) * (u - 1) / 2,
    }[name]
    return (pi * f).sum()


@pytest.mark.parametrize(
    "name, beta", [*((name, None) for name in DIVERGENCES), ("jensen_shannon", 0.1)]
)
def test_descends_its_divergence(name, beta):
    exact = complex_step(lambda z: f_divergence(name, z, softmax(TEACHER), beta or 0.5), STUDENT)
    assert np.abs(exact).max() > 0.01
    gradient = expected_gradient(OPDPlus(divergence=name, beta=beta), STUDENT, teacher=TEACHER)
    np.testing.assert_allclose(gradient, exact, atol=1e-10)


@pytest.mark.parametrize(
    "settings, advantage",
    [
        ({"divergence": "reverse_kl"}, math.log(4)),
        ({"divergence": "forward_kl"}, 3),
        ({"divergence": "jensen_shannon"}, math.log(5 / 2) / 2),
        ({"divergence": "jensen_shannon", "beta": 0.25}, 3 / 4 * math.log(7 / 4)),
        ({"divergence": "total_variation"}, 1 / 2),
        ({"divergence": "forward_kl", "log_ratio_clip": math.log(2)}, 1),
        ({"divergence": "total_variation", "reward_weight": 2.0}, 1 / 2 - 1),
    ],
)
def test_by_hand(settings, advantage):
    inputs = {"group_advantage": [-0.5]} if "reward_weight" in settings else {}
    value, gradient, metrics = at(OPDPlus(**settings), PI, {"teacher": Q}, [0, 1], [1, 0], **inputs)
    np.testing.assert_allclose(value, advantage * math.log(8), rtol=1e-5)
    np.testing.assert_allclose(gradient[0], advantage * np.array([-7 / 8, 7 / 8]), rtol=1e-5)
    np.testing.assert_allclose(metrics["advantage"], advantage, rtol=1e-5)
    np.testing.assert_allclose(metrics["log_ratio"], math.log(4), rtol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_is_finite_at_the_clip_and_exactly_zero_at_the_teacher(name):
    log_ratios = jnp.asarray([-80.0, 80.0, 0.0, 1e-6, -1e-6])
    advantages = faithful_advantage(name, log_ratios)
    assert (
        np.isfinite(advantages).all() and advantages[0] < 0 < advantages[1] and advantages[2] == 0
    )
    np.testing.assert_allclose(advantages[3:], 0, atol=2e-6)
    gradient = at(OPDPlus(divergence=name), PI, {"teacher": PI}, [0, 1])[1]
    np.testing.assert_array_equal(gradient, 0)


def test_where_arrays_end():
    holds_where_arrays_end(OPDPlus())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"divergence": "reverse_k"}, "unknown divergence 'reverse_k': did you mean 'reverse_kl'"),
        ({"divergence": "k3"}, "unknown divergence 'k3'"),
        ({"divergence": "forward_kl", "beta": 0.5}, "beta=0.5 is a setting of jensen_shannon"),
        ({"beta": 1.0}, "beta=1.0 must lie in"),
        ({"log_ratio_clip": None}, "log_ratio_clip=None must be set, to at most 80"),
        ({"log_ratio_clip": 100.0}, "log_ratio_clip=100.0 must be set, to at most 80"),
    ],
)
def test_bad_settings_are_refused_with_the_cure(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        OPDPlus(**settings)
