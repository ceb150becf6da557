"""Divergences and their gradients on one row of logits, as the formulas read: loops over the
vocabulary, in float64.

`p log p` is 0 at p = 0. Gradients are derived by hand; none of this calls the package.
"""

import math

import numpy as np


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def kl(p, q):
    """KL(p || q)."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += a * (math.log(a) - math.log(b)) if b > 0 else math.inf
    return total


def forward_kl(pi, q):
    return kl(q, pi)


def reverse_kl(pi, q):
    return kl(pi, q)


def jensen_shannon(pi, q, beta):
    blend = beta * q + (1 - beta) * pi
    return beta * kl(q, blend) + (1 - beta) * kl(pi, blend)


def total_variation(pi, q):
    return 0.5 * sum(abs(a - b) for a, b in zip(pi, q, strict=True))


def top(p, k):
    """Ids of the k largest, ties to the lowest id."""
    return sorted(range(len(p)), key=lambda v: (-p[v], v))[:k]


def restrict(p, ids, tail):
    """The distribution over the support: `tail` is one more outcome, or all is renormalised."""
    kept = np.array([p[v] for v in ids])
    if tail == "bucket":
        return np.append(kept, sum(p[v] for v in range(len(p)) if v not in ids))
    return kept / (kept.sum() or 1)


def entropy(p):
    return -sum(a * math.log(a) for a in p if a > 0)


def forward_kl_gradient(pi, q):
    """On the student's logits: d/dz_v -sum q log softmax(z) = pi - q."""
    return pi - q


def reverse_kl_gradient(pi, q):
    """On the student's logits: pi_v (log pi_v / q_v - KL)."""
    return pi * (np.log(pi) - np.log(q) - kl(pi, q))
