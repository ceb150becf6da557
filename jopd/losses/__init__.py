"""What is learnt from a teacher: one file a method, each two pure functions of arrays.

    method = losses.get("opd", divergence="forward_kl")
    loss, metrics = losses.evaluate(method, student_logits, {"teacher": teacher_logits}, tokens, mask)

A method is added with its file, its line in METHODS and its tests.
"""

import inspect
from typing import Any

from jopd.losses.base import (
    LossTerm,
    Method,
    Terms,
    Total,
    Variables,
    batch_loss,
    check_known,
    evaluate,
    time_stage,
    whole_batch_counts,
)
from jopd.losses.opd import OPD
from jopd.losses.opd_pg import OPDPolicyGradient
from jopd.losses.opsd import OPSD
from jopd.losses.sft import SFT

__all__ = [
    "METHODS",
    "LossTerm",
    "Method",
    "Terms",
    "Total",
    "Variables",
    "batch_loss",
    "evaluate",
    "get",
    "names",
    "time_stage",
    "whole_batch_counts",
]

METHODS: dict[str, type[Method]] = {method.name: method for method in (SFT, OPD, OPDPolicyGradient, OPSD)}


def names() -> tuple[str, ...]:
    """The methods there are."""
    return tuple(METHODS)


def get(name: str, **settings: Any) -> Method:
    """The method of that name.

    Raises:
      ValueError: an unknown method or setting, with the nearest known one; or a setting's bad value, with the cure.
    """
    check_known("method", [name], METHODS)
    check_known(f"setting of {name}", settings, inspect.signature(METHODS[name]).parameters)
    return METHODS[name](**settings)
