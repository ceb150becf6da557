"""What a method's file needs, under one name: `from jopd.losses import base`."""

from jopd.losses.checks import check_contiguous, check_known, check_temperature
from jopd.losses.method import INITIAL, Alert, Loss, Method
from jopd.losses.stages import silence
from jopd.losses.totals import masked_total, masked_totals, row_sum, token_mean
from jopd.losses.types import (
    Inputs,
    Logits,
    LossTerm,
    Mask,
    Moments,
    Profiles,
    SecondPass,
    Stage,
    Sums,
    Terms,
    Tokens,
    Total,
    Variables,
    Views,
    share,
)

__all__ = [
    "INITIAL",
    "Alert",
    "Inputs",
    "Logits",
    "Loss",
    "LossTerm",
    "Mask",
    "Method",
    "Moments",
    "Profiles",
    "SecondPass",
    "Stage",
    "Sums",
    "Terms",
    "Tokens",
    "Total",
    "Variables",
    "Views",
    "check_contiguous",
    "check_known",
    "check_temperature",
    "masked_total",
    "masked_totals",
    "row_sum",
    "share",
    "silence",
    "token_mean",
]
