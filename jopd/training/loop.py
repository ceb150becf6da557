"""The run, from the first line on the screen to the last file in the folder. Read it from top to
bottom.

    for each step:  the student writes  ->  the teacher scores every token  ->  the loss moves the
      student

How this differs from a textbook loop: a batch is a function of (seed, step), so the data position
is the step itself; a row's noise is a function of (seed, row), so it does not matter where it is
drawn; checkpoints fall between steps and logs are cut back to the restored one, so a run that was
killed and started again writes the same files as one that was not.
"""

import contextlib
import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jopd import config as configs
from jopd.data import answers
from jopd.diagnostics import plots, report
from jopd.diagnostics.measures import measures
from jopd.losses.credit import group_advantage
from jopd.models.load import save
from jopd.rollout.buckets import bucket, trim
from jopd.rollout.sampler import Rollout
from jopd.training import evaluation, facts, logs, mesh
from jopd.training.batch import Batch, Context
from jopd.training.checkpoint import Checkpoints
from jopd.training.console import Progress, announce, results_table, say, show_example, waiting
from jopd.training.interrupt import deferred
from jopd.training.setup import Run, describe, views_of
from jopd.training.state import EVALUATION, GUIDING, MIXING, TRAINING, WINDOWS, TrainState
from jopd.training.step import jitted


class Stopped(Exception):
    """A run was asked to stop."""


def train(run: Run) -> None:
    """Runs until the last step, from wherever an earlier attempt stopped.

    Raises:
      FloatingPointError: a loss that is not finite, or a batch without a token to learn from, with
        the step and the rows.
      Stopped: by Ctrl-C or SIGTERM, at the end of the step in hand, which is saved.
    """
    config, folder = run.config, run.folder
    announce(describe(run))
    folder.mkdir(parents=True, exist_ok=True)
    configs.save_yaml(folder / "config.yaml", run.name, config)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep, facts=run.facts)
    done, state = checkpoints.restore(run.state) or (0, run.state)
    if done:
        say(f"resuming after step {done} of {config.steps}")

    worker = Worker(run)
    # Closing waits for what is being written: a run that stops with an error keeps its last
    # checkpoint.
    with (
        jax.set_mesh(run.mesh),
        contextlib.closing(checkpoints),
        logs.RunLog(folder, restored_step=done) as log,
    ):
        if done == 0:
            worker.evaluate(0, state, log)
        if done < config.steps:
            say(
                "compiling the first step; the shapes that later steps need are compiled when they first occur ..."
            )
        with Progress(config.steps, done=done) as progress, deferred() as stopping:
            for step in range(done + 1, config.steps + 1):
                state, metrics, seconds = worker.step(step, state)
                check(step, metrics, folder)
                if step == 1 and not any(metrics[name] for name in norms(metrics)):
                    say(
                        f"the gradient of step 1 is exactly 0, nothing was learnt: {why_nothing(metrics)}"
                    )
                diagnostics = {
                    name: metrics.pop(name) for name in ["diagnostics"] if name in metrics
                }
                scalars = {name: float(value) for name, value in metrics.items() if value.ndim == 0}
                log.training(step, scalars | diagnostics, seconds)
                progress.update(step, scalars, seconds)

                every, record = config.evaluation.every, None
                if step == config.steps or (every and step % every == 0):
                    record = worker.evaluate(step, state, log)
                stop = stopping()
                if step == config.steps or step % config.checkpoint.every == 0 or stop:
                    log.flush()
                    checkpoints.save(step, state, None if record is None else score(record))
                if stop and step < config.steps:
                    raise Stopped(
                        f"stopped after step {step} of {config.steps}, which is saved: the same command goes on from there"
                    )
        checkpoints.wait()
        finish(worker, state)


class Worker:
    """One run's jitted functions, fed from the host."""

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

    def step(
        self, step: int, state: TrainState
    ) -> tuple[TrainState, dict[str, np.ndarray], dict[str, float]]:
        """One rollout batch: the state after it, its metrics on the host, and the seconds of each
        phase.
        """
        run, method = self.run, self.run.program.method
        clock, seconds = time.perf_counter(), {}

        def lap(phase: str, value) -> None:
            nonlocal clock
            jax.block_until_ready(value)
            now = time.perf_counter()
            seconds[phase] = seconds.get(phase, 0.0) + now - clock
            clock = now

        batch, rollout, rows = self.write(step, state)
        lap("rollout", batch)
        more = {}
        for update in range(method.updates):
            if update == 0 or method.teacher_update != "frozen":
                batch = self.grade(state, batch)
                lap("score", (batch.hidden, batch.inputs))
            if update == 0 and method.near_future:
                batch, remembered, more, _ = self.windows(state, batch, rows)
                state = state._replace(method=remembered)
                lap("windows", batch.streams)
            every = run.config.watch if run.program.diagnostics is not None and update == 0 else 0
            watch = every > 0 and step % every == 0
            state, metrics = self.jitted.update(state, run.fixed, batch, watch=watch)
            more |= {"diagnostics": metrics.pop("diagnostics")} if "diagnostics" in metrics else {}
            lap("update", metrics)
        lengths = batch.mask.sum(axis=1)
        metrics |= more | {
            "tokens": lengths.sum(),
            "length_mean": lengths.mean(),
            "truncation_rate": (rollout.stopped == 0).mean(),
        }
        return state, jax.device_get(metrics), seconds

    def grade(self, state: TrainState, batch: Batch) -> Batch:
        """The batch with what the teacher makes of it, and with what the method wants to know of it
        as a whole.
        """
        run, method = self.run, self.run.program.method
        batch = batch._replace(hidden=self.jitted.score(state, run.fixed, batch, method.views))
        if method.scoring() is None:
            return batch
        return batch._replace(inputs=batch.inputs | self.jitted.prepare(state, run.fixed, batch))

    def windows(self, state: TrainState, batch: Batch, rows: jax.Array):
        """`Program.windows` with the rollout's sampling."""
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
        mask = process_allgather(batch.mask, tiled=True)
        found = {
            name: process_allgather(batch.inputs[name], tiled=True)[mask] for name in method.shown
        }
        if method.near_future:
            *_, metrics, points = self.windows(state, batch, rows)
            points = process_allgather(points, tiled=True)
            compared = points.pop("compared")
            found |= {name: values[compared] for name, values in points.items()}
            found["threshold"] = np.asarray(metrics["transport_threshold"])
        return found

    def write(self, step: int, state: TrainState) -> tuple[Batch, Rollout, jax.Array]:
        """The completions of a step's batch, the student's, the references or some of each; what is
        known of them; and their ids.
        """
        run, method, samples = self.run, self.run.program.method, self.run.config.rollout.samples
        host = run.train[step - 1]
        contexts = {
            view: Context(**mesh.place_batch(run.mesh, context))
            for view, context in host["contexts"].items()
        }
        rows = mesh.place_batch(
            run.mesh,
            (host["rows"][:, None] * samples + np.arange(samples, dtype=np.int32)).reshape(-1),
        )

        def sampled() -> Rollout:
            key, how = (
                jax.random.fold_in(self.key, TRAINING),
                {"decoding": run.program.decoding, "samples": samples},
            )
            if not method.guided_share:
                return self.jitted.rollout(state, run.fixed, contexts["student"], rows, key, **how)
            guided = chosen(rows, jax.random.fold_in(self.key, GUIDING), method.guided_share)
            return self.jitted.guided_rollout(state, run.fixed, contexts, guided, rows, key, **how)

        if "reference" not in host:
            rollout = sampled()
        else:
            given = host["reference"]
            repeated = {
                name: np.repeat(value, samples, axis=0)
                for name, value in (("tokens", given["tokens"]), ("mask", given["mask"]))
            }
            rollout = references(**mesh.place_batch(run.mesh, repeated))
            if method.completions == "mixed":
                own = chosen(rows, jax.random.fold_in(self.key, MIXING), method.on_policy_share)
                rollout = mix(sampled(), rollout, own)
        # Not a compilation for every length, nor the longest length for every batch.
        rollout = trim(
            rollout, bucket(int(rollout.mask.sum(axis=1).max()), run.config.rollout.max_new_tokens)
        )
        inputs = {name: self.input(name, step, rollout) for name in method.inputs}
        return Batch(contexts, rollout.tokens, rollout.mask, inputs), rollout, rows

    def input(self, name: str, step: int, rollout: Rollout) -> jax.Array:
        """One of `jopd.losses.INPUTS` for a step's completions, split as they are."""
        run, samples = self.run, self.run.config.rollout.samples
        rows = rollout.tokens.shape[0]
        if name == "behaviour_logp":
            return rollout.logp
        if name == "truncated":
            return (rollout.stopped == 0).astype(jnp.float32)[:, None]
        if name == "step":
            done = np.full((rows, 1), (step - 1) * run.program.method.updates, np.float32)
            return mesh.place_batch(run.mesh, done)
        examples = [example for example in run.train.examples_at(step - 1) for _ in range(samples)]
        tokens, mask = process_allgather((rollout.tokens, rollout.mask), tiled=True)
        decode = lambda row, kept: str(
            run.student.tokenizer.decode(row[kept], skip_special_tokens=True)
        )
        text = [decode(row, kept) for row, kept in zip(tokens, mask, strict=True)]
        # An example without an answer earns nothing, whatever is said.
        known = [index for index, example in enumerate(examples) if example.answer is not None]
        reward = np.zeros((rows,), np.float32)
        reward[known] = answers.scores(
            [examples[index] for index in known], [text[index] for index in known]
        )
        found = (
            reward[:, None]
            if name == "reward"
            else np.asarray(group_advantage(jnp.asarray(reward), samples))
        )
        return mesh.place_batch(run.mesh, found)

    def evaluate(self, step: int, state: TrainState, log: logs.RunLog) -> dict[str, Any]:
        """Measures the student on the held-out problems, before training the teacher too, and
        writes it down.
        """
        run, data, first = self.run, self.run.config.data, step == 0
        with waiting(
            f"evaluating on {len(run.held_out.examples)} held-out problems"
            + (" (compiles first)" if first else "")
        ):
            found = self.evaluator.student(state, run.fixed)
            record = evaluation.summarise(data, found)
            if first and run.teacher is not None:
                record["teacher"] = evaluation.summarise(
                    data, self.evaluator.teacher(state, run.fixed)
                )
        check_evaluation(step, record, run.folder)
        log.evaluation(step, record, evaluation.samples(found, run.config.evaluation.samples_shown))
        if first:
            length = int(found.mask[0].sum())
            show_example(
                views_of(run, found.examples[0]),
                found.tokens[0][:length],
                found.mask[0][:length],
                run.student.tokenizer,
                values=found.terms["kl"][0][:length] if "kl" in found.terms else None,
            )
        return record


def references(tokens: jax.Array, mask: jax.Array) -> Rollout:
    """Reference completions in the form of a rollout: nobody sampled them, and all of them end."""
    return Rollout(
        tokens, mask, jnp.zeros(tokens.shape, jnp.float32), jnp.ones(tokens.shape[:1], jnp.int32)
    )


def chosen(rows: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Which rows belong to a share of them, drawn for each on its own: it depends on the row's id
    alone.
    """
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(rows) < share


def mix(rollout: Rollout, reference: Rollout, own: jax.Array) -> Rollout:
    """The student's completion where the row is its own, the reference elsewhere."""
    return jax.tree.map(
        lambda a, b: jnp.where(own.reshape(-1, *[1] * (a.ndim - 1)), a, b), rollout, reference
    )


def check(step: int, metrics: dict[str, np.ndarray], folder: Path) -> None:
    """Stops a run that has nothing to learn from, or whose numbers have gone."""
    if metrics["tokens"] == 0:
        raise FloatingPointError(
            f"step {step}: no token of the batch is inside the mask. {kept(folder)}; see what the student answers in samples.jsonl"
        )
    rows = np.flatnonzero(~metrics["finite_rows"])
    if rows.size or not np.isfinite([metrics[name] for name in ("loss", *norms(metrics))]).all():
        where = (
            f"rows {rows[:10].tolist()}{' and more' if rows.size > 10 else ''}"
            if rows.size
            else "no single row (the gradient)"
        )
        raise FloatingPointError(
            f"step {step}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}; not finite in {where}. {kept(folder)}; "
            "try a lower --optimizer.learning-rate, or float32 where bfloat16 is set, with another --output"
        )


def check_evaluation(step: int, record: dict[str, Any], folder: Path) -> None:
    """Stops a run whose last update has made it say nothing."""
    if lost := [
        name
        for name, measure in measures(record).items()
        if name.endswith("kl") and math.isnan(measure.value)
    ]:
        raise FloatingPointError(
            f"step {step}: the evaluation's {lost[0]} is not a number. {kept(folder)}; try a lower --optimizer.learning-rate, "
            "with another --output"
        )


def kept(folder: Path) -> str:
    """Where a run that stops has left its checkpoints."""
    saved = [path for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return (
        f"What was saved before is in {folder / 'checkpoints'}"
        if saved
        else "Nothing was saved yet"
    )


def norms(metrics: dict[str, np.ndarray]) -> list[str]:
    return [name for name in metrics if name.endswith("gradient_norm")]


def why_nothing(metrics: dict[str, np.ndarray]) -> str:
    """What a gradient of 0 comes from, as far as a batch's metrics tell."""
    shut = [name for name in ("kept_share", "kept") if name in metrics and metrics[name] == 0]
    if shut:
        return f"{shut[0]} is 0, so that no token passes the gates; make them wider"
    return "student and teacher agree on every token, or every group of samples has one reward"


def score(record: dict[str, Any]) -> float:
    """What "best" means for checkpoints: the first rate of the task, else closeness to the teacher,
    else the latest.
    """
    for name in ("accuracy", "name_rate"):
        if name in record:
            return record[name]["value"]
    return -record["kl"]["value"] if "kl" in record else 0.0


def finished(folder: Path) -> bool:
    """Whether the run of this folder has come to its end: its report is what is written last."""
    return (folder / "report.json").is_file()


def show_result(folder: Path) -> None:
    say(f"{folder} is finished; its result:")
    results_table(report.comparison(logs.read(folder).evaluations))


def finish(worker: "Worker", state: TrainState) -> None:
    """The student as a Hugging Face folder, the plots, the report, which comes last."""
    run = worker.run
    config, folder, records = run.config, run.folder, logs.read(run.folder)
    for leftover in folder.glob(".student-*"):  # of a kill while the student was written
        shutil.rmtree(leftover)
    params = run.program.student_params(state, run.fixed)
    save(
        folder / "student",
        run.student.graph,
        params,
        run.student.architecture,
        run.student.tokenizer,
        stop_tokens=run.student.stop_tokens,
    )
    plots.learning_curve(
        records.training, records.evaluations, folder / "plots" / "learning_curve.png"
    )
    plots.kl_by_position(records.evaluations, folder / "plots" / "kl_by_position.png")
    plots.overlap_by_position(records.evaluations, folder / "plots" / "overlap_by_position.png")
    ends = {
        "before": records.evaluations[0],
        f"after {config.steps:,} steps": records.evaluations[-1],
    }
    if all("accuracy_by_length" in line for line in ends.values()):
        buckets = {when: line["accuracy_by_length"] for when, line in ends.items()}
        plots.accuracy_by_length(buckets, folder / "plots" / "accuracy_by_length.png")
    seen = worker.look(config.steps, state)
    if "evidence" in seen:
        plots.evidence_histogram(
            seen["evidence"], seen["kept"] > 0, folder / "plots" / "evidence.png"
        )
    if "transport" in seen:
        path = folder / "plots" / "transport_against_loss.png"
        plots.transport_against_loss(
            seen["divergence"], seen["transport"], path, threshold=float(seen["threshold"])
        )
    report.write(
        folder,
        config=configs.to_dict(run.config),
        facts=facts.of(run, records),
        variables=run.program.method.variables()._asdict(),
        evaluations=records.evaluations,
    )
    results_table(report.comparison(records.evaluations))
    say(
        f"everything is in {folder}; try  python -m jopd.generate --model {folder / 'student'} --prompt '...'"
    )
