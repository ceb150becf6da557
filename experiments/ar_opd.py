"""AR-OPD on the built-in task: does anchoring at the half-shown solution beat being shown all of
it, and leak less?

A model teaches itself: an average of its own weights reads the worked solution. The student
(`ar_opd_student.py`) reckons carelessly unless it reads, and now and then says that it has read, so
the full view has something to give and something to leak. Cells: the baseline `sft` on the
reference solutions, `partial` and `full` (the same code at scale 0 and 1), and the scales between
and beyond. Controls: `full` and λ 0.6 with the solution of another problem, no teacher at all, and
`full` by sampled tokens (EDGE-OPD's loss without its guidance and mask).

    python experiments/grid.py experiments/ar_opd.py --workers 2

The late KLs compare with the views of the cell's own teacher.

Answers are drawn at temperature 1, as the paper's are. Each cell's learning rate is the best of
three by accuracy on 600 other problems, with seed 0. Deviations from the paper: a model of a
million parameters, two to six steps a problem, a constant learning rate, 24 steps of 16 prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jopd import losses
from jopd.config import (
    Checkpointing,
    Config,
    Evaluation,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
)
from jopd.data.sources import DataConfig
from jopd.diagnostics.intervals import wilson
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
RATES = ("2e-4", "5e-4", "1.5e-3")
HERE = Path(__file__).parent
ANOTHER = [
    *("--data.source", f"{HERE / 'another_solution.py'}:problems"),
    *("--data.max-steps", f"{DataConfig().max_steps}"),  # the file's problems have their own
]
CELLS = {
    "sft": ["--method", "sft"],
    "partial": ["--method.scale", "0"],
    "λ 0.4": ["--method.scale", "0.4"],
    "λ 0.6": ["--method.scale", "0.6"],
    "λ 0.8": ["--method.scale", "0.8"],
    "full": ["--method.scale", "1"],
    "λ 1.2": ["--method.scale", "1.2"],
    "full, another's solution": ["--method.scale", "1", *ANOTHER],
    "λ 0.6, another's solution": ["--method.scale", "0.6", *ANOTHER],
    "no teacher": ["--method", f"{HERE / 'no_teacher.py'}:NoTeacher"],
    "full, sampled tokens": [
        *("--method", "edge_opd", "--method.guided-share", "0", "--method.region", "all"),
    ],
}
STUDENT = "runs/ar_opd/student"
BASELINE = "full"
JUDGE = [
    *("--task", "builtin", "--data.held-out", "600", "--data.max-steps", "6"),
    *("--max-new-tokens", "128", "--batch", "200"),
]
ASKED = ["--data.held-out", "200", "--max-new-tokens", "128", "--batch", "200"]
OWN = ["--task", "builtin", "--data.max-steps", "6", "--data.seed", "1", *ASKED]
HEADROOM = {
    "the problem alone": OWN,
    "half of its solution": [*OWN, "--view", "partial"],
    "its solution": [*OWN, "--view", "full"],
    "another problem's solution": [
        *("--data.source", f"{HERE / 'another_solution.py'}:of_seed_1", *ASKED, "--view", "full"),
    ],
}
CHOICE = [*JUDGE, "--data.seed", "1"]
CHOOSE = "accuracy"
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/shortcut_rate": "shortcuts",
    "late/forward_kl": "late KL from the full view",
    "late/forward_kl_partial": "late KL from the partial view",
    "judge/length_mean": "length",
}
# The KL from the initial student, or from the view that shows another's solution.
WITHOUT_VIEW = ("sft", "no teacher", "full, another's solution", "λ 0.6, another's solution")
NOT_OF = {"late/forward_kl": WITHOUT_VIEW, "late/forward_kl_partial": WITHOUT_VIEW}
CURVES = {
    "accuracy": "accuracy",
    "shortcut_rate": "shortcuts",
    "late/forward_kl": "KL(full view || student), last fifth (nats)",
}


def by_length(found: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Accuracy (%) by the length of the answer, the judge's answers of all seeds together, with
    Wilson intervals that take answers for independent.
    """
    rows: list[list[str]] = []
    for cell, entries in found.items():
        records = [entry.judged["accuracy_by_length"] for entry in entries]
        if not records:
            continue
        buckets = [*zip(*records, strict=True)]
        ends = [(same[0]["from"], same[0]["to"] or "any number of") for same in buckets]
        head = ["", *(f"{low} to {high} tokens" for low, high in ends)]
        counts = [sum(bucket["count"] for bucket in same) for same in buckets]
        shares = [
            f"{share(same, 100, 1)} (n = {n:,})" if n else ""
            for same, n in zip(buckets, counts, strict=True)
        ]
        rows = [*(rows or [head]), [cell, *shares]]
    return rows or [[""]]


def shortcuts_over_checkpoints(found: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Shortcut events of 1,000 answers at the run's own evaluations after the first, all seeds
    together, with Wilson intervals that take answers for independent.
    """
    rows: list[list[str]] = []
    for cell, entries in found.items():
        rates = [entry.along["shortcut_rate"][1:] for entry in entries if entry.along]
        if not rates:
            continue
        head = ["", *(f"step {point['step']}" for point in rates[0]), "mean"]
        columns = [*zip(*rates, strict=True)]
        everywhere = [rate for column in columns for rate in column]
        cells = [share(rates, 1000, 0) for rates in (*columns, everywhere)]
        rows = [*(rows or [head]), [cell, *cells]]
    return rows or [[""]]


def share(rates: Sequence[Mapping[str, Any]], of: int, digits: int) -> str:
    """Measured shares of a number of answers each, put together: `233 [189, 284]` of 1,000."""
    count = sum(rate["count"] for rate in rates)
    events = sum(round(rate.get("value", 0) * rate["count"]) for rate in rates)
    low, high = (f"{of * bound:.{digits}f}" for bound in wilson(events, count))
    return f"{of * events / count:.{digits}f} [{low}, {high}]"


TABLES = (by_length, shortcuts_over_checkpoints)


def prepare() -> None:
    # The grid's neighbour; the trainer, which reads this file too, needs none of it.
    import ar_opd_student

    ar_opd_student.main()


def config() -> Config:
    return Config(
        method=losses.get("ar_opd"),
        student=Student(model=STUDENT),
        teacher=Teacher(model="self"),
        data=DataConfig(source="builtin", held_out=100, max_steps=6),
        rollout=RolloutConfig(max_prompt_tokens=256, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=5e-4, schedule="constant", warmup=0.1),
        evaluation=Evaluation(
            every=8, batch=100, sampling=Sampling(temperature=1.0), samples_shown=0
        ),
        checkpoint=Checkpointing(every=24, keep=1),
        steps=24,
        prompts=16,
        watch=0,
    )
