"""The three jitted functions of a step: the student writes, the teacher scores, the loss moves the student.

    rollout  (state, fixed, context, rows, key) -> completions
    score    (state, fixed, batch, views)   -> the teacher's final hidden states, one array a view
    update   (state, fixed, batch)          -> (state, metrics)

A batch's rows are split over the mesh axes data and fsdp; nothing here names a device. Micro-batches are scanned inside `score` and
`update`; their losses are sums divided by the whole batch's counts, so their number changes memory and not the result.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jopd import models
from jopd.losses.base import Method, Stage, Terms, Total, time_stage, whole_batch_counts
from jopd.losses.chunked import Scored, chunked_terms
from jopd.models import sharding
from jopd.rollout.sampler import Rollout, Sampling, sample
from jopd.training.state import Fixed, Params, TrainState, union


class Context(NamedTuple):
    """One view of the prompts, left-padded.

    Attributes:
      tokens: `[N, P]` int32.
      valid: `[N, P]`, false on padding.
    """

    tokens: Int[Array, "n p"]
    valid: Bool[Array, "n p"]


class Batch(NamedTuple):
    """What the teacher grades.

    Attributes:
      contexts: by view, "student" among them; `[N, P_view]`, or one row for each completion `[B, P_view]`.
      tokens: `[B, T]` completions, right-padded; `B` is `N` times the samples a prompt, a prompt's samples side by side.
      mask: `[B, T]`, true on the tokens that count.
      inputs: per-token arrays `[B, T]` by name, for the method's time stage.
      hidden: the teachers' final hidden states by view, `[B, T, d_teacher]`; filled in by `score`.
    """

    contexts: dict[str, Context]
    tokens: Int[Array, "b t"]
    mask: Bool[Array, "b t"]
    inputs: dict[str, Float[Array, "b t"]]
    hidden: dict[str, Float[Array, "b t d"]]


@dataclasses.dataclass(frozen=True)
class Program:
    """The static half of a run: everything that the jitted functions are specialised on.

    Attributes:
      views: the teacher's, those of the method and those that are only measured.
      vocabulary: the entries that student and teacher share; rows that only pad one of the heads are cut off.
    """

    method: Method
    student: nnx.GraphDef
    teacher: nnx.GraphDef
    views: tuple[str, ...]
    ema_rate: float
    optimizer: optax.GradientTransformation
    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_id: int
    vocabulary: int
    micro_batches: int
    chunk: int

    def student_params(self, state: TrainState, fixed: Fixed) -> Params:
        return union(fixed.base, state.params)

    def teacher_params(self, state: TrainState, fixed: Fixed) -> Params:
        trained = {"frozen": {}, "ema": state.ema_teacher, "live": state.params}[self.method.teacher_update]
        return jax.lax.stop_gradient(union(fixed.base, trained) if trained else fixed.teacher)

    def rollout(
        self,
        state: TrainState,
        fixed: Fixed,
        context: Context,
        rows: Int[Array, " b"],
        key: PRNGKeyArray,
        *,
        sampling: Sampling,
        samples: int,
    ) -> Rollout:
        """The student's completions; `rows` are ids unique over the run, so every row draws its own noise."""
        return self._sample(self.student, self.student_params(state, fixed), context, rows, key, sampling, samples)

    def teacher_rollout(
        self,
        state: TrainState,
        fixed: Fixed,
        context: Context,
        rows: Int[Array, " b"],
        key: PRNGKeyArray,
        *,
        sampling: Sampling,
    ) -> Rollout:
        """What the teacher itself would answer: measured, not trained on."""
        return self._sample(self.teacher, self.teacher_params(state, fixed), context, rows, key, sampling, 1)

    def _sample(self, graph, params, context: Context, rows, key, sampling: Sampling, samples: int) -> Rollout:
        return sample(
            models.merge(graph, params), context.tokens, context.valid, rows, key, sampling=sampling, samples=samples,
            max_new_tokens=self.max_new_tokens, stop_tokens=self.stop_tokens, pad_id=self.pad_id, vocabulary=self.vocabulary,
        )  # fmt: skip

    def score(
        self, state: TrainState, fixed: Fixed, batch: Batch, views: tuple[str, ...]
    ) -> dict[str, Float[Array, "b t d"]]:
        """The teacher's final hidden states at every completion token, under each of `views`."""
        params = self.teacher_params(state, fixed)

        def micro(part: Batch):
            teacher = models.merge(self.teacher, params)
            return {view: completion_hidden(teacher, part.contexts[view], part.tokens, part.mask) for view in views}

        return whole(jax.lax.map(micro, parts(batch_rows(batch), self.micro_batches)))

    def terms(
        self, student: models.Transformer, teacher_head: Float[Array, "d v"] | None, part: Batch, stage: Stage
    ) -> Terms:
        """A vocabulary stage over the completions: chunked, so that no `[B, T, V]` array exists."""
        hidden = completion_hidden(student, part.contexts["student"], part.tokens, part.mask)
        # Gathered over fsdp here, once, and not again in every chunk.
        gathered = lambda head: sharding.constrain(head, None, "vocabulary")
        teachers = {view: Scored(value, gathered(teacher_head)) for view, value in part.hidden.items()}
        scored = Scored(hidden, gathered(student.head()))
        return chunked_terms(
            stage, scored, teachers, part.tokens, part.mask, {}, chunk=self.chunk, vocabulary=self.vocabulary
        )

    def update(self, state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """One optimiser step on a scored batch.

        Returns:
          The next state, and the metrics: scalars, and `finite_rows` `[B]`, false where a row's terms are not finite numbers.
        """
        batch = batch_rows(batch)
        counts = whole_batch_counts(self.method, batch.mask, batch.inputs)
        teacher_head = self.teacher_head(state, fixed)

        def loss(params: Params, part: Batch):
            student = models.merge(self.student, union(fixed.base, params))
            terms = self.terms(student, teacher_head, part, self.method)
            summands, metrics = time_stage(self.method, terms, part.mask, part.inputs)
            shares = {
                name: term.coefficient * term.sum / jnp.maximum(counts[name], 1) for name, term in summands.items()
            }
            return sum(shares.values()), (shares, metrics, finite_rows(terms, part.mask))

        def accumulate(gradient, part: Batch):
            (_, aux), more = jax.value_and_grad(loss, has_aux=True)(state.params, part)
            return jax.tree.map(jnp.add, gradient, more), aux

        zero = jax.tree.map(jnp.zeros_like, state.params)
        gradient, (shares, totals, finite) = jax.lax.scan(accumulate, zero, parts(batch, self.micro_batches))

        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        follow = lambda average, value: average + self.ema_rate * (value - average)
        ema = jax.tree.map(follow, state.ema_teacher, params) if state.ema_teacher else state.ema_teacher

        shares = {name: value.sum() for name, value in shares.items()}
        metrics = {name: Total(total.sum.sum(), total.count.sum()).mean() for name, total in totals.items()}
        metrics |= {f"loss_{name}": value for name, value in shares.items()} if len(shares) > 1 else {}
        metrics |= {
            "loss": sum(shares.values()),
            "gradient_norm": optax.global_norm(gradient),
            "finite_rows": whole(finite),
        }
        return TrainState(params, optimizer, ema, state.step + 1, state.key), metrics

    def teacher_head(self, state: TrainState, fixed: Fixed) -> Float[Array, "d v"] | None:
        if not self.views:
            return None
        return models.merge(self.teacher, self.teacher_params(state, fixed)).head()

    def measure(self, state: TrainState, fixed: Fixed, batch: Batch, stage: Stage) -> Terms:
        """Per-token terms `[B, T]` of a scored batch, without gradient; `stage` has a `token_terms`."""
        student, head = models.merge(self.student, self.student_params(state, fixed)), self.teacher_head(state, fixed)
        return whole(
            jax.lax.map(
                lambda part: self.terms(student, head, part, stage), parts(batch_rows(batch), self.micro_batches)
            )
        )


def completion_hidden(
    model: models.Transformer, context: Context, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> Float[Array, "b t d"]:
    """The hidden states that predict each completion token: the first one's is the context's last, the last token's own is not used."""
    hidden = model(jnp.concatenate([context.tokens, tokens], axis=1), jnp.concatenate([context.valid, mask], axis=1))
    return hidden[:, context.tokens.shape[1] - 1 : -1]


def batch_rows(batch: Batch) -> Batch:
    """One context row for each completion."""
    rows = batch.tokens.shape[0]
    repeat = lambda x: jnp.repeat(x, rows // x.shape[0], axis=0)
    return batch._replace(contexts=jax.tree.map(repeat, batch.contexts))


def parts(tree, count: int):
    """`[B, ...]` to `[count, B / count, ...]`; a part takes every count-th row, so each device has its share of every part."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), tree)


def whole(tree):
    """The inverse of `parts`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def finite_rows(terms: dict[str, Array], mask: Bool[Array, "b t"]) -> Bool[Array, " b"]:
    def of(term):
        finite = jnp.isfinite(term).reshape(*mask.shape, -1).all(axis=-1)
        return jnp.all(finite | ~mask, axis=1)

    return jnp.stack([of(term) for term in terms.values()]).all(axis=0)


class Jitted(NamedTuple):
    """A program's functions, compiled at their first call for each shape."""

    rollout: Callable
    teacher_rollout: Callable
    score: Callable
    update: Callable
    measure: Callable


def jitted(program: Program, state_shardings: TrainState | None = None) -> Jitted:
    """Jits a program; `update` reuses the state's memory and, given where it lives, leaves it there."""
    return Jitted(
        rollout=jax.jit(program.rollout, static_argnames=("sampling", "samples")),
        teacher_rollout=jax.jit(program.teacher_rollout, static_argnames="sampling"),
        score=jax.jit(program.score, static_argnames="views"),
        update=jax.jit(program.update, donate_argnums=0, out_shardings=(state_shardings, None)),
        measure=jax.jit(program.measure, static_argnames="stage"),
    )
