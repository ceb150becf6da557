"""The run, from the first line on the screen to the last file in the folder. Read it from top to
bottom.

    for each step:  the student writes  ->  the teacher scores every token  ->  the loss moves it

How this differs from a textbook loop: a batch is a function of (seed, step), so the data position
is the step itself; a row's noise is a function of (seed, row), so it does not matter where it is
drawn; checkpoints fall between steps and logs are cut back to the restored one, so a run that was
killed and started again writes the same files as one that was not, apart from what clocks say.
"""

import contextlib
import functools
import time
from typing import Any

import jax

from jopd.training import alerts, logs, processes, trackers
from jopd.training.announcement import describe
from jopd.training.checkpoint import Checkpoints
from jopd.training.checks import check_evaluation, check_step, why_nothing_was_learnt
from jopd.training.console import Progress, announce, say, waiting
from jopd.training.example import show
from jopd.training.finish import finish
from jopd.training.folder import settle
from jopd.training.interrupt import deferred
from jopd.training.samples import samples
from jopd.training.setup import Run
from jopd.training.speed import Meter
from jopd.training.state import TrainState
from jopd.training.worker import Stepped, Worker


class Stopped(processes.Orderly):
    """A run was asked to stop."""


def train(run: Run) -> None:
    """Runs until the last step, from wherever an earlier attempt stopped.

    Raises:
      FloatingPointError: a loss that is not finite, or a batch without a token to learn from, with
        the step and the rows.
      Stopped: by Ctrl-C or SIGTERM, at the end of the step in hand, which is saved.
    """
    config, home = run.config, run.home
    announce(describe(run))
    processes.decided(settle, home, run.name, config, run.program.method.updates)
    checkpoints = Checkpoints(home.checkpoints, keep=config.checkpoint.keep, facts=run.facts)
    done, state = checkpoints.restore(run.state) or (0, run.state)
    of_drift = alerts.of_drift(config.student.compute.dtype)
    start = functools.partial(trackers.started, config, home, done)
    kind = logs.RunLog if processes.first() else logs.NoLog
    worker, alarm = Worker(run), alerts.Alerts([*run.program.method.alerts, of_drift])
    # Closing waits for what is being written: a run that stops with an error keeps its last
    # checkpoint.
    with (
        jax.set_mesh(run.mesh),
        contextlib.closing(checkpoints),
        kind(home.folder, restored_step=done, start=start) as log,
        processes.telling(),
    ):
        if done:
            say(f"resuming after step {done} of {config.steps}")
        else:
            evaluate(worker, 0, state, log)
        if done < config.steps:
            say("compiling the first step; later steps compile when a new shape first occurs ...")
        with Progress(config.steps, done=done) as progress, deferred() as stopping:
            steps = range(done + 1, config.steps + 1)
            first_measured = next(filter(worker.watches, steps), None)
            write_down = functools.partial(_write_down, alarm, log, progress, Meter(run))
            meanwhile = lambda: None
            for step in steps:
                if step == first_measured:
                    say(f"step {step} is the first that is measured (--watch), and compiles ...")
                stepped = worker.step(step, state, meanwhile)
                state, score = stepped.state, None
                last, every = step == config.steps, config.evaluation.every
                measure = last or (every and step % every == 0)
                stop = processes.any_of(stopping())
                save = last or stop or step % config.checkpoint.every == 0
                # What a step has measured is read while the next one writes, or before anything is
                # made of its result.
                meanwhile = functools.partial(write_down, step, stepped)
                if measure or save:
                    meanwhile()
                    meanwhile = lambda: None
                if measure:
                    score = evaluate(worker, step, state, log)
                    # Decided by one: all save, or none.
                    save = save or processes.decided(checkpoints.would_be_best, score)
                if save:
                    log.flush()
                    home.push()
                    checkpoints.save(step, state, score)
                if stop and not last:
                    raise Stopped(
                        f"stopped after step {step} of {config.steps}, which is saved: the same "
                        "command goes on from there"
                    )
        checkpoints.wait()
        finish(worker, state)


def _write_down(
    alarm: alerts.Alerts,
    log: logs.RunLog | logs.NoLog,
    progress: Progress,
    meter: Meter,
    step: int,
    stepped: Stepped,
) -> None:
    """Checks what a step has measured, logs it and shows it."""
    metrics, seconds, work = stepped.measured()
    check_step(step, metrics)
    if step == 1 and (why := why_nothing_was_learnt(metrics)):
        say(f"the gradient of step 1 is exactly 0, nothing was learnt: {why}")
    record = alarm.added(logs.loggable(metrics))
    speed = meter.read(metrics, seconds, work)
    log.training(step, record, seconds, speed)
    progress.update(step, record, seconds, speed)


def evaluate(
    worker: Worker, step: int, state: TrainState, log: logs.RunLog | logs.NoLog
) -> float | None:
    """Measures the student on the held-out problems, before training the teacher too, and writes it
    down; its score, higher being better.
    """
    run, first, begin = worker.run, step == 0, time.monotonic()
    what = f"evaluating on {len(run.held_out.examples)} held-out problems"
    with waiting(what + (" (compiles first)" if first else "")):
        record, answers = worker.evaluate(state, teacher_too=first)
    check_evaluation(step, record)
    record |= {"seconds": time.monotonic() - begin}
    count = run.config.evaluation.samples_shown
    log.evaluation(step, record, samples(answers, count, record, run.student.tokenizer))
    if first:
        show(run, answers)
    # What is counted as right may hang on a time-out.
    return processes.decided(score_of, record)


def score_of(record: dict[str, Any]) -> float | None:
    """What "best" means for checkpoints: the first rate of the task, else closeness to the teacher,
    else None, so that the latest is kept.
    """
    for name in ("accuracy", "name_rate"):
        if name in record:
            return record[name]["value"]
    return -record["kl"]["value"] if "kl" in record else None
