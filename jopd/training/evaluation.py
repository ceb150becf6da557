"""Held-out problems: what a model answers, and how far the student is from its teacher at each
token.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from jopd.data.batching import Batches
from jopd.data.texts import texts
from jopd.diagnostics.tokens import Comparison, Diagnostics
from jopd.losses.method import INITIAL
from jopd.models.sharding import on_host
from jopd.rollout.buckets import bucket, trim
from jopd.rollout.sampler import Rollout
from jopd.rollout.settings import Decoding
from jopd.training.batch import Batch, Context
from jopd.training.mesh import place_batch
from jopd.training.program import Program
from jopd.training.state import Fixed, TrainState
from jopd.training.step import Jitted
from jopd.training.summary import Answers


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
                of_view = self.jitted.measure(state, fixed, batch, Comparison(view))
                terms |= {f"{name}_{view}": of_view[name] for name in ("kl", "forward_kl")}
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
        batches: list[Answers] = []
        for index in range(len(self.problems)):
            host, examples = self.problems[index], self.problems.examples_at(index)
            contexts = {
                view: Context(**place_batch(self.mesh, context))
                for view, context in host["contexts"].items()
            }
            rollout, terms = on_host(answer(contexts, place_batch(self.mesh, host["rows"])))
            # The last batch is filled up with problems that came before, and lengths differ between
            # batches.
            padding = [(0, 0), (0, self.decoding.max_new_tokens - rollout.tokens.shape[1])]
            real = lambda x, rows=len(examples), padding=padding: np.pad(x, padding)[:rows]
            tokens, mask = real(rollout.tokens), real(rollout.mask)
            text = texts(self.tokenizer, tokens, mask)
            measured = {name: real(values) for name, values in terms.items()}
            batches.append(
                Answers(examples, tokens, mask, rollout.stopped[: len(examples)], text, measured)
            )
        join = lambda name: np.concatenate([getattr(part, name) for part in batches])
        return Answers(
            examples=[example for part in batches for example in part.examples],
            tokens=join("tokens"),
            mask=join("mask"),
            stopped=join("stopped"),
            text=[text for part in batches for text in part.text],
            terms={
                name: np.concatenate([part.terms[name] for part in batches])
                for name in batches[0].terms
            },
        )
