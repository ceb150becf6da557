"""What stops a run that has nothing to learn from, or whose numbers have gone."""

import contextlib
import math
from typing import Any

import numpy as np
from orbax.checkpoint.utils import checkpoint_steps

from jopd.diagnostics.measures import measures
from jopd.training.home import Disk


def check_step(step: int, metrics: dict[str, Any]) -> None:
    """Raises FloatingPointError at a batch without a token to learn from, and at a loss or gradient
    that is not finite, with the step and the rows.
    """
    if metrics["tokens"] == 0:
        raise FloatingPointError(
            f"step {step}: no token of the batch is inside the mask; see what the student answers "
            "in samples.jsonl"
        )
    rows = np.flatnonzero(~metrics["finite_rows"])
    if rows.size or not np.isfinite([metrics[name] for name in ("loss", *norms(metrics))]).all():
        where = "no single row (the gradient)"
        if rows.size:
            where = f"rows {rows[:10].tolist()}{' and more' if rows.size > 10 else ''}"
        raise FloatingPointError(
            f"step {step}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}; not "
            f"finite in {where}. Try a lower --optimizer.learning-rate, or float32 where bfloat16 "
            "is set, with another --output"
        )


def check_evaluation(step: int, record: dict[str, Any]) -> None:
    """Raises FloatingPointError where the last update has made the student say nothing."""
    if lost := [
        name
        for name, measure in measures(record).items()
        if name.endswith("kl") and math.isnan(measure.value)
    ]:
        raise FloatingPointError(
            f"step {step}: the evaluation's {lost[0]} is not a number. Try a lower "
            "--optimizer.learning-rate, with another --output"
        )


def what_is_saved(home: Disk) -> str:
    """Where a run that has stopped has left its checkpoints."""
    with contextlib.suppress(Exception):  # a bucket may be away, which may be why the run stops
        if not checkpoint_steps(home.checkpoints):
            return "Nothing was saved yet"
    return f"What was saved before is in {home.checkpoints}"


def norms(metrics: dict[str, Any]) -> list[str]:
    return [name for name in metrics if name.endswith("gradient_norm")]


def why_nothing_was_learnt(metrics: dict[str, Any]) -> str | None:
    """What a gradient of exactly 0 comes from, as far as metrics tell; None if it isn't 0."""
    if any(metrics[name] for name in norms(metrics)):
        return None
    shut = [name for name in ("kept_share", "kept") if name in metrics and metrics[name] == 0]
    if shut:
        return f"{shut[0]} is 0, so that no token passes the gates; make them wider"
    return "student and teacher agree on every token, or every group of samples has one reward"
