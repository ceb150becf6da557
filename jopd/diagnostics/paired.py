"""Whether two evaluations of the same problems differ: problem by problem, as both answered them.

Two intervals that overlap say little, since most problems come out alike in both. What is compared
is what changed: the problems that one got right and the other wrong, and each problem's own
difference.
"""

from collections.abc import Mapping, Sequence
from math import comb, sqrt
from typing import Any, NamedTuple

import numpy as np

from jopd.diagnostics.intervals import Numbers, quantile

LEVEL = 0.05


class RateChange(NamedTuple):
    """How a share of problems changed.

    Attributes:
      gained, lost: problems that count after and not before, and the other way round.
      p: of McNemar's exact test that gaining and losing are equally likely, two-sided.
    """

    gained: int
    lost: int
    p: float

    @property
    def is_shown(self) -> bool:
        return self.p < LEVEL

    def __str__(self) -> str:
        p = f"{self.p:.2g}" if self.p >= 1e-4 else "below 0.0001"
        return f"{self.gained:,} gained, {self.lost:,} lost, McNemar's exact test p = {p}".replace(
            "= below", "below"
        )


class MeanChange(NamedTuple):
    """How a mean over tokens changed, with a 95 % interval of the change."""

    value: float
    low: float
    high: float

    @property
    def is_shown(self) -> bool:
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"a change of {self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] nats"


Change = RateChange | MeanChange


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """By measure, how it changed between two evaluation records of the same problems; empty where
    they do not say how each problem came out (`by_problem`), or are of other problems.
    """
    first, last = before.get("by_problem", {}), after.get("by_problem", {})
    changed: dict[str, Change] = {}
    if first.get("problems") != last.get("problems"):
        return changed
    for name in (set(first) & set(last)) - {"problems"}:
        was, now = first[name], last[name]
        if isinstance(was, Mapping):
            changed[name] = mean_change(was["sums"], was["tokens"], now["sums"], now["tokens"])
        else:
            changed[name] = rate_change(was, now)
    return changed


def rate_change(before: Sequence[int | bool], after: Sequence[int | bool]) -> RateChange:
    """McNemar's exact test of two answers, 0 or 1, to each of the same problems.

    Of the problems that changed, as many as are gained are binomial with probability 1/2 where
    nothing has changed but chance: p is twice the smaller tail, at most 1.

    Source: McNemar 1947, Psychometrika 12, 153-157, in its exact form. Grade S; the tests compare
    it with SciPy's binomial test.

    Raises:
      ValueError: lengths that differ.
    """
    pairs = list(zip(before, after, strict=True))
    gained = sum(1 for was, now in pairs if now and not was)
    lost = sum(1 for was, now in pairs if was and not now)
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1))
    return RateChange(gained, lost, min(1.0, 2 * tail / 2**n))


def mean_change(
    sums_before: Numbers, tokens_before: Numbers, sums_after: Numbers, tokens_after: Numbers
) -> MeanChange:
    """The difference of two means over tokens of answers to the same problems, with a normal
    interval whose unit is the problem.

    Each problem's share in the difference is linear to first order: n times (sum - mean * tokens)
    over all tokens, after less before. Their spread over n problems gives the standard error, so
    what a problem does to both means cancels. One problem gives (-inf, inf).

    Args:
      sums_before, sums_after: an answer's sum over its tokens, `[B]`, problem by problem.
      tokens_before, tokens_after: its number of tokens, `[B]`.

    Source: the ratio estimate of Cochran, Sampling Techniques, of paired samples. Grade S; the
    tests check its coverage.

    Raises:
      ValueError: lengths that differ, or no tokens.
    """
    n = len(sums_before)
    means, parts = [], []
    for sums, tokens in ((sums_before, tokens_before), (sums_after, tokens_after)):
        sums, tokens = np.asarray(sums, np.float64), np.asarray(tokens, np.float64)
        total = tokens.sum()
        if not len(sums) == len(tokens) == n or total <= 0:
            raise ValueError(
                f"sums of {n} and {len(sums)} problems, tokens of {len(tokens)} ({total:g} in "
                f"all): "
                "give both for the same problems, not empty"
            )
        means.append(sums.sum() / total)
        parts.append(n * (sums - means[-1] * tokens) / total)
    value = float(means[1] - means[0])
    if n == 1:
        return MeanChange(value, float("-inf"), float("inf"))
    half = quantile(0.95) * float(np.std(parts[1] - parts[0], ddof=1)) / sqrt(n)
    return MeanChange(value, value - half, value + half)
