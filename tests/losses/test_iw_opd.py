import math

import numpy as np
import pytest

from jopd.losses.iw_opd import IWOPD
from tests.losses.one_token import at, holds_where_arrays_end

# By hand, token 0 each time: pi = 1/4 and q = 1/2, 1/16, 1/8, so l = log 2 (1, -2, -1), |l| sums to
# 4 log 2, and the shares of it before each token are 0, 1/4, 3/4. The fourth token is masked out.
PI = [[0.25, 0.75]] * 4
Q = [[1 / 2, 1 / 2], [1 / 16, 15 / 16], [1 / 8, 7 / 8], [0.99, 0.01]]
LOG_RATIOS, WEIGHTS = np.log(2) * np.array([1, -2, -1]), np.array([1.5, 1.375, 1.125])


def by_hand(method, q=Q, **inputs):
    return at(method, PI, {"teacher": q}, [0] * 4, [1, 1, 1, 0], **inputs)


@pytest.mark.parametrize(
    "settings, advantages, weights",
    [
        ({}, LOG_RATIOS, WEIGHTS),
        ({"strength": 0.0}, LOG_RATIOS, np.ones(3)),
        ({"strength": 1.0}, LOG_RATIOS, 2 * WEIGHTS - 1),
        # Clipped at log 2 all three are as large: 0, 1/3 and 2/3 of the disagreement lie before
        # them.
        (
            {"log_ratio_clip": math.log(2)},
            np.log(2) * np.array([1, -1, -1]),
            1.5 - np.arange(3) / 6,
        ),
    ],
)
def test_by_hand(settings, advantages, weights):
    value, gradient, metrics = by_hand(IWOPD(**settings))
    weighted = weights * advantages
    np.testing.assert_allclose(value, weighted.mean() * math.log(4), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[:3, 0], -0.75 * weighted / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["importance_weight"], weights.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["log_ratio"], LOG_RATIOS.mean(), rtol=1e-5)


def test_a_silenced_token_still_counts_as_disagreement():
    _, gradient, _ = by_hand(IWOPD(), weight=[0.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(
        gradient[:3, 0], -0.75 * np.array([0, 1, 1]) * WEIGHTS * LOG_RATIOS / 2, atol=1e-6
    )


def test_a_row_without_disagreement_has_the_limit_and_no_loss():
    value, gradient, metrics = by_hand(IWOPD(), PI)
    np.testing.assert_allclose(value, 0, atol=1e-7)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    assert metrics["importance_weight"] == 1.5


def test_a_task_reward_is_weighted_too():
    found = by_hand(IWOPD(reward_weight=0.5), PI, group_advantage=[-2.0])
    np.testing.assert_allclose(found[1][:3, 0], 0.75 * 1.5 / 3, rtol=1e-5)


def test_where_arrays_end():
    holds_where_arrays_end(IWOPD())


def test_a_strength_below_zero_is_refused():
    with pytest.raises(
        ValueError, match="strength=-0.1 must not be negative; 0.5 is the paper's, 0 is opd_pg"
    ):
        IWOPD(strength=-0.1)


def test_describes_its_weight():
    assert (
        IWOPD(log_ratio_clip=5.0)
        .variables()
        .gates.startswith("log-ratio clip 5, weight 1 to 1.5 by")
    )
