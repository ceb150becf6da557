"""A made-up run: forty training steps, evaluations at 0, 20 and 40, the teacher evaluated with the
first.
"""

from jopd.diagnostics.intervals import wilson


def share(successes: int, count: int = 200) -> dict:
    low, high = wilson(successes, count)
    return {"value": successes / count, "low": low, "high": high, "count": count}


def evaluation(step: int, right: int, kl: float) -> dict:
    return {
        "step": step,
        "accuracy": share(right),
        "kl": {"value": kl, "low": 0.9 * kl, "high": 1.1 * kl, "count": 200},
        "kl_by_position": [kl / 2, None, 2 * kl],
        "length_mean": 24.5,
        # The first problems are right; every answer has ten tokens, of two KLs.
        "by_problem": {
            "problems": "the same",
            "accuracy": [1] * right + [0] * (200 - right),
            "kl": {"sums": [9 * kl, 11 * kl] * 100, "tokens": [10] * 200},
        },
    }


TRAINING = [
    {"step": step, "loss": -0.1, "kl": 1 / step, "seconds": {"rollout": 1.0}}
    for step in range(1, 41)
]
TEACHER = {
    "accuracy": share(196),
    "length_mean": 25.0,
    "by_problem": {"problems": "the same", "accuracy": [1] * 196 + [0] * 4},
}
EVALUATIONS = [
    {**evaluation(0, 80, 0.4), "teacher": TEACHER},
    evaluation(20, 120, 0.2),
    evaluation(40, 150, 0.1),
]


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
