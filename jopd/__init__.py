"""On-policy distillation of language models in JAX.

What one needs for a loop of one's own, imported when it is first asked for:

    load, save          a model, from and to a Hugging Face folder and more
    merge, split        its static half and its parameters
    sample, Decoding, Sampling
                        completions of prompts
    score               the logits that a model has for given completions
    losses              the methods
    Config, parse       a run's settings
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jopd import losses
    from jopd.config import Config, parse
    from jopd.models.functional import merge, score, split
    from jopd.models.load import load, save
    from jopd.rollout.sampler import sample
    from jopd.rollout.settings import Decoding, Sampling

__version__ = "0.1.0"

# Or transformers says at every start that without PyTorch it has no models, which nobody asked for.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__all__ = [
    "Config",
    "Decoding",
    "Sampling",
    "load",
    "losses",
    "merge",
    "parse",
    "sample",
    "save",
    "score",
    "split",
]

_MODULES = {
    "jopd.config": ("Config", "parse"),
    "jopd.models.functional": ("merge", "score", "split"),
    "jopd.models.load": ("load", "save"),
    "jopd.rollout.sampler": ("sample",),
    "jopd.rollout.settings": ("Decoding", "Sampling"),
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("jopd.losses")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
