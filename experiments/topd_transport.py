"""What TOPD's transport finds, and what its targets teach, at the model before training.

    nice python experiments/topd_transport.py
    python experiments/grid.py experiments/topd.py --page

In both spaces that tokens may be compared in (`embeddings`, `hidden_states`), on batches of new
problems:

- the transport cost D_OT of windows at places of high loss (the method's own candidates), at random
  (an upper-half and a lower-half place of each row) and of low loss, and how many of the first are
  false alarms, no dearer than the 75th percentile of the last;
- how likely the teacher itself finds the targets, after the student's own window, beside its best
  token there;
- where the gradient of the targets' loss points: its cosine with that of the divergence, and with
  that of the control, the teacher's window after the student's prefix. Without the noise's bias,
  see `first_gradient.py`;
- the paper's local correction: windows of the same prefixes again after five updates on them.

A line each in `ledger/topd_transport.jsonl`. Intervals are over batches.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import first_gradient
import jax
import jax.numpy as jnp
import ledger
import numpy as np
import topd
from first_gradient import cosine, gradients, jackknife, products
from jaxtyping import Array, Float
from ledger import Entry
from scipy.stats import t

from jopd.config import Config, Optimizer
from jopd.losses.windows import Space
from jopd.training import setup
from jopd.training.batch import Batch, batch_rows
from jopd.training.state import TrainState
from jopd.training.update import hidden_by_stream
from jopd.training.windows import WithWindows
from jopd.training.worker import Worker, Written

HERE = Path(__file__).parent
LEDGER = HERE / "topd_transport.py"
BATCHES, UPDATES, LEARNING_RATE = 12, 5, 5e-4
OPD, CONTROL = "opd", "the teacher's window (control)"
STATES = {"trajectory_coefficient": 1.0, "space": "hidden_states"}
# What learns, by the names of the study's cells.
VARIANTS: dict[str, dict] = {
    OPD: {"trajectory_coefficient": 0.0},
    "embeddings": {"trajectory_coefficient": 1.0},
    "states": STATES,
    CONTROL: {"trajectory_coefficient": 1.0, "target": "teacher_window"},
}
# Looked at once, not corrected by.
OTHER_WINDOWS: dict[str, dict] = {
    "states, two windows": STATES | {"windows": 2},
    "states, 32 tokens": STATES | {"window_tokens": 32},
}
TARGETS = {name: it for name, it in VARIANTS.items() if name != OPD} | OTHER_WINDOWS
SPACES: dict[str, Space] = {"embeddings": "embeddings", "states": "hidden_states"}

Along = dict[str, list[dict[str, float]]]


class Graded(NamedTuple):
    """A step's batch before and after its windows."""

    written: Written
    batch: Batch
    windows: WithWindows


def config_of(**method) -> Config:
    config = topd.config()
    return dataclasses.replace(
        config,
        seed=first_gradient.SEED,
        method=dataclasses.replace(config.method, **method),
        optimizer=Optimizer(learning_rate=LEARNING_RATE, schedule="constant", warmup=0.0),
        output="runs/topd-transport",
    )


def worker_of(**method) -> Worker:
    return Worker(setup.prepare("topd-transport", config_of(**method)))


def batches_of(worker: Worker) -> Iterator[Graded]:
    """BATCHES of them, all at the model before training; the method remembers what it saw."""
    state = worker.run.state
    for step in range(1, BATCHES + 1):
        written = worker.write(step, state)
        batch = worker.grade(state, written.batch)
        windows = worker.windows(state, batch, written.rows)
        state = state._replace(method=windows.method_state)
        yield Graded(written, batch, windows)


def over_batches(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean of batches' values with its 95 % interval."""
    mean, count = statistics.fmean(values), len(values)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5
    return {name: mean, f"{name}/low": mean - half, f"{name}/high": mean + half}


def costs(worker: Worker) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By batch, transport costs at the chosen places and at the probes below the median."""
    chosen, probes = [], []
    for graded in batches_of(worker):
        points = jax.device_get(graded.windows.points)
        transport, there = points["transport"], points["compared"]
        chosen.append(transport[:, :-1][there[:, :-1]])
        probes.append(transport[:, -1][there[:, -1]])
    return chosen, probes


def probe(space: Space) -> dict[str, float]:
    """Costs by where the loss is high, and the share of false alarms."""
    high, low = costs(worker_of(space=space))
    upper, lower = costs(worker_of(space=space, windows=1, share=0.5))
    places = {"high": high, "random": [*upper, *lower], "low": low}
    medians = {
        f"median/{where}": float(np.median(np.concatenate(it))) for where, it in places.items()
    }
    limit = np.percentile(np.concatenate(low), 75)
    alarms = over_batches("false_alarms", [float(np.mean(it <= limit)) for it in high])
    return medians | alarms


def teachers_view(worker: Worker) -> dict[str, float]:
    """The teacher's log-probability of the targets after the student's window, and of the token
    that it likes best there, in nats.
    """
    run = worker.run

    @jax.jit
    def read(state: TrainState, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        teacher = run.program.teacher_model(state, run.fixed)
        batch = batch_rows(batch)
        stream = batch.streams["windows"]
        # As the student's windows are read, by the teacher.
        asked = batch._replace(contexts={"student": batch.contexts["teacher"]})
        hidden = hidden_by_stream(teacher, asked)["windows"][:, :-1]
        logp = jax.nn.log_softmax(teacher.logits(hidden).astype(jnp.float32))
        of_targets = jnp.take_along_axis(logp, stream.extras["target_ids"], axis=-1)
        mean = lambda x: jnp.sum(jnp.where(stream.mask, x, 0)) / stream.mask.sum()
        weighted = jnp.sum(stream.extras["target_weights"] * of_targets, axis=-1)
        return mean(weighted), mean(logp.max(axis=-1))

    found = [read(run.state, graded.windows.batch) for graded in batches_of(worker)]
    # Before the first windows of low loss nothing is learnt from.
    targets, best = zip(*(map(float, it) for it in found if np.isfinite(it[0])), strict=True)
    return over_batches("targets_logp", targets) | over_batches("best_logp", best)


def corrected(worker: Worker, space: Space) -> tuple[dict[str, float], Along]:
    """The mean cost of windows at places of high loss before and after updates on them; and by
    batch how it changed, the same batches for all.
    """
    run, measure = worker.run, worker_of(space=space)
    before, after = [], []
    for graded in batches_of(worker):
        at = lambda state, graded=graded: jax.device_get(
            measure.windows(state, graded.batch, graded.written.rows).points
        )
        first = at(run.state)
        state = jax.tree.map(jnp.copy, run.state)
        state = state._replace(method=jax.tree.map(jnp.copy, graded.windows.method_state))
        for _ in range(UPDATES):
            batch = worker.grade(state, graded.written.batch)
            batch, method_state, *_ = worker.windows(state, batch, graded.written.rows)
            state = state._replace(method=method_state)
            state, _ = worker.jitted.update(state, run.fixed, batch, watch=False)
        last = at(state)
        both = (first["compared"] & last["compared"])[:, :-1]
        before.append(float(first["transport"][:, :-1][both].mean()))
        after.append(float(last["transport"][:, :-1][both].mean()))
    change = np.subtract(after, before).tolist()
    means = over_batches("before", before) | over_batches("after", after)
    means |= over_batches("change", change)
    return means, {"change": [{"step": i, "value": it} for i, it in enumerate(change, 1)]}


@functools.cache
def gradients_of(name: str) -> np.ndarray:
    """Of the divergence ("opd"), or of one variant's targets without it."""
    if name == OPD:
        return gradients(config_of(**VARIANTS[OPD]))
    return gradients(config_of(**TARGETS[name])) - gradients_of(OPD)


def angles(name: str) -> dict[str, float]:
    """Cosines of a variant's targets' gradient with the divergence's and with the control's."""
    found, own = {}, gradients_of(name)
    for title, of in (("divergence", OPD), ("control", CONTROL)):
        other = gradients_of(of)
        pairs = products(own, own), products(other, other), products(own, other)
        value, low, high = jackknife(cosine, *pairs)
        if np.isfinite([value, low, high]).all():
            found |= {title: value, f"{title}/low": low, f"{title}/high": high}
    return found


def digest() -> str:
    """A digest of all that makes the numbers."""
    return ledger.digest(
        [ledger.settings_of(HERE / "topd.py", []), BATCHES, UPDATES, LEARNING_RATE]
        + [first_gradient.BATCHES, first_gradient.SEED]
    )


def keep(cell: str, what: str, measured: dict[str, float], along: Along, seconds: float) -> None:
    entry = Entry(
        cell=cell,
        rate=what,
        seed=first_gradient.SEED,
        settings=digest(),
        command="python experiments/topd_transport.py",
        chosen=None,
        judged=None,
        measured=measured,
        along=along,
        commit=ledger.commit(),
        machine=ledger.machine(),
        versions=ledger.versions(),
        seconds=seconds,
    )
    ledger.add(LEDGER, entry)
    print(cell, what, measured, flush=True)


def main() -> None:
    known = {run for run, it in ledger.entries(LEDGER).items() if it.settings == digest()}
    begin = time.monotonic()

    def made(cell: str, what: str, make) -> None:
        nonlocal begin
        if ledger.Run(cell, what, first_gradient.SEED) not in known:
            found = make()
            measured, along = found if isinstance(found, tuple) else (found, {})
            keep(cell, what, measured, along, time.monotonic() - begin)
            begin = time.monotonic()

    with jax.set_mesh(worker_of().run.mesh):
        for name, space in SPACES.items():
            made(name, "probe", lambda space=space: probe(space))
        for name, settings in TARGETS.items():
            made(name, "targets", lambda settings=settings: teachers_view(worker_of(**settings)))
        for name in TARGETS:
            made(name, "gradient", lambda name=name: angles(name))
        for name, settings in VARIANTS.items():
            for of_space, space in SPACES.items():
                make = lambda settings=settings, space=space: corrected(
                    worker_of(**settings), space
                )
                made(name, f"corrected, by {of_space}", make)


if __name__ == "__main__":
    main()
