"""The built-in task, each problem with the worked solution of another one: a control for what is
claimed of a solution in the teacher's context.

    python -m jopd.train --method opsd --data.source experiments/another_solution.py:problems

What such a teacher still gives is a solution's form, and what reading any context does to a model;
of this problem's solution it knows no more than the student. The idea is OP2SD's, arXiv:2608.09228
(S).
"""

from typing import Any

from jopd.data import sources
from jopd.data.sources import DataConfig
from jopd.data.task import Split


def problems(split: Split) -> list[dict[str, Any]]:
    """The problems of up to six steps that the source `builtin` gives, each with the next one's
    solution.
    """
    return _exchanged(split, seed=0)


def of_seed_1(split: Split) -> list[dict[str, Any]]:
    """The same of `--data.seed 1`: problems that the test does not ask."""
    return _exchanged(split, seed=1)


def _exchanged(split: Split, seed: int) -> list[dict[str, Any]]:
    examples = sources.load(DataConfig(held_out=200, max_steps=6, seed=seed), split)
    others = [*examples[1:], examples[0]]
    return [
        {"prompt": [*own.messages], "answer": own.answer, "solution": other.solution}
        for own, other in zip(examples, others, strict=True)
    ]
