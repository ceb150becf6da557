"""Random models of a few thousand parameters with the built-in task's tokenizer, saved as folders,
and the command that trains them.
"""

import functools
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

import jopd
from jopd import models
from jopd.models.load import save
from tests.training.problem import random_model

SIZES = {
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 8,
    "mlp_width": 16,
    "max_positions": 512,
}


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(Path(jopd.__file__).parent / "assets" / "tokenizer")


def save_model(
    folder: Path, *, seed: int, width: int = 16, padding: int = 0, words=None, **settings
) -> Path:
    """A random model; `padding` more rows of the embedding, and other `words` than the shipped
    tokenizer, if asked for.
    """
    words = words or tokenizer()
    architecture = models.Architecture(vocabulary_size=len(words) + padding, width=width, **SIZES)
    save(folder, *random_model(architecture, seed), architecture, words, **settings)
    return folder


def arguments(student: Path, teacher: Path | str, output: Path, **changes) -> list[str]:
    """What follows `python -m jopd.train` for a run of seconds; changes as `steps=3`,
    `data__limit=8`.
    """
    settings = {
        "student.model": student,
        "teacher.model": teacher,
        "output": output,
        "steps": 6,
        "prompts": 8,
        "chunk-tokens": 4,
        "data.limit": 32,
        "data.held-out": 8,
        "rollout.max-new-tokens": 8,
        "rollout.max-prompt-tokens": 256,
        "evaluation.batch": 8,
        "evaluation.every": 2,
        "evaluation.samples-shown": 2,
        "checkpoint.every": 2,
    }
    settings |= {
        name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
