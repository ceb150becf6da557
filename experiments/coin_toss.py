"""The built-in task with a verifier that tosses a coin: a control for what is claimed of rewards.

    python -m jopd.train --method rlsd --data.source experiments/coin_toss.py:problems \\
        --data.answer-check experiments/coin_toss.py:toss
"""

import hashlib
from typing import Any

from jopd.data import sources
from jopd.data.sources import DataConfig
from jopd.data.task import Split


def problems(split: Split) -> list[dict[str, Any]]:
    """The problems that the source `builtin` gives."""
    examples = sources.load(DataConfig(held_out=200), split)
    return [
        {"prompt": [*it.messages], "answer": it.answer, "solution": it.solution} for it in examples
    ]


def toss(completion: str, answer: str) -> float:
    """1 for half of all completions, whatever they say; the same completion always alike."""
    return float(hashlib.blake2b(f"{answer} {completion}".encode()).digest()[0] % 2)
