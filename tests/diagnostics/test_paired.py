import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from jopd.diagnostics.paired import (
    MeanChange,
    RateChange,
    change_of_runs,
    changes,
    mean_change,
    rate_change,
)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_scipys_binomial_test_of_what_changed(pairs):
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    gained = sum(b and not a for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    change = rate_change(before, after)
    assert (change.gained, change.lost) == (gained, lost)
    exact = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert change.p == pytest.approx(exact)


def test_mcnemar_by_hand():
    # Of four that changed all were lost: 2 / 2^4.
    change = rate_change([1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1])
    assert (change.gained, change.lost, change.p) == (0, 4, 0.125)
    assert not change.is_shown


def test_the_change_of_a_mean_by_hand():
    # Means 1 and 2; the shares in the difference are 2 - 0 = 2 ... per problem: 1, 1, 1.
    change = mean_change([2, 4, 6], [2, 4, 6], [4, 8, 12], [2, 4, 6])
    assert change == pytest.approx((1.0, 1.0, 1.0))
    # Differences of one token a problem: 0, 1, 2, with deviation 1 over 3 problems. Student's t of
    # two degrees of freedom is 4.302653 at 0.975.
    change = mean_change([0, 0, 0], [1, 1, 1], [0, 1, 2], [1, 1, 1])
    half = 4.302653 / np.sqrt(3)
    assert change == pytest.approx((1.0, 1 - half, 1 + half))
    assert mean_change([1], [1], [2], [1])[1:] == (float("-inf"), float("inf"))


def test_answers_of_one_length_have_scipys_paired_interval():
    draw = np.random.default_rng(1)
    before, after = draw.gamma(2.0, size=(2, 12))
    interval = ttest_rel(after, before).confidence_interval(0.95)
    change = mean_change(7 * before, [7] * 12, 7 * after, [7] * 12)
    assert change[1:] == pytest.approx((interval.low, interval.high))


def test_its_interval_covers_the_truth_and_pairing_makes_it_narrow():
    draw = np.random.default_rng(0)
    covered, narrower = 0, 0
    for _ in range(400):
        hard = draw.gamma(2.0, size=150)  # of a problem, in both evaluations
        lengths = [draw.integers(5, 40, size=150) for _ in range(2)]
        kls = [hard + draw.normal(scale=0.1, size=150) + shift for shift in (0.0, 0.3)]
        change = mean_change(kls[0] * lengths[0], lengths[0], kls[1] * lengths[1], lengths[1])
        covered += change.low <= 0.3 <= change.high
        shuffled = draw.permutation(150)
        unpaired = mean_change(
            kls[0] * lengths[0], lengths[0], (kls[1] * lengths[1])[shuffled], lengths[1][shuffled]
        )
        narrower += change.high - change.low < unpaired.high - unpaired.low
    assert 0.92 < covered / 400 < 0.98 and narrower > 390


def test_few_problems_are_covered_too():
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        differences = draw.normal(size=4)
        change = mean_change([0] * 4, [1] * 4, differences, [1] * 4)
        covered += change.low <= 0 <= change.high
    assert 0.93 < covered / 2000 < 0.97


def test_mcnemar_of_many_problems():
    # z = 27 / sqrt(53) = 3.7 without a correction.
    change = rate_change([1] * 40 + [0] * 13, [0] * 40 + [1] * 13)
    assert change.p == pytest.approx(binomtest(13, 53).pvalue) and change.is_shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (RateChange(0, 0, 1.0), "no problem came out differently"),
        (RateChange(12, 0, 2 / 2**12), "12 gained, 0 lost, McNemar's exact test p = 0.00049"),
        (RateChange(20, 0, 2 / 2**20), "20 gained, 0 lost, McNemar's exact test p below 0.0001"),
        (MeanChange(-0.1, -0.15, -0.05), "a change of -0.100 [-0.150, -0.050] nats"),
        (MeanChange(2e-4, 1e-4, 3e-4), "a change of +0.0002 [+0.0001, +0.0003] nats"),
        (MeanChange(-1e-9, -1e-3, 1e-3), "a change of +0.000 [-0.001, +0.001] nats"),
        (MeanChange(0.5, float("-inf"), float("inf")), "a change of +0.500 nats on one problem"),
    ],
)
def test_a_change_in_words(change, said):
    assert str(change) == said


def test_runs_are_compared_problem_by_problem_with_all_their_seeds():
    def record(right, problems="the same"):
        return {"by_problem": {"problems": problems, "accuracy": right}}

    # Right in 1, 0, 2 of two runs before and in 2, 2, 2 after: differences 1/2, 1, 0, whose
    # deviation is 1/2.
    before, after = [record([1, 0, 1]), record([0, 0, 1])], [record([1, 1, 1])] * 2
    half = 4.302653 * 0.5 / np.sqrt(3)  # 1.24, and a share can't rise by more than 1
    change = change_of_runs(before, after, "accuracy")
    assert change == pytest.approx((0.5, 0.5 - half, 1))
    # One evaluation before training stands for every run.
    assert change_of_runs([record([0, 0, 0])], after, "accuracy") == pytest.approx((1, 1, 1))
    kl = lambda sums: {
        "by_problem": {"problems": "x", "kl": {"sums": sums, "tokens": [1, 3]}},
    }
    assert change_of_runs([kl([1, 3])], [kl([3, 9]), kl([1, 3])], "kl") == pytest.approx((1, 1, 1))
    for other in ([], [record([1, 1, 1], "others")], [{"accuracy": {"value": 1.0}}]):
        assert change_of_runs(before, other, "accuracy") is None
    assert change_of_runs(before, after, "kl") is None


def test_outcomes_of_other_problems_are_refused():
    with pytest.raises(ValueError, match="2 outcomes before and 3 after"):
        rate_change([0, 1], [0, 1, 1])


@pytest.mark.parametrize("tokens", [[1, 1], [0, 0, 0]])
def test_what_does_not_belong_together_is_refused(tokens):
    with pytest.raises(ValueError, match="same problems, not empty"):
        mean_change([1, 2, 3], [1, 1, 1], [1, 2, 3][: len(tokens)], tokens)


def test_records_of_other_problems_have_no_changes():
    record = lambda problems: {"by_problem": {"problems": problems, "accuracy": [1, 0]}}
    assert changes(record("a"), record("b")) == {} == changes({}, {})
    assert set(changes(record("a"), record("a"))) == {"accuracy"}
