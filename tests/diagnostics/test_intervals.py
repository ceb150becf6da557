import numpy as np
import pytest

from jopd.diagnostics.intervals import token_mean, wilson

Z = 1.959964  # the normal quantile at 0.975


def test_wilson_worked_by_hand():
    # 8 of 10: z^2 = 3.841459, centre (0.8 + 0.192073) / 1.384146 = 0.716739,
    # half width sqrt(0.16 * 0.384146 + 0.192073^2) / 1.384146 = 0.226577.
    np.testing.assert_allclose(wilson(8, 10), (0.490162, 0.943318), atol=2e-6)
    # None of 10: the upper bound is z^2 / (10 + z^2).
    low, high = wilson(0, 10)
    assert low == 0
    np.testing.assert_allclose(high, 3.841459 / 13.841459, rtol=1e-6)
    assert wilson(10, 10) == (pytest.approx(1 - high), 1)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (3, 7), (50, 100), (999, 1000)])
def test_wilson_is_scipys(successes, count, confidence):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose(
        wilson(successes, count, confidence), (expected.low, expected.high), atol=1e-12
    )


def test_no_problems_say_nothing():
    assert wilson(0, 0) == (0, 1)


def test_token_mean_worked_by_hand():
    # Rows (1 of 1 token) and (3 of 1): mean 2, squares 1 + 1, error sqrt(2 / 1 * 2) / 2 = 1.
    np.testing.assert_allclose(token_mean([1, 3], [1, 1]), (2 - Z, 2 + Z), rtol=1e-6)
    # Rows with the same mean have no spread, whatever their lengths.
    assert token_mean([2, 6], [1, 3]) == (2, 2)
    assert token_mean([2], [4]) == (-np.inf, np.inf)


def test_token_mean_covers_the_truth_where_tokens_of_a_row_go_together():
    rng = np.random.default_rng(0)
    trials, hits = 400, 0
    for _ in range(trials):
        lengths = rng.integers(1, 60, 80)
        row = rng.normal(1, 0.5, 80)  # a row's own mean; the truth is 1
        low, high = token_mean(row * lengths + rng.normal(0, 0.3, 80) * np.sqrt(lengths), lengths)
        hits += low < 1 < high
    assert 0.91 < hits / trials < 0.98


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "successes=3"),
        (lambda: wilson(-1, 2), "successes=-1"),
        (lambda: wilson(1, 2, confidence=95.0), "confidence=95"),
        (lambda: token_mean([1, 2], [1]), "same rows"),
        (lambda: token_mean([0, 0], [0, 0]), "tokens"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
