"""Held-out problems: what a model answers, how often that is right, and how far the student still is from its teacher."""

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
from jopd.diagnostics.intervals import token_mean, wilson
from jopd.diagnostics.tokens import Comparison
from jopd.rollout.buckets import bucket, trim
from jopd.rollout.sampler import Rollout, Sampling
from jopd.training.mesh import place_batch
from jopd.training.state import Fixed, TrainState
from jopd.training.step import Batch, Context, Jitted, Program

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
    sampling: Sampling
    key: jax.Array

    def student(self, state: TrainState, fixed: Fixed) -> Answers:
        """The student's answers, compared token by token with the teacher under its first view, if there is a teacher."""

        def answer(contexts, rows):
            rollout = self.jitted.rollout(
                state, fixed, contexts["student"], rows, self.key, sampling=self.sampling, samples=1
            )
            rollout = trim(rollout, bucket(int(rollout.mask.sum(axis=1).max()), self.program.max_new_tokens))
            if not self.program.views:
                return rollout, {}
            view = self.program.views[0]
            batch = Batch(contexts, rollout.tokens, rollout.mask)
            batch = batch._replace(hidden=self.jitted.score(state, fixed, batch, (view,)))
            return rollout, self.jitted.measure(state, fixed, batch, Comparison(view))

        return self._collect(answer)

    def teacher(self, state: TrainState, fixed: Fixed) -> Answers:
        """What the teacher itself answers, under its first view."""

        def answer(contexts, rows):
            context = contexts[self.program.views[0]]
            return self.jitted.teacher_rollout(state, fixed, context, rows, self.key, sampling=self.sampling), {}

        return self._collect(answer)

    def _collect(
        self, answer: Callable[[dict[str, Context], jax.Array], tuple[Rollout, dict[str, jax.Array]]]
    ) -> Answers:
        found: list[Answers] = []
        for index in range(len(self.problems)):
            host, examples = self.problems[index], self.problems.examples_at(index)
            contexts = {view: Context(**place_batch(self.mesh, context)) for view, context in host["contexts"].items()}
            rollout, terms = jax.device_get(answer(contexts, place_batch(self.mesh, host["rows"])))
            # The last batch is filled up with problems that came before, and lengths differ between batches.
            real = lambda x: np.pad(x, [(0, 0), (0, self.program.max_new_tokens - x.shape[1])])[: len(examples)]  # noqa: B023
            tokens, mask = real(rollout.tokens), real(rollout.mask)
            text = [
                str(self.tokenizer.decode(row[kept], skip_special_tokens=True))
                for row, kept in zip(tokens, mask, strict=True)
            ]
            measured = {name: real(values) for name, values in terms.items()}
            found.append(Answers(examples, tokens, mask, rollout.stopped[: len(examples)], text, measured))
        join = lambda name: np.concatenate([getattr(part, name) for part in found])
        return Answers(
            examples=[example for part in found for example in part.examples],
            tokens=join("tokens"),
            mask=join("mask"),
            stopped=join("stopped"),
            text=[text for part in found for text in part.text],
            terms={name: np.concatenate([part.terms[name] for part in found]) for name in found[0].terms},
        )


def summarise(data: DataConfig, answers: Answers) -> dict[str, Any]:
    """An evaluation record (`jopd.diagnostics.measures`): shares with Wilson intervals, token means over rows, a KL profile."""
    record: dict[str, Any] = {}
    for name, values in outcomes(data, answers.examples, answers.text).items():
        low, high = wilson(sum(values), len(values))
        record[name] = {"value": sum(values) / len(values), "low": low, "high": high, "count": len(values)}
    record |= {name: mean(values, answers.mask) for name, values in answers.terms.items()}
    if "kl" in answers.terms:
        record["kl_by_position"] = by_position(answers.terms["kl"], answers.mask)
        for group, chosen in groups(data, answers.examples).items():
            record[group] = {"kl": mean(answers.terms["kl"][chosen], answers.mask[chosen])}
    lengths = answers.mask.sum(1)
    record["length_mean"], record["length_max"] = float(lengths.mean()), int(lengths.max())
    record["truncation_rate"] = float((answers.stopped == 0).mean())
    return record


def mean(values: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """The mean over tokens of `[B, T]` values, its interval taken over rows."""
    sums, counts = np.where(mask, values, 0).sum(1), mask.sum(1)
    low, high = token_mean(sums.tolist(), counts.tolist())
    return {"value": float(sums.sum() / counts.sum()), "low": low, "high": high, "count": len(sums)}


def by_position(values: np.ndarray, mask: np.ndarray) -> list[float | None]:
    """Means over tokens in bins of relative position, `(t + 1/2) / length`; None where a bin holds no token."""
    lengths = mask.sum(1, keepdims=True)
    bins = ((np.arange(mask.shape[1])[None] + 0.5) / np.maximum(lengths, 1) * POSITIONS).astype(int)
    inside = [mask & (bins == index) for index in range(POSITIONS)]
    return [float(values[chosen].mean()) if chosen.any() else None for chosen in inside]


def samples(answers: Answers, count: int) -> list[dict[str, Any]]:
    """The first few answers, for `samples.jsonl`."""
    return [
        {"id": example.id, "prompt": example.messages[-1]["content"], "completion": text, "answer": example.answer}
        for example, text in zip(answers.examples[:count], answers.text[:count], strict=True)
    ]
