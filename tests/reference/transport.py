"""Optimal transport between two windows without padding: plain Sinkhorn scaling, and the linear
program.

In float64, on one pair of windows; none of this calls the package.
"""

import numpy as np
import scipy.optimize


def cosine_costs(student, teacher):
    unit = lambda e: (
        np.asarray(e, np.float64) / np.linalg.norm(np.asarray(e, np.float64), axis=1, keepdims=True)
    )
    return 1 - unit(student) @ unit(teacher).T


def sinkhorn(costs, epsilon, iterations):
    """The plan diag(u) exp(-C / epsilon) diag(v), columns scaled first and rows last."""
    kernel = np.exp(-costs / epsilon)
    rows, columns = costs.shape
    u = np.ones(rows)
    for _ in range(iterations):
        v = 1 / columns / (kernel.T @ u)
        u = 1 / rows / (kernel @ v)
    return u[:, None] * kernel * v


def exact(costs):
    """The least cost of a plan with uniform marginals."""
    rows, columns = costs.shape
    sums = np.zeros((rows + columns, rows * columns))
    for i in range(rows):
        for j in range(columns):
            sums[i, i * columns + j] = sums[rows + j, i * columns + j] = 1
    marginals = np.concatenate([np.full(rows, 1 / rows), np.full(columns, 1 / columns)])
    return scipy.optimize.linprog(costs.ravel(), A_eq=sums, b_eq=marginals).fun
