"""Confidence intervals of what is measured on a finite set of problems."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Shaped

Numbers = Sequence[int | float] | Shaped[np.ndarray, " B"]


def wilson(successes: int | float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share: inside [0, 1] and honest for few problems and for
    shares of 0 and 1.

    It solves `|share - p| = z sqrt(p (1 - p) / count)` for p, z being the normal quantile. It
    covers the choice of the problems, not the run's seed. No problems give (0, 1).

    Raises:
      ValueError: more successes than problems, or a confidence outside (0, 1).

    Source: Wilson 1927, JASA 22, 209-212. Grade S; the tests compare it with SciPy.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"successes={successes} must lie between 0 and count={count}")
    z = _quantile(confidence)
    if count == 0:
        return 0.0, 1.0
    share, weight = successes / count, z * z / count
    centre = (share + weight / 2) / (1 + weight)
    half = sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    # At the ends the bound is the share itself, which rounding misses by an ulp.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == count else centre + half
    return low, high


def token_mean(sums: Numbers, counts: Numbers, confidence: float = 0.95) -> tuple[float, float]:
    """A normal interval of `sum(sums) / sum(counts)`, a mean over tokens whose unit is the row.

    Tokens of one completion are not independent, so the spread is taken over rows: with mean m, the
    standard error is `sqrt(n / (n - 1) sum((sums - m counts)^2)) / sum(counts)`, that of a ratio by
    linearisation. One row gives (-inf, inf).

    Args:
      sums: a row's sum over its tokens, `[B]`.
      counts: a row's number of tokens, `[B]`.

    Raises:
      ValueError: lengths that differ, or no tokens.

    Source: Cochran, Sampling Techniques, ratio estimates. Grade S; the tests check its coverage.
    """
    sums, counts = [float(s) for s in sums], [float(c) for c in counts]
    n, total = len(sums), sum(counts)
    if n != len(counts) or total <= 0:
        raise ValueError(
            f"sums of {n} rows, counts of {len(counts)} rows, {total:g} tokens: "
            "give both for the same rows, not empty"
        )
    z, mean = _quantile(confidence), sum(sums) / total
    if n == 1:
        return float("-inf"), float("inf")
    squares = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    half = z * sqrt(n / (n - 1) * squares) / total
    return mean - half, mean + half


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie in (0, 1), such as 0.95")
    return NormalDist().inv_cdf(0.5 + confidence / 2)
