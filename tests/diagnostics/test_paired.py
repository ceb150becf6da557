import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from jopd.diagnostics.paired import changes, mean_change, rate_change


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
    # Differences of one token a problem: 0, 1, 2, with deviation 1 over 3 problems.
    change = mean_change([0, 0, 0], [1, 1, 1], [0, 1, 2], [1, 1, 1])
    half = 1.959964 / np.sqrt(3)
    assert change == pytest.approx((1.0, 1 - half, 1 + half))
    assert mean_change([1], [1], [2], [1])[1:] == (float("-inf"), float("inf"))


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


@pytest.mark.parametrize("tokens", [[1, 1], [0, 0, 0]])
def test_what_does_not_belong_together_is_refused(tokens):
    with pytest.raises(ValueError, match="same problems, not empty"):
        mean_change([1, 2, 3], [1, 1, 1], [1, 2, 3][: len(tokens)], tokens)


def test_records_of_other_problems_have_no_changes():
    record = lambda problems: {"by_problem": {"problems": problems, "accuracy": [1, 0]}}
    assert changes(record("a"), record("b")) == {} == changes({}, {})
    assert set(changes(record("a"), record("a"))) == {"accuracy"}
