"""GSM8K, each problem with the solution of the next one: the control of `gsm8k.py`."""

from pathlib import Path
from typing import Any

from jopd.data import sources
from jopd.data.rows import Columns
from jopd.data.sources import DataConfig
from jopd.data.task import Split

FILES = Path("runs/gsm8k/given").absolute()


def problems(split: Split) -> list[dict[str, Any]]:
    train, held_out = str(FILES / "train.jsonl"), str(FILES / "choice.jsonl")
    columns = Columns(prompt="question")
    config = DataConfig(source=train, held_out_split=held_out, held_out=300, columns=columns)
    examples = sources.load(config, split)
    others = [*examples[1:], examples[0]]
    return [
        {"prompt": [*own.messages], "answer": own.answer, "solution": other.solution}
        for own, other in zip(examples, others, strict=True)
    ]
