"""Intervals over seeds and problems, against Student's and by their coverage."""

import numpy as np
import pytest
from scipy import stats

from tests.scripts import neighbour

intervals = neighbour("intervals")


def test_of_one_run_it_is_students_over_problems():
    values = [0.0, 1.0, 1.0, 1.0, 0.0]
    found = intervals.mean(*intervals.table([values]))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == (pytest.approx(0.6), pytest.approx(low), pytest.approx(high), 1)


def test_two_runs_and_two_problems_by_hand():
    # Runs: 1/2 and 1; problems: 1 and 1/2. Each a variance of the mean of 1/16: 1/8 in all, of 2
    # degrees of freedom: 4.3027 * sqrt(1/8) = 1.5212.
    value, low, high, seeds = intervals.mean(*intervals.table([[1, 0], [1, 1]]))
    assert (value, seeds) == (0.75, 2)
    assert (high - value, value - low) == (pytest.approx(1.5212, abs=1e-4),) * 2


def test_of_a_mean_over_tokens_long_answers_count_more():
    sums, tokens = np.array([[3.0, 1.0], [5.0, 1.0]]), np.array([[3.0, 1.0], [1.0, 1.0]])
    assert intervals.mean(sums, tokens).value == pytest.approx(10 / 6)


def test_what_is_common_to_both_cancels_in_a_difference():
    draw = np.random.default_rng(0).random((3, 50))
    same = intervals.difference((draw, np.ones_like(draw)), (draw + 0.25, np.ones_like(draw)))
    assert same[:3] == (pytest.approx(0.25),) * 3


@pytest.mark.parametrize("sizes", [(0.0, 1.0), (0.3, 1.0), (1.0, 0.1)])
def test_it_covers_seeds_and_problems_together(sizes):
    """Drawn anew, 95 of 100 intervals hold the truth, within what 2,000 draws can tell, or a few
    more.
    """
    of_seeds, of_problems = sizes
    generator, inside = np.random.default_rng(1), 0
    for _ in range(2000):
        values = (
            of_seeds * generator.normal(size=(3, 1))
            + of_problems * generator.normal(size=(1, 40))
            + 0.5 * generator.normal(size=(3, 40))
        )
        found = intervals.mean(values, np.ones_like(values))
        inside += found.low <= 0 <= found.high
    assert 0.935 <= inside / 2000 <= 0.99


@pytest.mark.parametrize("right", [0, 1])
def test_problems_that_all_came_out_alike_leave_room_for_some_that_would_not(right):
    answers = intervals.table([[right] * 400] * 3)
    wanted = stats.binomtest(400 * right, 400).proportion_ci(method="wilson")
    assert intervals.mean(*answers) == pytest.approx((right, *wanted, 3))
    # 3.8415 / (400 + 3.8415)
    change = intervals.difference(answers, answers)
    assert change == pytest.approx((0, -0.0095123, 0.0095123, 3), abs=1e-7)
    # Lengths that are all alike are no yes or no.
    assert intervals.mean(np.full((3, 400), 7.0), np.ones((3, 400)))[:3] == (7, 7, 7)
