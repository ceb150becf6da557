"""Whether two evaluations of the same problems differ: problem by problem, as both answered them.

Two intervals that overlap say little, since most problems come out alike in both. What is compared
is what changed: the problems that one got right and the other wrong, and each problem's own
difference.
"""

from collections.abc import Mapping, Sequence
from math import floor, isinf, log10, sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr, stdtrit

from jopd.diagnostics.intervals import Numbers

LEVEL = 0.05  # of the tests; intervals are at 1 - LEVEL


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
        if self.gained == self.lost == 0:
            return "no problem came out differently"
        p = f"p = {self.p:.2g}" if self.p >= 1e-4 else "p below 0.0001"
        return f"{self.gained:,} gained, {self.lost:,} lost, McNemar's exact test {p}"


class MeanChange(NamedTuple):
    """How a mean over tokens changed, with a 95 % interval of the change."""

    value: float
    low: float
    high: float

    @property
    def is_shown(self) -> bool:
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        if isinf(self.high):
            return f"a change of {self.value:+z.3f} nats on one problem"
        half = (self.high - self.low) / 2
        # As many digits as the interval has to say, and no fewer than the values beside it have.
        digits = max(3, -floor(log10(half))) if half > 0 else 3
        number = lambda value: f"{value:+z.{digits}f}"
        low, high = number(self.low), number(self.high)
        return f"a change of {number(self.value)} [{low}, {high}] nats"


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


def change_of_runs(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], name: str
) -> MeanChange | None:
    """How a measure differs between two groups of runs that answered the same problems: problem by
    problem, all runs of a group together, as a share or in nats a token. None where a record does
    not say how each problem came out, or where the problems differ.

    The interval covers the choice of the problems and not that of the runs.

    Args:
      before, after: an evaluation record a run.
    """
    records = [record.get("by_problem", {}) for record in (*before, *after)]
    known = all(name in record for record in records)
    if not (before and after and known) or len({record["problems"] for record in records}) > 1:
        return None
    change = mean_change(*_pooled(before, name), *_pooled(after, name))
    if isinstance(records[0][name], Mapping):
        return change
    # A share can't change by more than all of it.
    return change._replace(low=max(change.low, -1.0), high=min(change.high, 1.0))


def _pooled(runs: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts a problem, over all runs; of outcomes, how many are a yes, and the runs."""
    outcomes = [run["by_problem"][name] for run in runs]
    if not isinstance(outcomes[0], Mapping):
        yes = np.sum(outcomes, axis=0)
        return yes, np.full_like(yes, len(runs))
    return tuple(np.sum([of[key] for of in outcomes], axis=0) for key in ("sums", "tokens"))


def rate_change(before: Sequence[int | bool], after: Sequence[int | bool]) -> RateChange:
    """McNemar's exact test of two answers, 0 or 1, to each of the same problems.

    Of the problems that changed, as many as are gained are binomial with probability 1/2 where
    nothing has changed but chance: p is twice the smaller tail, at most 1.

    Source: McNemar 1947, Psychometrika 12, 153-157, in its exact form. Grade S; the tests compare
    it with SciPy's binomial test.

    Raises:
      ValueError: lengths that differ.
    """
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} outcomes before and {len(after)} after: give those of the same problems"
        )
    gained = sum(1 for was, now in zip(before, after, strict=True) if now and not was)
    lost = sum(1 for was, now in zip(before, after, strict=True) if was and not now)
    tail = float(bdtr(min(gained, lost), gained + lost, 0.5))
    return RateChange(gained, lost, min(1.0, 2 * tail))


def mean_change(
    sums_before: Numbers, tokens_before: Numbers, sums_after: Numbers, tokens_after: Numbers
) -> MeanChange:
    """The difference of two means over tokens of answers to the same problems, with Student's
    interval whose unit is the problem.

    Each problem's share in the difference is linear to first order: n times (sum - mean * tokens)
    over all tokens, after less before. Their spread over n problems gives the standard error, so
    what a problem does to both means cancels. One problem gives (-inf, inf).

    A share of yes and no over several runs is such a mean too: of each problem the number of runs
    that got it right as its sum, and the number of runs as its tokens.

    Args:
      sums_before, sums_after: an answer's sum over its tokens, `[B]`, problem by problem.
      tokens_before, tokens_after: its number of tokens, `[B]`.

    Source: the ratio estimate of Cochran, Sampling Techniques, of paired samples. Grade S; the
    tests compare it with SciPy's paired interval and check its coverage.

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
                "all): give both for the same problems, not empty"
            )
        means.append(sums.sum() / total)
        parts.append(n * (sums - means[-1] * tokens) / total)
    value = float(means[1] - means[0])
    if n == 1:
        return MeanChange(value, float("-inf"), float("inf"))
    spread = float(np.std(parts[1] - parts[0], ddof=1))
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * spread / sqrt(n)
    return MeanChange(value, value - half, value + half)
