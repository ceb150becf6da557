import math

import numpy as np
import pytest

from jopd.losses.g_opd import GOPD
from tests.losses.one_token import at, expected_gradient, holds_where_arrays_end
from tests.reference.divergences import reverse_kl_gradient, softmax

LOGITS = np.random.default_rng(0).normal(size=(3, 6))
STUDENT, TEACHER, BASE = LOGITS

# By hand, token 0: pi = 1/4, q = 1/2, base = 1/8, so log q - log pi = log 2 and the reward log q -
# log base = log 4.
PI, Q, INITIAL = [[0.25, 0.75], [0.9, 0.1]], [[0.5, 0.5], [0.3, 0.7]], [[0.125, 0.875], [0.6, 0.4]]


def by_hand(**settings):
    method = GOPD(**settings)
    views = {
        view: rows
        for view, rows in {"teacher": Q, "initial": INITIAL}.items()
        if view in method.views
    }
    inputs = {"group_advantage": [-2.0]} if method.reward_weight else {}
    return at(method, PI, views, [0, 1], [1, 0], **inputs)


@pytest.mark.parametrize(
    "settings, advantage",
    [
        ({}, 1.5),  # log 2 + log 4 / 4
        ({"scale": 0.5}, 0),  # log 2 - log 4 / 2
        ({"scale": 1.0}, 1),
        ({"scale": 2.0}, 3),
        ({"scale": 2.0, "log_ratio_clip": 2 * math.log(2)}, 2),  # the extrapolated one is clipped
        ({"reward_weight": math.log(2)}, -0.5),  # 1.5 - 2
    ],
)
def test_by_hand(settings, advantage):
    advantage *= math.log(2)
    value, gradient, metrics = by_hand(**settings)
    np.testing.assert_allclose(value, advantage * math.log(4), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        gradient[0], [-0.75 * advantage, 0.75 * advantage], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(metrics["advantage"], advantage, rtol=1e-5, atol=1e-6)


def test_logs_the_reward_and_the_teacher():
    _, _, metrics = by_hand()
    np.testing.assert_allclose(metrics["reward"], math.log(4), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["kl"], math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4, rtol=1e-5
    )
    assert (
        "log_ratio_clipped" not in metrics
        and by_hand(log_ratio_clip=0.1)[2]["log_ratio_clipped"] == 1
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25])
def test_descends_the_kl_to_the_extrapolated_teacher(scale):
    target = softmax((1 - scale) * np.log(softmax(BASE)) + scale * np.log(softmax(TEACHER)))
    views = {"teacher": TEACHER} | ({"initial": BASE} if scale != 1 else {})
    gradient = expected_gradient(GOPD(scale=scale), STUDENT, **views)
    np.testing.assert_allclose(gradient, reverse_kl_gradient(softmax(STUDENT), target), atol=1e-10)


def test_only_agreement_of_all_three_is_rest():
    same = at(GOPD(), PI, {"teacher": PI, "initial": PI}, [0, 1])
    np.testing.assert_allclose(same[0], 0, atol=1e-7)
    np.testing.assert_allclose(same[1], 0, atol=1e-7)
    past_the_teacher = at(GOPD(), PI, {"teacher": PI, "initial": INITIAL}, [0, 1])
    assert np.abs(past_the_teacher[1]).min() > 0.01


def test_where_arrays_end():
    holds_where_arrays_end(GOPD())


def test_scale_1_has_no_use_for_the_initial_model():
    assert GOPD(scale=1.0).views == ("teacher",) and GOPD().views == ("teacher", "initial")
    assert (
        "1.25 × reward" in GOPD().variables().regularisation
        and GOPD(scale=1.0).variables().regularisation == "none"
    )


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_rewards_nothing_is_refused(scale):
    with pytest.raises(ValueError, match="scale=.* must be positive: 1 is on-policy distillation"):
        GOPD(scale=scale)
