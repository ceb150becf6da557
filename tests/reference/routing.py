"""Counterfactual routing as its definition reads: one position at a time, sets of token ids, in
float64.
"""

import numpy as np

from tests.reference.divergences import top


def candidates(pi, q, sampled, teacher_top_k, student_top_k, reachable, teacher_reachable=None):
    wanted = set(top(q, teacher_top_k))
    if teacher_reachable is not None:
        wanted |= {v for v in range(len(q)) if q[v] >= teacher_reachable}
    in_reach = set(top(pi, student_top_k)) | {v for v in range(len(pi)) if pi[v] >= reachable}
    return sorted(v for v in wanted & in_reach if v != sampled and q[v] > pi[v] > 0)


def routing_distribution(pi, q, members, teacher_power=1.0, student_power=0.0):
    rho = np.zeros(len(q))
    for v in members:
        rho[v] = q[v] ** teacher_power * pi[v] ** student_power
    return rho / (rho.sum() or 1)
