"""Intervals that contain both kinds of chance: which seeds were run, and which problems were asked.

A run answers every problem; runs and problems are crossed. To first order the error of a mean over
both is the sum of two independent ones, so their squares are added: the spread of the runs' means
over the runs, and that of the problems' means over the problems. What is neither's own, one answer
to one problem, is in both, a little too much; of three runs the spread is a rough guess, so that
where it decides an interval holds the truth a little less often than it says (the tests: 93 %).
Where all answers came out alike, right or wrong, it is Wilson's of one run.
"""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import t

from jopd.diagnostics.intervals import wilson

Table = Float[np.ndarray, "runs problems"]


class Interval(NamedTuple):
    """A mean with its 95 % interval.

    Attributes:
      seeds: how many runs it is of; of one alone the interval covers the problems only.
    """

    value: float
    low: float
    high: float
    seeds: int


def mean(sums: Table, counts: Table) -> Interval:
    """Of a mean over tokens, or of a share of problems, where every count is 1.

    Args:
      sums, counts: of each run's answer to each problem.
    """
    found = _interval(*_parts(sums, counts))
    if found.low == found.high and _are_yes_or_no(sums, counts):
        # That no problem came out otherwise leaves room for some that would.
        problems = np.shape(sums)[1]
        low, high = wilson(found.value * problems, problems)
        return found._replace(low=low, high=high)
    return found


def difference(before: tuple[Table, Table], after: tuple[Table, Table]) -> Interval:
    """After less before, of the same problems and of runs with the same seeds."""
    (first, runs_first, problems_first), (last, runs_last, problems_last) = (
        _parts(*before),
        _parts(*after),
    )
    found = _interval(last - first, runs_last - runs_first, problems_last - problems_first)
    if found.low == found.high and _are_yes_or_no(*before) and _are_yes_or_no(*after):
        room = wilson(0, np.shape(before[0])[1])[1]
        return found._replace(low=found.value - room, high=found.value + room)
    return found


def _are_yes_or_no(sums: Table, counts: Table) -> bool:
    return bool(np.all(np.equal(counts, 1)) and np.isin(sums, (0, 1)).all())


def _parts(sums: Table, counts: Table) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean, each run's own, and each problem's share in the mean's error, as a mean of which
    they are the values.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    value = sums.sum() / counts.sum()
    of_runs = sums.sum(axis=1) / counts.sum(axis=1)
    shares = (sums - value * counts).sum(axis=0) * sums.shape[1] / counts.sum()
    return float(value), of_runs, shares


def _interval(value: float, of_runs: np.ndarray, of_problems: np.ndarray) -> Interval:
    variances = [
        (np.var(values, ddof=1) / len(values), len(values) - 1)
        for values in (of_runs, of_problems)
        if len(values) > 1
    ]
    total = sum(variance for variance, _ in variances)
    if not variances:
        return Interval(value, -inf, inf, len(of_runs))
    if total == 0:
        return Interval(value, value, value, len(of_runs))
    # Satterthwaite's degrees of freedom.
    freedom = total**2 / sum(variance**2 / own for variance, own in variances)
    half = float(t.ppf(0.975, freedom)) * sqrt(total)
    return Interval(value, value - half, value + half, len(of_runs))


def table(outcomes: Sequence[Sequence[float]]) -> tuple[Table, Table]:
    """Sums and counts of yes and no."""
    sums = np.asarray(outcomes, np.float64)
    return sums, np.ones_like(sums)
