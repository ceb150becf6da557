"""What `jopd.diagnostics` measures, as the formulas read: loops over tokens and sorted
vocabularies, in float64.
"""

import numpy as np

from tests.reference.divergences import entropy, kl, softmax, top


def token_terms(
    student_logits, teacher_logits, token, *, stop_tokens, k, support_threshold, reachable
):
    """Every term at one token, from one row of logits each."""
    pi, q = softmax(student_logits), softmax(teacher_logits)
    vocabulary = range(len(pi))
    own, theirs = set(top(pi, k)), set(top(q, k))
    return {
        "kl": kl(pi, q),
        "student_entropy": entropy(pi),
        "teacher_entropy": entropy(q),
        "top1_agreement": float(top(pi, 1) == top(q, 1)),
        "log_ratio": np.log(q[token] / pi[token]),
        "forward_kl": kl(q, pi),
        "entropy_gap": abs(entropy(q) - entropy(pi)),
        "top_k_overlap": len(own & theirs) / min(k, len(pi)),
        "overlap_mass": sum(q[v] for v in own & theirs),
        "non_overlap_mass": sum(q[v] for v in theirs - own),
        "teacher_mass_on_student_top_k": sum(q[v] for v in own),
        "student_mass_on_teacher_top_k": sum(pi[v] for v in theirs),
        "out_of_support_mass": sum(q[v] for v in vocabulary if pi[v] < support_threshold),
        "reachable_teacher_mass": sum(q[v] for v in theirs if pi[v] >= reachable),
        "sampled_outside_share": float(token not in theirs),
        "stop_gap": abs(sum(q[v] - pi[v] for v in stop_tokens)),
    }


def repetition(completion, n):
    """Of a list of tokens, how many n-grams have an equal one before them, and of how many."""
    grams = [completion[start : start + n] for start in range(len(completion) - n + 1)]
    return sum(gram in grams[:index] for index, gram in enumerate(grams)), len(grams)
