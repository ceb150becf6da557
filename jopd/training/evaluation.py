"""Held-out problems: what a model answers, how often that is right, and how far the student still is from its teacher."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jopd.data.example import Example
from jopd.data.outcomes import outcomes
from jopd.data.sources import DataConfig
from jopd.diagnostics.intervals import token_mean, wilson

POSITIONS = 10  # bins of a completion's relative position


class Answers(NamedTuple):
    """A model's answers to some problems, on the host, row i to problem i.

    Attributes:
      tokens, mask: `[B, T]`.
      stopped: `[B]`, 0 where the length limit ended the answer.
      text: decoded, special tokens left out.
      terms: per-token measurements `[B, T]` by name, such as the KL to the teacher; may be empty.
    """

    examples: list[Example]
    tokens: np.ndarray
    mask: np.ndarray
    stopped: np.ndarray
    text: list[str]
    terms: dict[str, np.ndarray]


def summarise(data: DataConfig, answers: Answers) -> dict[str, Any]:
    """An evaluation record (`jopd.diagnostics.measures`): shares with Wilson intervals, token means over rows, a KL profile."""
    record: dict[str, Any] = {}
    for name, values in outcomes(data, answers.examples, answers.text).items():
        low, high = wilson(sum(values), len(values))
        record[name] = {"value": sum(values) / len(values), "low": low, "high": high, "count": len(values)}
    for name, values in answers.terms.items():
        sums, counts = np.where(answers.mask, values, 0).sum(1), answers.mask.sum(1)
        low, high = token_mean(sums, counts) if len(sums) > 1 else (None, None)
        record[name] = {"value": float(sums.sum() / counts.sum()), "low": low, "high": high, "count": len(sums)}
    if "kl" in answers.terms:
        record["kl_by_position"] = by_position(answers.terms["kl"], answers.mask)
    lengths = answers.mask.sum(1)
    record["length_mean"], record["length_max"] = float(lengths.mean()), int(lengths.max())
    record["truncation_rate"] = float((answers.stopped == 0).mean())
    return record


def by_position(values: np.ndarray, mask: np.ndarray) -> list[float | None]:
    """Means over tokens in bins of relative position, `(t + 1/2) / length`; None where a bin holds no token."""
    lengths = mask.sum(1, keepdims=True)
    bins = ((np.arange(mask.shape[1])[None] + 0.5) / np.maximum(lengths, 1) * POSITIONS).astype(int)
    inside = [mask & (bins == index) for index in range(POSITIONS)]
    return [float(values[chosen].mean()) if chosen.any() else None for chosen in inside]


def collect(
    batches: Iterable[tuple[dict, list[Example]]], answer: Callable[[dict], tuple[Any, dict]], decode: Callable[[np.ndarray], str]
) -> Answers:
    """Runs `answer` over batches of problems and puts the rows together.

    Args:
      batches: host batch and the problems of its first rows; what a filled-up last batch has more is left out.
      answer: gives a batch's rollout and its per-token terms.
      decode: token ids to text.
    """
    found: list[Answers] = []
    for batch, examples in batches:
        real = len(examples)
        rollout, terms = jax.device_get(answer(batch))
        width = rollout.tokens.shape[1]
        pad = lambda x: np.pad(x, [(0, 0), (0, width - x.shape[1])])[:real]
        text = [decode(row[kept]) for row, kept in zip(rollout.tokens[:real], rollout.mask[:real], strict=True)]
        measured = {name: pad(values) for name, values in terms.items()}
        found.append(Answers(examples, rollout.tokens[:real], rollout.mask[:real], rollout.stopped[:real], text, measured))
    join = lambda name: np.concatenate([getattr(part, name) for part in found])
    return Answers(
        examples=sum((part.examples for part in found), []),
        tokens=join("tokens"),
        mask=join("mask"),
        stopped=join("stopped"),
        text=sum((part.text for part in found), []),
        terms={name: np.concatenate([part.terms[name] for part in found]) for name in found[0].terms},
    )
