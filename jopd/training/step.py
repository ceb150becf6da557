"""The jitted functions of a step: the student writes, the teacher scores, the loss moves the
student.

    rollout  (state, fixed, context, rows, key) -> completions
    score    (state, fixed, batch, views)   -> the teacher's final hidden states, one array a view
    prepare  (state, fixed, batch)          -> what a method must know of the whole batch before it differentiates a part
    windows  (state, fixed, batch, rows, key)  -> both models write on from places in the
    completions (methods that ask for it)
    update   (state, fixed, batch)          -> (state, metrics)

A batch's rows are split over the mesh axes data and fsdp; nothing here names a device.
Micro-batches are scanned inside `score` and `update`; their losses are sums divided by the whole
batch's counts, so their number changes memory and not the result.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jopd import models
from jopd.diagnostics.profiles import of_a_batch, quarters, update_size
from jopd.diagnostics.tokens import Diagnostics
from jopd.losses.chunked import Scored, chunked_terms
from jopd.losses.method import INITIAL, Loss, Method
from jopd.losses.stages import profiled_tokens, time_stage, whole_batch_counts
from jopd.losses.types import Stage, Terms, Total, share
from jopd.losses.windows import Window
from jopd.models import sharding
from jopd.rollout.sampler import Rollout, Sampling, sample
from jopd.rollout.windows import place_noise, window_rows, write_on
from jopd.training.batch import Batch, Context, batch_rows, parts, stream_of, whole, widen
from jopd.training.state import Fixed, Params, TrainState, union


@dataclasses.dataclass(frozen=True)
class Program:
    """The static half of a run: everything that the jitted functions are specialised on.

    Attributes:
      initial: the student without adapters, for the view "initial".
      width: of the student's hidden states.
      views: the teacher's, those of the method and those that are only measured.
      vocabulary: the entries that student and teacher share; rows that only pad one of the heads
        are cut off.
      diagnostics: what a watched update measures besides, of the same logits; nothing without a
        teacher.
    """

    method: Method
    student: nnx.GraphDef
    teacher: nnx.GraphDef
    initial: nnx.GraphDef
    width: int
    views: tuple[str, ...]
    ema_rate: float
    optimizer: optax.GradientTransformation
    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_id: int
    vocabulary: int
    micro_batches: int
    chunk: int
    diagnostics: Diagnostics | None = None

    def student_params(self, state: TrainState, fixed: Fixed) -> Params:
        return union(fixed.base, state.params)

    def teacher_params(self, state: TrainState, fixed: Fixed) -> Params:
        trained = {"frozen": {}, "ema": state.ema_teacher, "live": state.params}[
            self.method.teacher_update
        ]
        return jax.lax.stop_gradient(union(fixed.base, trained) if trained else fixed.teacher)

    def reader(self, view: str, state: TrainState, fixed: Fixed) -> models.Transformer:
        """Who reads a view."""
        if view == INITIAL:
            return models.merge(self.initial, jax.lax.stop_gradient(fixed.base or fixed.initial))
        return models.merge(self.teacher, self.teacher_params(state, fixed))

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
        """The student's completions; `rows` are ids unique over the run, so every row draws its own
        noise.
        """
        return self._sample(
            self.student, self.student_params(state, fixed), context, rows, key, sampling, samples
        )

    def guided_rollout(
        self,
        state: TrainState,
        fixed: Fixed,
        contexts: dict[str, Context],
        guided: Bool[Array, " b"],
        rows: Int[Array, " b"],
        key: PRNGKeyArray,
        *,
        sampling: Sampling,
        samples: int,
    ) -> Rollout:
        """Completions of which the `guided` are sampled with the privileged context in the prompt."""
        plain, guide = contexts["student"], contexts["privileged"]
        choose = lambda a, b: jnp.where(guided.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        if self.method.guided_writer == "teacher":
            student, teacher = self.student_params(state, fixed), self.teacher_params(state, fixed)
            own = self._sample(self.student, student, plain, rows, key, sampling, samples)
            others = self._sample(self.teacher, teacher, guide, rows, key, sampling, samples)
            return jax.tree.map(choose, others, own)
        # A prompt's samples may now differ in their context, so each has a row, and a prefill, of
        # its own.
        width = max(plain.tokens.shape[1], guide.tokens.shape[1])
        own, others = (
            jax.tree.map(lambda x: jnp.repeat(widen(x, width), samples, axis=0), c)
            for c in (plain, guide)
        )
        context = jax.tree.map(choose, others, own)
        return self._sample(
            self.student, self.student_params(state, fixed), context, rows, key, sampling, 1
        )

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
        return self._sample(
            self.teacher, self.teacher_params(state, fixed), context, rows, key, sampling, 1
        )

    def _sample(
        self,
        graph,
        params,
        context: Context,
        rows,
        key,
        sampling: Sampling,
        samples: int,
        length=None,
    ) -> Rollout:
        return sample(
            models.merge(graph, params),
            context.tokens,
            context.valid,
            rows,
            key,
            sampling=sampling,
            samples=samples,
            max_new_tokens=length or self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            pad_id=self.pad_id,
            vocabulary=self.vocabulary,
        )

    def score(
        self, state: TrainState, fixed: Fixed, batch: Batch, views: tuple[str, ...]
    ) -> dict[str, Float[Array, "b t _"]]:
        """The final hidden states of each view's reader at every completion token."""
        readers = {view: self.reader(view, state, fixed) for view in views}
        # One shape for all views: methods look at small differences between them.
        width = max((batch.contexts[view].tokens.shape[1] for view in views), default=0)

        def micro(part: Batch):
            context = {
                view: jax.tree.map(lambda x: widen(x, width), part.contexts[view]) for view in views
            }
            return {
                view: completion_hidden(reader, context[view], part.tokens, part.mask)[:, :-1]
                for view, reader in readers.items()
            }

        return whole(
            jax.lax.map(micro, parts(batch_rows(batch), self.micro_batches, len(batch.tokens)))
        )

    def heads(
        self, state: TrainState, fixed: Fixed, views: Iterable[str]
    ) -> dict[str, Float[Array, "_ _"]]:
        """The output head of each view's reader."""
        return {view: self.reader(view, state, fixed).head() for view in views}

    def terms(
        self,
        student: models.Transformer,
        hidden: Float[Array, "b t d"],
        heads: dict[str, Float[Array, "_ _"]],
        part: Batch,
        stage: Stage,
    ) -> Terms:
        """A vocabulary stage over the completions: chunked, so that no `[B, T, V]` array exists."""
        # Gathered over fsdp here, once, and not again in every chunk.
        gathered = lambda head: sharding.constrain(head, None, "vocabulary")
        teachers = {
            view: Scored(value, gathered(heads[view])) for view, value in part.hidden.items()
        }
        scored = Scored(hidden, gathered(student.head()))
        return chunked_terms(
            stage,
            scored,
            teachers,
            part.tokens,
            part.mask,
            part.extras,
            chunk=self.chunk,
            vocabulary=self.vocabulary,
        )

    def prepare(self, state: TrainState, fixed: Fixed, batch: Batch) -> dict[str, Array]:
        """The method's further inputs, of its scoring pass over a scored batch."""
        stage = self.method.scoring()
        assert stage is not None
        return self.method.prepare(
            self.measure(state, fixed, batch, stage), batch.mask, batch.inputs
        )

    def windows(
        self,
        state: TrainState,
        fixed: Fixed,
        batch: Batch,
        rows: Int[Array, " b"],
        key: PRNGKeyArray,
        *,
        sampling: Sampling,
    ) -> tuple[Batch, Params, dict[str, Float[Array, ""]], dict[str, Array]]:
        """Both models write on from places in a prepared batch's completions, and the method
        compares what they wrote.

        Returns:
          The batch with the stream "windows", the method's next state, metrics, and an array `[B,
          W]` a name of each place.
        """
        near_future, batch = self.method.near_future, batch_rows(batch)
        assert near_future is not None
        keys = jax.random.split(key, 3)
        places = near_future.choose_windows(
            batch.inputs, batch.mask, place_noise(rows, keys[0], batch.mask.shape[1])
        )
        ids = window_rows(rows, places.positions.shape[1])
        student, teacher = self.student_params(state, fixed), self.teacher_params(state, fixed)
        embedding = models.merge(self.student, student).embedding[...]

        def write(graph, params, view: str, key) -> Window:
            def micro(given: tuple[Batch, Array, Array]):
                part, positions, ids = given
                rollout = write_on(
                    models.merge(graph, params),
                    *part.contexts[view],
                    part.tokens,
                    part.mask,
                    positions,
                    ids,
                    key,
                    sampling=sampling,
                    window_tokens=near_future.window_tokens,
                    stop_tokens=self.stop_tokens,
                    pad_id=self.pad_id,
                    vocabulary=self.vocabulary,
                )
                vectors = sharding.constrain(embedding[rollout.tokens], "batch", None, None)
                return Window(rollout.tokens, rollout.mask, vectors)

            # As many windows a row, so as much more memory: in the parts that the other passes
            # take.
            given = parts((batch, places.positions, ids), self.micro_batches, len(rows))
            return whole(jax.lax.map(micro, given), places.positions.shape[1])

        mine = write(self.student, student, "student", keys[1])
        theirs = write(self.teacher, teacher, self.method.views[0], keys[2])
        found = near_future.compare_windows(
            places, mine, theirs, batch.inputs, batch.mask, state.method
        )
        # The last place is a probe, which nothing is learnt from.
        stream = Batch(
            {}, found.tokens, found.mask, extras=found.extras, starts=places.positions[:, :-1]
        )
        inputs = batch.inputs | found.inputs
        if "weight" in found.inputs and "weight" in batch.inputs:
            inputs["weight"] = found.inputs["weight"] * batch.inputs["weight"]
        metrics = {name: total.mean() for name, total in found.metrics.items()}
        metrics |= {
            "student_window_tokens": mine.mask.sum(dtype=jnp.float32),
            "teacher_window_tokens": theirs.mask.sum(dtype=jnp.float32),
        }
        return (
            batch._replace(inputs=inputs, streams={"windows": stream}),
            found.state,
            metrics,
            found.points,
        )

    def update(
        self, state: TrainState, fixed: Fixed, batch: Batch, *, watch: bool = False
    ) -> tuple[TrainState, dict[str, Any]]:
        """One optimiser step on a scored batch.

        Returns:
          The next state, and the metrics: scalars; `finite_rows` `[B]`, false where a row's terms
            are not finite numbers; and with
          `watch` the `diagnostics`, a dictionary of scalars and profiles.
        """
        watched = self.diagnostics if watch else None
        batch = batch_rows(batch)
        losses = {"": self.method, **self.method.streams}
        counts = {
            name: self.counts(loss, stream_of(batch, name), state) for name, loss in losses.items()
        }
        heads = {name: self.heads(state, fixed, loss.views) for name, loss in losses.items()}
        trained = {"student": state.params, "modules": state.modules}

        def of_stream(
            name: str, student: models.Transformer, modules: Params, part: Batch, hidden: Array
        ):
            loss = losses[name]
            stage = loss if name or watched is None else Watched(loss, watched)
            terms = self.terms(student, hidden[:, :-1], heads[name], part, stage)
            seen = {
                key[len(WATCHED) :]: terms.pop(key) for key in [*terms] if key.startswith(WATCHED)
            }
            inputs = part.inputs | (
                self.method.apply_modules(modules, hidden, part.mask)
                if modules and not name
                else {}
            )
            profiled = {}
            if seen:
                still, still_inputs = jax.lax.stop_gradient((terms, inputs))
                seen["update_size"] = update_size(
                    loss, still, part.mask, still_inputs, seen["log_ratio"]
                )
                profiled = profiled_tokens(loss, still, part.mask, still_inputs)
            summands, metrics = time_stage(loss, terms, part.mask, inputs)
            shares = {
                key: term.coefficient * share(term.sum, counts[name][key])
                for key, term in summands.items()
            }
            return shares, metrics, finite_rows(terms, part.mask), (seen, profiled)

        def loss(trained: dict[str, Params], part: Batch):
            student = models.merge(self.student, union(fixed.base, trained["student"]))
            hidden = hidden_by_stream(student, part)
            shares, metrics, finite, seen = of_stream(
                "", student, trained["modules"], part, hidden[""]
            )
            for name in self.method.streams:
                more_shares, more_metrics, more_finite, _ = of_stream(
                    name, student, {}, stream_of(part, name), hidden[name]
                )
                shares |= more_shares
                metrics |= {f"{name}_{key}": value for key, value in more_metrics.items()}
                finite &= more_finite.reshape(finite.shape[0], -1).all(axis=1)
            return sum(shares.values()), (shares, metrics, finite, seen)

        def accumulate(gradient, part: Batch):
            (_, aux), more = jax.value_and_grad(loss, has_aux=True)(trained, part)
            return jax.tree.map(jnp.add, gradient, more), aux

        zero = jax.tree.map(jnp.zeros_like, trained)
        gradient, (shares, totals, finite, seen) = jax.lax.scan(
            accumulate, zero, parts(batch, self.micro_batches, len(batch.tokens))
        )

        updates, optimizer = self.optimizer.update(gradient, state.optimizer, trained)
        after: Any = optax.apply_updates(trained, updates)
        follow = lambda average, value: average + self.ema_rate * (value - average)
        ema = (
            jax.tree.map(follow, state.ema_teacher, after["student"])
            if state.ema_teacher
            else state.ema_teacher
        )

        shares = {name: value.sum() for name, value in shares.items()}
        metrics = {
            name: Total(total.sum.sum(axis=0), total.count.sum(axis=0)).mean()
            for name, total in totals.items()
        }
        metrics |= (
            {f"loss_{name}": value for name, value in shares.items()} if len(shares) > 1 else {}
        )
        metrics |= {
            "loss": sum(shares.values()),
            "gradient_norm": optax.tree.norm(gradient["student"]),
            **(
                {"modules_gradient_norm": optax.tree.norm(gradient["modules"])}
                if state.modules
                else {}
            ),
            "finite_rows": whole(finite),
        }
        if watched is not None:
            terms, profiled = whole(seen)
            edges = quarters(self.max_new_tokens)
            metrics["diagnostics"] = of_a_batch(terms, batch.tokens, batch.mask, edges, profiled)
        state = state._replace(
            params=after["student"],
            modules=after["modules"],
            optimizer=optimizer,
            ema_teacher=ema,
            step=state.step + 1,
        )
        return state, metrics

    def counts(self, loss: Loss, batch: Batch, state: TrainState) -> dict[str, Float[Array, ""]]:
        """What divides each summand of a loss, from the whole batch."""
        inputs = batch.inputs
        if loss.module_inputs:
            rows, length = batch.tokens.shape
            hidden = jax.ShapeDtypeStruct((rows, length + 1, self.width), jnp.float32)
            made = jax.eval_shape(self.method.apply_modules, state.modules, hidden, batch.mask)
            inputs = inputs | jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made)
        return whole_batch_counts(loss, batch.mask, inputs, batch.extras)

    def measure(self, state: TrainState, fixed: Fixed, batch: Batch, stage: Stage) -> Terms:
        """Per-token terms `[B, T]` of a scored batch, without gradient; `stage` has a
        `token_terms`.
        """
        student = models.merge(self.student, self.student_params(state, fixed))
        heads = self.heads(state, fixed, batch.hidden)

        def micro(part: Batch):
            hidden = completion_hidden(student, part.contexts["student"], part.tokens, part.mask)
            return self.terms(student, hidden[:, :-1], heads, part, stage)

        return whole(
            jax.lax.map(micro, parts(batch_rows(batch), self.micro_batches, len(batch.tokens)))
        )


# Before the names of the terms that only diagnostics read.
WATCHED = "diagnostics/"


@dataclasses.dataclass(frozen=True)
class Watched:
    """A method's vocabulary stage and, of the very same logits, the diagnostics'."""

    loss: Loss
    diagnostics: Diagnostics

    def token_terms(self, student_logits, teacher_logits, tokens, extras) -> Terms:
        terms = self.loss.token_terms(student_logits, teacher_logits, tokens, extras)
        more = self.diagnostics.token_terms(student_logits, teacher_logits, tokens, {})
        return terms | {f"{WATCHED}{name}": values for name, values in more.items()}


def completion_hidden(
    model: models.Transformer, context: Context, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> Float[Array, "b s d"]:
    """The hidden states that predict each completion token, the context's last being the first, and
    one more, after the last token.
    """
    hidden = model(
        jnp.concatenate([context.tokens, tokens], axis=1),
        jnp.concatenate([context.valid, mask], axis=1),
    )
    return hidden[:, context.tokens.shape[1] - 1 :]


def hidden_by_stream(model: models.Transformer, part: Batch) -> dict[str, Float[Array, "_ _ d"]]:
    """`completion_hidden` of the completions, under the empty name, and of the stream that grew out
    of them, if there is one.
    """
    context = part.contexts["student"]
    if not part.streams:
        return {"": completion_hidden(model, context, part.tokens, part.mask)}
    ((name, stream),) = part.streams.items()
    assert stream.starts is not None
    whole, valid = (
        jnp.concatenate(pair, axis=1)
        for pair in zip(context, (part.tokens, part.mask), strict=True)
    )
    starts = context.tokens.shape[1] + stream.starts
    hidden, branches = model.branched(
        whole, valid, models.Branches(stream.tokens, stream.mask, starts)
    )
    before = jnp.take_along_axis(hidden, starts[..., None] - 1, axis=1).reshape(
        len(stream.tokens), 1, -1
    )
    first = context.tokens.shape[1] - 1
    return {"": hidden[:, first:], name: jnp.concatenate([before, branches], axis=1)}


def finite_rows(terms: dict[str, Array], mask: Bool[Array, "b t"]) -> Bool[Array, " b"]:
    def of(term):
        finite = jnp.isfinite(term).reshape(*mask.shape, -1).all(axis=-1)
        return jnp.all(finite | ~mask, axis=1)

    return jnp.stack([of(term) for term in terms.values()]).all(axis=0)


class Jitted(NamedTuple):
    """A program's functions, compiled at their first call for each shape."""

    rollout: Callable
    guided_rollout: Callable
    teacher_rollout: Callable
    score: Callable
    prepare: Callable
    windows: Callable
    update: Callable
    measure: Callable


def jitted(program: Program, state_shardings: TrainState | None = None) -> Jitted:
    """Jits a program; `update` reuses the state's memory and, given where it lives, leaves it
    there.
    """
    return Jitted(
        rollout=jax.jit(program.rollout, static_argnames=("sampling", "samples")),
        guided_rollout=jax.jit(program.guided_rollout, static_argnames=("sampling", "samples")),
        teacher_rollout=jax.jit(program.teacher_rollout, static_argnames="sampling"),
        score=jax.jit(program.score, static_argnames="views"),
        prepare=jax.jit(program.prepare),
        windows=jax.jit(program.windows, static_argnames="sampling"),
        update=jax.jit(
            program.update,
            donate_argnums=0,
            out_shardings=(state_shardings, None),
            static_argnames="watch",
        ),
        measure=jax.jit(program.measure, static_argnames="stage"),
    )
