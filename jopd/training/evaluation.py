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

Arrays = dict[str, jax.Array]
# Of a batch's index, the scored batch, its rollout and the ids of its rows.
Look = Callable[[int, Batch, Rollout, jax.Array], Arrays]


class Evaluator(NamedTuple):
    """Everything but the parameters.

    Attributes:
      problems: in order, without shuffle.
      key: the same noise at every evaluation, so that two of them differ by the model alone.
      reads: the view under which the student answers.
    """

    program: Program
    jitted: Jitted
    mesh: Mesh
    problems: Batches
    tokenizer: PreTrainedTokenizerBase
    decoding: Decoding
    key: jax.Array
    reads: str = "student"

    def student(self, state: TrainState, fixed: Fixed, look: Look = lambda *_: {}) -> Answers:
        """The student's answers, compared token by token with the teacher, if there is one.

        Under the teacher's first view with everything that `Diagnostics` knows, under each other
        view V with the two KLs, `kl_V` and `forward_kl_V`.

        Args:
          look: what else there is to be seen of a batch's tokens, for `Answers.seen`.
        """

        def answer(index, contexts, rows):
            contexts = contexts | {"student": contexts[self.reads]}
            rollout = self.jitted.rollout(
                state, fixed, contexts["student"], rows, self.key, decoding=self.decoding, samples=1
            )
            rollout = trim(
                rollout, bucket(int(rollout.mask.sum(axis=1).max()), self.decoding.max_new_tokens)
            )
            batch = Batch(contexts, rollout.tokens, rollout.mask)
            if self.views:
                batch = batch._replace(hidden=self.jitted.score(state, fixed, batch, self.views))
            terms = self._compared(state, fixed, batch)
            return rollout, terms, look(index, batch, rollout, rows)

        return self._collect(answer)

    def _compared(self, state: TrainState, fixed: Fixed, batch: Batch) -> dict[str, jax.Array]:
        """Per-token terms of a scored batch."""
        if not self.views:
            return {}
        first, *others = self.views
        stage = Diagnostics(first, stop_tokens=self.decoding.stop_tokens)
        terms = self.jitted.measure(state, fixed, batch, stage)
        for view in others:
            of_view = self.jitted.measure(state, fixed, batch, Comparison(view))
            terms |= {f"{name}_{view}": of_view[name] for name in ("kl", "forward_kl")}
        return terms

    def teacher(self, state: TrainState, fixed: Fixed) -> Answers:
        """What the teacher itself answers, under its first view."""

        def answer(_, contexts, rows):
            context = contexts[self.views[0]]
            rollout = self.jitted.teacher_rollout(
                state, fixed, context, rows, self.key, decoding=self.decoding
            )
            return rollout, {}, {}

        return self._collect(answer)

    @property
    def views(self) -> tuple[str, ...]:
        """The teacher's."""
        return tuple(view for view in self.program.views if view != INITIAL)

    def _collect(
        self,
        answer: Callable[[int, dict[str, Context], jax.Array], tuple[Rollout, Arrays, Arrays]],
    ) -> Answers:
        batches: list[Answers] = []
        for index in range(len(self.problems)):
            host, examples = self.problems[index], self.problems.examples_at(index)
            contexts = {
                view: Context(**place_batch(self.mesh, context))
                for view, context in host["contexts"].items()
            }
            rollout, terms, seen = on_host(
                answer(index, contexts, place_batch(self.mesh, host["rows"]))
            )
            # The last batch is filled up with problems that came before, and lengths differ between
            # batches.
            padding = [(0, 0), (0, self.decoding.max_new_tokens - rollout.tokens.shape[1])]
            real = lambda x, rows=len(examples), padding=padding: np.pad(
                x, padding + [(0, 0)] * (x.ndim - 2)
            )[:rows]
            tokens, mask = real(rollout.tokens), real(rollout.mask)
            text = texts(self.tokenizer, tokens, mask)
            measured, seen = jax.tree.map(real, (terms, seen))
            stopped = rollout.stopped[: len(examples)]
            batches.append(Answers(examples, tokens, mask, stopped, text, measured, seen))
        join = lambda name: np.concatenate([getattr(part, name) for part in batches])
        # The first batches alone are looked at.
        looked_at = [part.seen for part in batches if part.seen]
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
            seen={
                name: np.concatenate([seen[name] for seen in looked_at])
                for name in (looked_at[0] if looked_at else {})
            },
        )
