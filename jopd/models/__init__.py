"""Decoder-only language models: the definition, and the files that they come from and go to.

The definition is imported when it is first asked for: settings are read without it.
"""

from typing import TYPE_CHECKING, Any

from jopd.models.settings import Architecture, Compute, LoRA, RopeScaling

if TYPE_CHECKING:
    from jopd.models.functional import abstract, merge, score, split
    from jopd.models.transformer import Branches, Transformer

__all__ = [
    "Architecture",
    "Branches",
    "Compute",
    "LoRA",
    "RopeScaling",
    "Transformer",
    "abstract",
    "merge",
    "score",
    "split",
]


def __getattr__(name: str) -> Any:
    if name in ("abstract", "merge", "score", "split"):
        from jopd.models import functional

        return getattr(functional, name)
    if name in ("Branches", "Transformer"):
        from jopd.models import transformer

        return getattr(transformer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
