"""One run's jitted functions, fed from the host: a training step, and an evaluation."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jopd.rollout.buckets import bucket, trim
from jopd.rollout.sampler import Rollout
from jopd.training import completions, evaluation, inputs, mesh, summary
from jopd.training.batch import Batch, Context
from jopd.training.setup import Run
from jopd.training.state import EVALUATION, GUIDING, TRAINING, WINDOWS, TrainState
from jopd.training.step import jitted
from jopd.training.windows import WithWindows


class Written(NamedTuple):
    """A step's completions.

    Attributes:
      batch: with the inputs that are known before a teacher reads it.
      rollout: who ended how.
      rows: `[B]`, the completions' ids, unique over the run.
    """

    batch: Batch
    rollout: Rollout
    rows: jax.Array


class Stepped(NamedTuple):
    """What a training step leaves behind.

    Attributes:
      metrics: on the host; scalars but for `finite_rows` `[B]` and, of a watched step, the
        dictionary `diagnostics`.
      seconds: of each phase.
    """

    state: TrainState
    metrics: dict[str, Any]
    seconds: dict[str, float]


class Worker:
    """Feeds the jitted phases of a run."""

    def __init__(self, run: Run):
        self.run, self.jitted = run, jitted(run.program, run.shardings)
        self.key = jax.random.key(run.config.seed)
        self.evaluator = evaluation.Evaluator(
            run.program,
            self.jitted,
            run.mesh,
            run.held_out,
            run.student.tokenizer,
            dataclasses.replace(run.program.decoding, sampling=run.config.evaluation.sampling),
            jax.random.fold_in(self.key, EVALUATION),
        )

    def step(self, step: int, state: TrainState) -> Stepped:
        """One rollout batch: the student writes, the teacher scores, the loss moves the student."""
        run, method, laps = self.run, self.run.program.method, Laps()
        batch, rollout, rows = self.write(step, state)
        laps.end("rollout", batch)
        metrics = {}
        for update in range(method.updates):
            if update == 0 or method.teacher_update != "frozen":
                batch = self.grade(state, batch)
                laps.end("score", (batch.hidden, batch.inputs))
            if update == 0 and method.near_future:
                batch, method_state, of_windows, _ = self.windows(state, batch, rows)
                state = state._replace(method=method_state)
                metrics |= of_windows
                laps.end("windows", batch.streams)
            watch = update == 0 and self.watches(step)
            state, of_update = self.jitted.update(state, run.fixed, batch, watch=watch)
            metrics |= of_update
            laps.end("update", of_update)
        lengths = batch.mask.sum(axis=1)
        metrics |= {
            "tokens": lengths.sum(),
            "length_mean": lengths.mean(),
            "truncation_rate": (rollout.stopped == 0).mean(),
        }
        return Stepped(state, jax.device_get(metrics), laps.seconds)

    def watches(self, step: int) -> bool:
        """Whether the diagnostics of this step are logged."""
        every = self.run.config.watch
        return self.run.program.diagnostics is not None and every > 0 and step % every == 0

    def write(self, step: int, state: TrainState) -> Written:
        """The completions of a step's batch: the student's, the references or some of each."""
        run, method, samples = self.run, self.run.program.method, self.run.config.rollout.samples
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
        # Not a compilation for every length, nor the longest length for every batch.
        longest = int(rollout.mask.sum(axis=1).max())
        rollout = trim(rollout, bucket(longest, run.config.rollout.max_new_tokens))
        known = {name: inputs.of(run, name, step, rollout) for name in method.inputs}
        return Written(Batch(contexts, rollout.tokens, rollout.mask, known), rollout, rows)

    def sample(self, state: TrainState, contexts: dict[str, Context], rows: jax.Array) -> Rollout:
        """What the student writes, some of it guided where the method asks for that."""
        run, share = self.run, self.run.program.method.guided_share
        key = jax.random.fold_in(self.key, TRAINING)
        how = {"decoding": run.program.decoding, "samples": run.config.rollout.samples}
        if not share:
            return self.jitted.rollout(state, run.fixed, contexts["student"], rows, key, **how)
        guided = completions.chosen(rows, jax.random.fold_in(self.key, GUIDING), share)
        return self.jitted.guided_rollout(state, run.fixed, contexts, guided, rows, key, **how)

    def grade(self, state: TrainState, batch: Batch) -> Batch:
        """The batch with what the teacher makes of it, and with what the method wants to know of it
        as a whole.
        """
        run, method = self.run, self.run.program.method
        batch = batch._replace(hidden=self.jitted.score(state, run.fixed, batch, method.views))
        if method.scoring() is None:
            return batch
        return batch._replace(inputs=batch.inputs | self.jitted.prepare(state, run.fixed, batch))

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
        batch, _, rows = self.write(step, state)
        batch = self.grade(state, batch)
        gathered = lambda tree: process_allgather(tree, tiled=True)
        mask = gathered(batch.mask)
        pictured = {name: gathered(batch.inputs[name])[mask] for name in method.shown}
        if method.near_future:
            *_, metrics, points = self.windows(state, batch, rows)
            points = gathered(points)
            compared = points.pop("compared")
            pictured |= {name: values[compared] for name, values in points.items()}
            pictured["threshold"] = np.asarray(metrics["transport_threshold"])
        return pictured

    def evaluate(
        self, state: TrainState, *, teacher_too: bool
    ) -> tuple[dict[str, Any], summary.Answers]:
        """The record of the student on the held-out problems, on demand with the teacher's own, and
        the student's answers.
        """
        run, data = self.run, self.run.config.data
        answers = self.evaluator.student(state, run.fixed)
        record = summary.summarise(data, answers)
        if teacher_too and run.teacher is not None:
            of_teacher = self.evaluator.teacher(state, run.fixed)
            record["teacher"] = summary.summarise(data, of_teacher)
        return record, answers


class Laps:
    """How long each phase took, until its arrays were there."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._clock = time.perf_counter()

    def end(self, phase: str, arrays) -> None:
        jax.block_until_ready(arrays)
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._clock
        self._clock = now
