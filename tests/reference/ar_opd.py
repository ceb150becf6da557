"""AR-OPD's target on one row of log-probabilities, as the formulas read: loops over the vocabulary,
in float64.

A token of no mass in the anchor gets none; none of this calls the package.
"""

import math

import numpy as np


def residual(partial, full):
    """log q_full - log q_part of two lists of probabilities, 0 where both are 0."""
    entries = []
    for a, b in zip(partial, full, strict=True):
        if a == 0 and b == 0:
            entries.append(0.0)
        else:
            entries.append((math.log(b) if b else -math.inf) - (math.log(a) if a else -math.inf))
    return np.array(entries)


def target(partial, full, scale, clip):
    """q_lam."""
    moved = [
        a * math.exp(scale * max(-clip, min(clip, r)))
        for a, r in zip(partial, residual(partial, full), strict=True)
    ]
    return np.array(moved) / sum(moved)
