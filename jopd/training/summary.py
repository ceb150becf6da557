"""An evaluation record: what a model's answers to the held-out problems come to
(`jopd.diagnostics.measures` says how it is read).
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from jopd.data.example import Example
from jopd.data.outcomes import groups, outcomes
from jopd.data.sources import DataConfig
from jopd.diagnostics import shortcuts
from jopd.diagnostics.intervals import wilson
from jopd.diagnostics.measures import bounds
from jopd.diagnostics.profiles import (
    by_length,
    by_position,
    late,
    mean,
    quarters,
    repeats,
    share_by_length,
)

# Measures of the record that stand by themselves; the others are in the group "support".
CORE = ("kl", "log_ratio", "student_entropy", "teacher_entropy", "top1_agreement")


class Answers(NamedTuple):
    """A model's answers to some problems, on the host, row i to problem i.

    Attributes:
      tokens, mask: `[B, T]`.
      stopped: `[B]`, 0 where the length limit ended the answer.
      text: decoded, special tokens left out.
      terms: per-token measurements `[B, T]` by name, such as the KL to the teacher; may be empty.
      seen: what `jopd.training.seen` found of the first answers' tokens, `[R, T, ...]`, R <= B; may
        be empty.
    """

    examples: list[Example]
    tokens: np.ndarray
    mask: np.ndarray
    stopped: np.ndarray
    text: list[str]
    terms: dict[str, np.ndarray]
    seen: dict[str, np.ndarray] = {}


def summarise(data: DataConfig, answers: Answers) -> dict[str, Any]:
    """Shares with Wilson intervals, token means over rows, and profiles.

    The group "support" holds how far student and teacher share theirs, "late" the KLs over the last
    fifth of the answers, "shortcuts" which rule fired how often, "by_problem" what two evaluations
    of the same problems are compared by.
    """
    yes = shares(data, answers)
    record = of_shares(yes) | of_terms(answers) | of_lengths(answers)
    by_problem: dict[str, Any] = {"problems": fingerprint(answers.examples)}
    by_problem |= {
        f"shortcuts/{name}" if is_rule(name) else name: [int(value) for value in values]
        for name, values in yes.items()
    }
    answered = np.array([example.answer is not None for example in answers.examples])
    if "accuracy" in yes:
        lengths = answers.mask.sum(1)[answered]
        edges = quarters(answers.mask.shape[1])
        record["accuracy_by_length"] = share_by_length(yes["accuracy"], lengths, edges)
    if "kl" in answers.terms:
        by_problem["kl"] = token_sums(answers, np.ones(len(answers.examples), bool))
    for kind, members in groups(data, answers.examples).items():
        group = f"group {kind}" if kind in record else kind  # a kind may be called as a measure is
        chosen = np.asarray(members)
        of_group: dict[str, Any] = {}
        if "accuracy" in yes and (chosen & answered).any():
            right = np.asarray(yes["accuracy"])[chosen[answered]].tolist()
            of_group |= of_shares({"accuracy": right})
            by_problem[f"{group}/accuracy"] = [int(value) for value in right]
        if "kl" in answers.terms:
            of_group["kl"] = within("kl", mean(answers.terms["kl"][chosen], answers.mask[chosen]))
            by_problem[f"{group}/kl"] = token_sums(answers, chosen)
        record[group] = of_group
    return record | {"by_problem": by_problem}


def shares(data: DataConfig, answers: Answers) -> dict[str, list[bool]]:
    """What is counted, problem by problem: outcomes, and of problems with an answer shortcuts."""
    yes = outcomes(data, answers.examples, answers.text)
    if "accuracy" not in yes:
        return yes
    answered = [
        (example, text)
        for example, text in zip(answers.examples, answers.text, strict=True)
        if example.answer is not None
    ]
    prompts = ["\n".join(turn["content"] for turn in it.messages) for it, _ in answered]
    texts, right = [text for _, text in answered], [it.answer for it, _ in answered]
    return yes | shortcuts.rates(prompts, texts, right)


def is_rule(name: str) -> bool:
    """Whether it is one of the rules that make up `shortcut_rate`."""
    return name.startswith("shortcut_") and name != "shortcut_rate"


def of_shares(yes: dict[str, list[bool]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, values in yes.items():
        low, high = wilson(sum(values), len(values))
        (record.setdefault("shortcuts", {}) if is_rule(name) else record)[name] = {
            "value": sum(values) / len(values),
            "low": low,
            "high": high,
            "count": len(values),
        }
    return record


def of_terms(answers: Answers) -> dict[str, Any]:
    """Means over tokens of what was measured at each of them."""
    record: dict[str, Any] = {}
    for name, values in answers.terms.items():
        group = record if name in CORE else record.setdefault("support", {})
        group[name] = within(name, mean(values, answers.mask))
    if "kl" not in answers.terms:
        return record
    for name in ("kl", "top_k_overlap"):
        if name in answers.terms:
            record[f"{name}_by_position"] = by_position(answers.terms[name], answers.mask)
    edges = quarters(answers.mask.shape[1])
    buckets = by_length(answers.terms["kl"], answers.mask, edges)
    record["kl_by_length"] = [within("kl", bucket) for bucket in buckets]
    last = {
        name: within(name, mean(values, late(answers.mask)))
        for name, values in answers.terms.items()
        if name.startswith(("kl", "forward_kl"))
    }
    record["late"] = {name: value for name, value in last.items() if value is not None}
    return record


def within(name: str, measured: dict[str, Any] | None) -> dict[str, Any] | None:
    """The measure with a normal interval cut at what the measure can't leave."""
    if measured is None or "value" not in measured:
        return measured
    low, high = bounds(name)
    cut = {"low": max(measured["low"], low), "high": min(measured["high"], high)}
    return measured | cut


def of_lengths(answers: Answers) -> dict[str, Any]:
    lengths = answers.mask.sum(1)
    repeated, complete = repeats(answers.tokens, answers.mask)
    return {
        "length_mean": float(lengths.mean()),
        "length_max": int(lengths.max()),
        "truncation_rate": float((answers.stopped == 0).mean()),
        "repetition_rate": float(repeated.sum() / max(complete.sum(), 1)),
    }


def token_sums(answers: Answers, chosen: np.ndarray) -> dict[str, list]:
    """Of the chosen problems, the KL summed over each answer's tokens and their number."""
    kl, mask = answers.terms["kl"][chosen], answers.mask[chosen]
    sums = np.where(mask, kl, 0).sum(axis=1, dtype=np.float64)
    return {"sums": sums.tolist(), "tokens": mask.sum(axis=1).tolist()}


def fingerprint(examples: list[Example]) -> str:
    """Of the problems, what they ask and what is right, and of their order."""
    text = "\n".join(repr((it.id, it.messages, it.answer)) for it in examples)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
