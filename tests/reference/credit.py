"""Credit estimators as their sums read: one row at a time, double loops, in float64."""

import numpy as np


def return_to_go(rewards, discount):
    n = len(rewards)
    return [sum(discount ** (k - t) * rewards[k] for k in range(t, n)) for t in range(n)]


def generalized_advantage(rewards, values, discount, gae_lambda, bootstrap):
    n = len(rewards)
    following = [*values[1:], bootstrap]
    errors = [rewards[t] + discount * following[t] - values[t] for t in range(n)]
    return [
        sum((discount * gae_lambda) ** (k - t) * errors[k] for k in range(t, n)) for t in range(n)
    ]


def by_row(function, lengths, *arrays):
    """`function` on the first so many columns of each row, 0 behind them; [B] arrays give each row
    its number.
    """
    out = np.zeros(arrays[0].shape)
    for i, n in enumerate(lengths):
        out[i, :n] = function(*(a[i, :n] if a.ndim == 2 else a[i] for a in arrays))
    return out
