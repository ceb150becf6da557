"""Held-out problems: what a model answers, how often that is right, and how far the student still
is from its teacher.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from jopd.data.batching import Batches
from jopd.data.example import Example
from jopd.data.outcomes import groups, outcomes
from jopd.data.sources import DataConfig
from jopd.diagnostics import shortcuts
from jopd.diagnostics.intervals import wilson
from jopd.diagnostics.profiles import (
    by_length,
    by_position,
    late,
    mean,
    quarters,
    repeats,
    share_by_length,
)
from jopd.diagnostics.tokens import Comparison, Diagnostics
from jopd.losses.method import INITIAL
from jopd.rollout.buckets import bucket, trim
from jopd.rollout.sampler import Decoding, Rollout
from jopd.training.batch import Batch, Context
from jopd.training.mesh import place_batch
from jopd.training.program import Program
from jopd.training.state import Fixed, TrainState
from jopd.training.step import Jitted

# Measures of the record that stand by themselves; the others are in the group "support".
CORE = ("kl", "log_ratio", "student_entropy", "teacher_entropy", "top1_agreement")


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


class Evaluator(NamedTuple):
    """Everything but the parameters.

    Attributes:
      problems: in order, without shuffle.
      key: the same noise at every evaluation, so that two of them differ by the model alone.
    """

    program: Program
    jitted: Jitted
    mesh: Mesh
    problems: Batches
    tokenizer: PreTrainedTokenizerBase
    decoding: Decoding
    key: jax.Array

    def student(self, state: TrainState, fixed: Fixed) -> Answers:
        """The student's answers, compared token by token with the teacher, if there is one.

        Under the teacher's first view with everything that `Diagnostics` knows, under each other
        view V with the two KLs, `kl_V` and `forward_kl_V`.
        """

        def answer(contexts, rows):
            rollout = self.jitted.rollout(
                state, fixed, contexts["student"], rows, self.key, decoding=self.decoding, samples=1
            )
            rollout = trim(
                rollout, bucket(int(rollout.mask.sum(axis=1).max()), self.decoding.max_new_tokens)
            )
            views = self.views
            if not views:
                return rollout, {}
            batch = Batch(contexts, rollout.tokens, rollout.mask)
            batch = batch._replace(hidden=self.jitted.score(state, fixed, batch, views))
            stage = Diagnostics(views[0], stop_tokens=self.decoding.stop_tokens)
            terms = self.jitted.measure(state, fixed, batch, stage)
            for view in views[1:]:
                more = self.jitted.measure(state, fixed, batch, Comparison(view))
                terms |= {f"{name}_{view}": more[name] for name in ("kl", "forward_kl")}
            return rollout, terms

        return self._collect(answer)

    def teacher(self, state: TrainState, fixed: Fixed) -> Answers:
        """What the teacher itself answers, under its first view."""

        def answer(contexts, rows):
            context = contexts[self.views[0]]
            return self.jitted.teacher_rollout(
                state, fixed, context, rows, self.key, decoding=self.decoding
            ), {}

        return self._collect(answer)

    @property
    def views(self) -> tuple[str, ...]:
        """The teacher's."""
        return tuple(view for view in self.program.views if view != INITIAL)

    def _collect(
        self,
        answer: Callable[[dict[str, Context], jax.Array], tuple[Rollout, dict[str, jax.Array]]],
    ) -> Answers:
        found: list[Answers] = []
        for index in range(len(self.problems)):
            host, examples = self.problems[index], self.problems.examples_at(index)
            contexts = {
                view: Context(**place_batch(self.mesh, context))
                for view, context in host["contexts"].items()
            }
            rollout, terms = jax.device_get(answer(contexts, place_batch(self.mesh, host["rows"])))
            # The last batch is filled up with problems that came before, and lengths differ between
            # batches.
            padding = [(0, 0), (0, self.decoding.max_new_tokens - rollout.tokens.shape[1])]
            real = lambda x, rows=len(examples), padding=padding: np.pad(x, padding)[:rows]
            tokens, mask = real(rollout.tokens), real(rollout.mask)
            text = [
                str(self.tokenizer.decode(row[kept], skip_special_tokens=True))
                for row, kept in zip(tokens, mask, strict=True)
            ]
            measured = {name: real(values) for name, values in terms.items()}
            found.append(
                Answers(examples, tokens, mask, rollout.stopped[: len(examples)], text, measured)
            )
        join = lambda name: np.concatenate([getattr(part, name) for part in found])
        return Answers(
            examples=[example for part in found for example in part.examples],
            tokens=join("tokens"),
            mask=join("mask"),
            stopped=join("stopped"),
            text=[text for part in found for text in part.text],
            terms={
                name: np.concatenate([part.terms[name] for part in found])
                for name in found[0].terms
            },
        )


def summarise(data: DataConfig, answers: Answers) -> dict[str, Any]:
    """An evaluation record (`jopd.diagnostics.measures`): shares with Wilson intervals, token means
    over rows, profiles.

    The group "support" holds how far student and teacher share theirs, "late" the KLs over the last
    fifth of the answers, "shortcuts" which rule fired how often.
    """
    record: dict[str, Any] = {}
    lengths, found = answers.mask.sum(1), outcomes(data, answers.examples, answers.text)
    edges = quarters(answers.mask.shape[1])
    if "accuracy" in found:
        known = [
            (e, text)
            for e, text in zip(answers.examples, answers.text, strict=True)
            if e.answer is not None
        ]
        prompts = ["\n".join(turn["content"] for turn in example.messages) for example, _ in known]
        found |= shortcuts.rates(
            prompts, [text for _, text in known], [example.answer for example, _ in known]
        )
    for name, values in found.items():
        group = (
            record.setdefault("shortcuts", {})
            if name.startswith("shortcut_") and name != "shortcut_rate"
            else record
        )
        low, high = wilson(sum(values), len(values))
        group[name] = {
            "value": sum(values) / len(values),
            "low": low,
            "high": high,
            "count": len(values),
        }
    if "accuracy" in found:
        answered = [example.answer is not None for example in answers.examples]
        record["accuracy_by_length"] = share_by_length(found["accuracy"], lengths[answered], edges)
    for name, values in answers.terms.items():
        group = record if name in CORE else record.setdefault("support", {})
        group[name] = mean(values, answers.mask)
    if "kl" in answers.terms:
        for name in ("kl", "top_k_overlap"):
            if name in answers.terms:
                record[f"{name}_by_position"] = by_position(answers.terms[name], answers.mask)
        record["kl_by_length"] = by_length(answers.terms["kl"], answers.mask, edges)
        is_kl = lambda name: name.startswith(("kl", "forward_kl"))
        last = {
            name: mean(values, late(answers.mask))
            for name, values in answers.terms.items()
            if is_kl(name)
        }
        record["late"] = {name: value for name, value in last.items() if value is not None}
        for group, chosen in groups(data, answers.examples).items():
            record[group] = {"kl": mean(answers.terms["kl"][chosen], answers.mask[chosen])}
    record["length_mean"], record["length_max"] = float(lengths.mean()), int(lengths.max())
    record["truncation_rate"] = float((answers.stopped == 0).mean())
    repeated, complete = repeats(answers.tokens, answers.mask)
    record["repetition_rate"] = float(repeated.sum() / max(complete.sum(), 1))
    return record


def samples(answers: Answers, count: int) -> list[dict[str, Any]]:
    """The first few answers, for `samples.jsonl`."""
    return [
        {
            "id": example.id,
            "prompt": example.messages[-1]["content"],
            "completion": text,
            "answer": example.answer,
        }
        for example, text in zip(answers.examples[:count], answers.text[:count], strict=True)
    ]
