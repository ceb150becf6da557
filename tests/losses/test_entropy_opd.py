import math

import numpy as np
import pytest

from jopd.losses.entropy_opd import EntropyOPD
from tests.losses.one_token import at, expected_gradient, holds_where_arrays_end
from tests.reference.divergences import entropy, reverse_kl_gradient, softmax, top

# By hand: where q = (1/2, 1/4, 1/4) its entropy is 1.04 > .8, where q = (9/10, 1/20, 1/20) it is
# .39. Token 0 has l = log 2 at the first and log 3.6 at the second, where pi = (1/4, 1/2, 1/4). The
# top 2 of q, ties to the lowest id, are tokens 0 and 1: 1/2 log 2 + 1/4 log 1/2 = log 2 / 4.
PI = [[0.25, 0.5, 0.25]] * 2
Q = [[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]


def test_by_hand():
    value, gradient, metrics = at(EntropyOPD(top_k=2, coefficient=2.0), PI, {"teacher": Q}, [0, 0])
    ratios = np.log([2, 3.6])
    np.testing.assert_allclose(
        value, (ratios.sum() * math.log(4) + 2 * math.log(2) / 4) / 2, rtol=1e-5
    )
    # e_0 - pi = (3/4, -1/2, -1/4); the forward KL's is 3/4 pi - (1/2, 1/4, 0).
    forward = np.array([3 / 16 - 1 / 2, 3 / 8 - 1 / 4, 3 / 16])
    policy = -ratios[:, None] * np.array([0.75, -0.5, -0.25])
    np.testing.assert_allclose(gradient, (policy + 2 * np.outer([1, 0], forward)) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["forward_kl"], math.log(2) / 8, rtol=1e-5)
    assert metrics["undecided_teacher"] == 0.5


def test_the_partial_sum_may_be_negative_and_moves_mass_even_at_the_teacher():
    # Of q = (.35, .35, .3) the top 1 is .35: at the teacher the value is 0, the gradient .35 pi -
    # .35 e_0; and where the student thinks still more of that token the partial sum is negative:
    # .35 log(.35 / .7).
    q, method = [[0.35, 0.35, 0.3]], EntropyOPD(top_k=1)
    value, gradient, _ = at(method, q, {"teacher": q}, [0])
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient[0], 0.35 * np.array([0.35 - 1, 0.35, 0.3]), rtol=1e-5)
    assert not method.vanishes_at_teacher
    metrics = at(method, [[0.7, 0.2, 0.1]], {"teacher": q}, [0])[2]
    np.testing.assert_allclose(metrics["forward_kl"], -0.35 * math.log(2), rtol=1e-5)


def test_the_whole_vocabulary_has_an_identity():
    value, gradient, _ = at(EntropyOPD(top_k=3), PI, {"teacher": PI}, [0, 1])
    np.testing.assert_allclose(value, 0, atol=1e-7)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("threshold", [0.8, 3.0])
def test_descends_the_reverse_kl_plus_the_gated_partial_forward_kl(threshold):
    student, teacher = np.random.default_rng(0).normal(size=(2, 6))
    pi, q = softmax(student), softmax(teacher)
    assert 0.8 < entropy(q) < 3
    inside = np.zeros(6)
    inside[top(q, 3)] = 1
    # d/dz of -sum_inside q log softmax(z).
    forward = (q * inside).sum() * pi - q * inside
    expected = reverse_kl_gradient(pi, q) + (0.5 * forward if threshold == 0.8 else 0)
    method = EntropyOPD(entropy_threshold=threshold, top_k=3, coefficient=0.5)
    np.testing.assert_allclose(
        expected_gradient(method, student, teacher=teacher), expected, atol=1e-10
    )


def test_where_arrays_end():
    holds_where_arrays_end(EntropyOPD(top_k=2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"entropy_threshold": -0.1}, "entropy_threshold=-0.1 must not be negative; 0.8 nats"),
        ({"top_k": 0}, "top_k=0 must be at least 1; 16"),
        (
            {"coefficient": 0.0},
            "coefficient=0.0 must be positive; without the forward KL use opd_pg",
        ),
        ({"log_ratio_clip": 0.0}, "log_ratio_clip=0.0 must be positive"),
    ],
)
def test_bad_settings_are_refused_with_the_cure(settings, message):
    with pytest.raises(ValueError, match=message):
        EntropyOPD(**settings)


def test_describes_its_gate():
    assert EntropyOPD().variables().gates == "forward KL where teacher entropy > 0.8"
