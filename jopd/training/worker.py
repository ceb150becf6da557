"""One run's jitted functions, fed from the host: a training step, and an evaluation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jopd.losses.method import JUDGED
from jopd.models.sharding import on_host
from jopd.rollout.buckets import bucket, trim
from jopd.rollout.sampler import Rollout
from jopd.training import completions, evaluation, inputs, mesh, summary
from jopd.training.batch import (
    Batch,
    Context,
    by_length,
    in_rollout,
    rearranged,
    with_context_rows,
)
from jopd.training.laps import Laps
from jopd.training.optimizer import rates
from jopd.training.samples import LOOKED_AT
from jopd.training.setup import Run
from jopd.training.state import EVALUATION, GUIDING, TRAINING, WINDOWS, TrainState
from jopd.training.step import jitted
from jopd.training.windows import WithWindows
from jopd.training.work import Work, work_of


class Written(NamedTuple):
    """A step's completions.

    Attributes:
      rollout: as they were written.
      for_verifier: the same on the host; None where no verifier reads them.
      batch: with the inputs that are known before a teacher reads it, a context for each
        completion, and rows of like lengths together in every micro-batch.
      rows: `[B]`, the ids of the batch's rows, unique over the run.
      places: where the batch's rows are in the rollout, see `jopd.training.batch.by_length`; None
        where they are in its order.
    """

    rollout: Rollout
    for_verifier: Rollout | None
    batch: Batch
    rows: jax.Array
    places: jax.Array | None


class Measured(NamedTuple):
    """What a training step has measured, on the host.

    Attributes:
      metrics: scalars but for `finite_rows` `[B]`, in the order in which they were written, and,
        of a watched step, the dictionary `diagnostics`.
      seconds: of each phase, see `Laps`.
      work: how long the rows were.
    """

    metrics: dict[str, Any]
    seconds: dict[str, float]
    work: Work


class Stepped(NamedTuple):
    """What a training step leaves behind; the devices may still be at it."""

    state: TrainState
    metrics: dict[str, Any]
    places: jax.Array | None
    laps: Laps
    work: Work

    def measured(self) -> Measured:
        """Waits for the step."""
        seconds = self.laps.seconds()
        metrics, places, done = on_host((self.metrics, self.places, self.work))
        if places is not None:
            metrics["finite_rows"] = metrics["finite_rows"][np.argsort(in_rollout(places))]
        return Measured(metrics, seconds, done)


class Worker:
    """Feeds the jitted phases of a run, and does its own work while they go on."""

    def __init__(self, run: Run):
        self.run, self.jitted = run, jitted(run.program, run.shardings)
        self.key = jax.random.key(run.config.seed)
        self.laps = None
        self.rates = rates(run.config.optimizer, run.config.steps * run.program.method.updates)
        self.evaluator = evaluation.Evaluator(
            run.program,
            self.jitted,
            run.mesh,
            run.held_out,
            run.student.tokenizer,
            dataclasses.replace(run.program.decoding, sampling=run.config.evaluation.sampling),
            jax.random.fold_in(self.key, EVALUATION),
        )

    def step(
        self, step: int, state: TrainState, meanwhile: Callable[[], None] = lambda: None
    ) -> Stepped:
        """One rollout batch: the student writes, the teacher scores, the loss moves the student.

        Args:
          meanwhile: what else there is to do while the student writes.
        """
        run, method = self.run, self.run.program.method
        laps = self.laps = Laps(self.laps)
        written = self.write(step, state, meanwhile, laps)
        batch, metrics = written.batch, {}
        laps.end("rollout", batch)
        for update in range(method.updates):
            if update < method.scorings:
                judge = functools.partial(self.judged, step, written) if update == 0 else None
                batch = self.grade(state, batch, judge, laps)
            if update == 0 and method.near_future:
                batch, method_state, of_windows, _ = self.windows(state, batch, written.rows)
                state = state._replace(method=method_state)
                metrics |= of_windows
                laps.end("windows", batch.streams)
            watch = update == 0 and self.watches(step)
            state, of_update = self.jitted.update(state, run.fixed, batch, watch=watch)
            metrics |= of_update
            if watch:
                rescored, logp = metrics.pop("rescored"), written.rollout.logp
                if self.plain:
                    metrics |= drift(rearranged(logp, written.places), rescored, batch.mask)
            laps.end("update", of_update)
        lengths = batch.mask.sum(axis=1)
        metrics |= {
            "tokens": lengths.sum(),
            "length_mean": lengths.mean(),
            "truncation_rate": (written.rollout.stopped == 0).mean(),
            # As the other numbers, of the last update.
            "learning_rate": self.rates[step * method.updates - 1],
        }
        contexts = {view: batch.contexts[view] for view in ("student", *method.views)}
        done = work_of(contexts, batch.mask, [it.mask for it in batch.streams.values()])
        return Stepped(state, metrics, written.places, laps, done)

    @property
    def plain(self) -> bool:
        """Whether the student wrote every completion, after its own prompt."""
        method = self.run.program.method
        return method.completions == "student" and not method.guided_share

    def watches(self, step: int) -> bool:
        """Whether the diagnostics of this step are logged."""
        every = self.run.config.watch
        return self.run.program.diagnostics is not None and every > 0 and step % every == 0

    def write(
        self,
        step: int,
        state: TrainState,
        meanwhile: Callable[[], None] = lambda: None,
        laps: Laps | None = None,
    ) -> Written:
        """The completions of a step's batch: the student's, the references or some of each."""
        run, method, laps = self.run, self.run.program.method, laps or Laps()
        samples = run.config.rollout.samples
        host = run.train[step - 1]
        contexts = {
            view: Context(**mesh.place_batch(run.mesh, context))
            for view, context in host["contexts"].items()
        }
        ids = host["rows"][:, None] * samples + np.arange(samples, dtype=np.int32)
        rows = mesh.place_batch(run.mesh, ids.reshape(-1))
        if "reference" not in host:
            rollout = self.sample(state, contexts, rows)
        else:
            rollout = completions.references(run.mesh, host["reference"], samples)
            if method.completions == "mixed":
                of_student = self.sample(state, contexts, rows)
                rollout = completions.mix(
                    of_student, rollout, rows, self.key, method.on_policy_share
                )
        laps.end("rollout", rollout)
        meanwhile()
        # Not a compilation for every length, nor the longest length for every batch.
        longest = int(rollout.mask.sum(axis=1).max())
        rollout = trim(rollout, bucket(longest, run.config.rollout.max_new_tokens))
        known = {
            name: inputs.of(run, name, step, rollout)
            for name in method.inputs
            if name not in JUDGED
        }
        batch, places = Batch(contexts, rollout.tokens, rollout.mask, known), None
        if (parts := run.program.micro_batches) > 1:
            places = by_length(rollout.mask, parts)
            batch, rows = rearranged((with_context_rows(batch), rows), places)
        # Before the devices are busy with the teacher's reading.
        for_verifier = on_host(rollout) if {*JUDGED} & {*method.inputs} else None
        return Written(rollout, for_verifier, batch, rows, places)

    def judged(self, step: int, written: Written) -> dict[str, jax.Array]:
        """The inputs that the task's verifier gives."""
        if written.for_verifier is None:
            return {}
        names = [name for name in self.run.program.method.inputs if name in JUDGED]
        found = {name: inputs.of(self.run, name, step, written.for_verifier) for name in names}
        return rearranged(found, written.places)

    def sample(self, state: TrainState, contexts: dict[str, Context], rows: jax.Array) -> Rollout:
        """What the student writes, some of it guided where the method asks for that."""
        run, share = self.run, self.run.program.method.guided_share
        key = jax.random.fold_in(self.key, TRAINING)
        how = {"decoding": run.program.decoding, "samples": run.config.rollout.samples}
        if not share:
            return self.jitted.rollout(state, run.fixed, contexts["student"], rows, key, **how)
        guided = completions.chosen(rows, jax.random.fold_in(self.key, GUIDING), share)
        return self.jitted.guided_rollout(state, run.fixed, contexts, guided, rows, key, **how)

    def grade(
        self,
        state: TrainState,
        batch: Batch,
        judge: Callable[[], dict[str, jax.Array]] | None = None,
        laps: Laps | None = None,
    ) -> Batch:
        """The batch with what the teacher makes of it, and with what the method wants to know of it
        as a whole.

        Args:
          judge: gives further inputs, while the teacher reads.
        """
        run, method, laps = self.run, self.run.program.method, laps or Laps()
        hidden = self.jitted.score(state, run.fixed, batch, method.views)
        laps.end("score", hidden)
        found = judge() if judge else {}
        batch = batch._replace(hidden=hidden, inputs=batch.inputs | found)
        if found:
            laps.end("rewards", ())
        if method.scoring() is not None:
            known = self.jitted.prepare(state, run.fixed, batch)
            batch = batch._replace(inputs=batch.inputs | known)
            laps.end("score", known)
        return batch

    def windows(self, state: TrainState, batch: Batch, rows: jax.Array) -> WithWindows:
        """The graded batch with what both models write on from its places."""
        key, decoding = jax.random.fold_in(self.key, WINDOWS), self.run.program.decoding
        return self.jitted.windows(state, self.run.fixed, batch, rows, key, decoding=decoding)

    def look(self, step: int, state: TrainState) -> dict[str, np.ndarray]:
        """What only some methods know of a step's tokens, for pictures, with the models as they are
        now.

        Of each token what the method shows, such as its `evidence`; of each window `transport` and
        `divergence`, and the `threshold` above which it is really divergent.
        """
        method = self.run.program.method
        if not (method.shown or method.near_future):
            return {}
        written = self.write(step, state)
        batch = self.grade(state, written.batch, functools.partial(self.judged, step, written))
        mask = on_host(batch.mask)
        pictured = {name: on_host(batch.inputs[name])[mask] for name in method.shown}
        if method.near_future:
            *_, metrics, points = self.windows(state, batch, written.rows)
            points = on_host(points)
            compared = points.pop("compared")
            pictured |= {name: values[compared] for name, values in points.items()}
            pictured["threshold"] = on_host(metrics["transport_threshold"])
        return pictured

    def look_at(
        self, state: TrainState, index: int, batch: Batch, rollout: Rollout, rows: jax.Array
    ) -> dict[str, jax.Array]:
        """What the method makes of each token of an evaluation's answers, of the batches of which
        some are shown; see `jopd.training.seen`.
        """
        run, method = self.run, self.run.program.method
        if index * len(rollout.tokens) >= min(run.config.evaluation.samples_shown, LOOKED_AT):
            return {}
        if unread := tuple(view for view in method.views if view not in batch.hidden):
            further = self.jitted.score(state, run.fixed, batch, unread)
            batch = batch._replace(hidden=batch.hidden | further)
        step = int(state.step) // method.updates + 1
        known = {
            name: inputs.of(run, name, step, rollout)
            for name in method.inputs
            if name not in JUDGED
        }
        batch = batch._replace(inputs=known)
        if method.scoring() is not None:
            batch = batch._replace(inputs=known | self.jitted.prepare(state, run.fixed, batch))
        if not method.near_future:
            return self.jitted.seen(state, run.fixed, batch)
        written = self.windows(state, batch, rows)
        after = written.batch._replace(streams={})
        places = written.batch.streams["windows"].starts
        return self.jitted.seen(state, run.fixed, after) | at_places(
            written.points, places, batch.mask
        )

    def evaluate(
        self, state: TrainState, *, teacher_too: bool
    ) -> tuple[dict[str, Any], summary.Answers]:
        """The record of the student on the held-out problems, on demand with the teacher's own, and
        the student's answers.
        """
        run, data = self.run, self.run.config.data
        answers = self.evaluator.student(state, run.fixed, functools.partial(self.look_at, state))
        record = summary.summarise(data, answers)
        if teacher_too and run.teacher is not None:
            of_teacher = self.evaluator.teacher(state, run.fixed)
            record["teacher"] = summary.summarise(data, of_teacher)
        return record, answers


@jax.jit
def at_places(
    points: dict[str, Shaped[Array, "b w"]], places: Int[Array, "b m"], mask: Bool[Array, "b t"]
) -> dict[str, Float[Array, "b t"]]:
    """The `transport` of each window at the token where it begins, NaN elsewhere; the probes, which
    come last and which nothing is learnt from, are left out.
    """
    count = places.shape[1]
    begins = places[..., None] == jnp.arange(mask.shape[1], dtype=places.dtype)[None, None]
    counts = begins & points["compared"][:, :count, None]
    cost = jnp.where(counts, points["transport"][:, :count, None], -jnp.inf).max(axis=1)
    return {"transport": jnp.where(counts.any(axis=1) & mask, cost, jnp.nan)}


@jax.jit
def drift(
    behaviour_logp: Float[Array, "b t"], logp: Float[Array, "b t"], mask: Bool[Array, "b t"]
) -> dict[str, Float[Array, ""]]:
    """How far the sampler's log-probabilities are from the trainer's of the same tokens and
    parameters: 0 but for rounding, and for what a kernel or a precision makes of it.
    """
    apart = jnp.where(mask, jnp.abs(behaviour_logp - logp), 0)
    mean = apart.sum() / jnp.maximum(mask.sum(dtype=jnp.float32), 1)
    return {"sampler_drift_mean": mean, "sampler_drift_max": apart.max()}
