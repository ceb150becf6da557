"""How much of a method's first gradient is signal, and where it points.

    nice python experiments/first_gradient.py experiments/leaderboard.py
    nice python experiments/first_gradient.py experiments/leaderboard.py --cells opd rlsd

Each cell of a study takes BATCHES batches of problems that no cell trains on in that order, at the
model before training, and makes a gradient g_i of each:

    signal = |E g|^2             the mean of g_i . g_j over pairs of different batches
    noise  = E |g - E g|^2       the mean of |g_i|^2, less the signal
    cosine = E g . E h / (|E g| |E h|)        h: the gradients of the study's BASELINE

Signal, noise and the products are not biased by the noise (a ratio of them, as any ratio of
estimates, is a little), so a signal may come out below 0: there is none that so many batches can
tell. Noise / signal is how many batches' mean has as much of one as of the other.
What is made is a line a cell in `ledger/STUDY_first_gradient.jsonl`, and `grid.py --page` puts it
beside the cell. Intervals are the jackknife's over batches.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ledger
import numpy as np
from grid import load
from jaxtyping import Float
from ledger import Entry
from scipy.stats import t

from jopd.config import Config, parse
from jopd.training import setup
from jopd.training.batch import batch_rows
from jopd.training.update import differentiate
from jopd.training.worker import Worker

BATCHES, SEED = 24, 100  # a seed that no cell trains with

Gradients = Float[np.ndarray, "batches parameters"]


def gradients(config: Config, batches: int = BATCHES) -> Gradients:
    """The student's gradient of each of so many batches, all at the model before training."""
    config = dataclasses.replace(config, seed=SEED, output="runs/first-gradient")
    run = setup.prepare("first-gradient", config)
    worker, state, found = Worker(run), run.state, []

    @jax.jit
    def gradient(state, fixed, batch):
        of_batch, _ = differentiate(run.program, state, fixed, batch_rows(batch), False)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(of_batch["student"])])

    with jax.set_mesh(run.mesh):
        for step in range(1, batches + 1):
            written = worker.write(step, state)
            judge = lambda step=step, written=written: worker.judged(step, written)
            batch = worker.grade(state, written.batch, judge)
            if run.program.method.near_future:
                batch, method_state, *_ = worker.windows(state, batch, written.rows)
                state = state._replace(method=method_state)
            found.append(gradient(state, run.fixed, batch))
    return np.asarray(jax.device_get(found), np.float32)


def products(first: Gradients, second: Gradients) -> Float[np.ndarray, "batches batches"]:
    return first.astype(np.float64) @ second.T.astype(np.float64)


def between(pairs: Float[np.ndarray, "batches batches"]) -> float:
    """The mean over pairs of different batches: the product of the two means, without bias."""
    count = len(pairs)
    return float((pairs.sum() - np.trace(pairs)) / (count * (count - 1)))


def signal_to_noise(own: Float[np.ndarray, "batches batches"]) -> float:
    """Of one batch, from the products of a method's gradients with each other."""
    signal = between(own)
    noise = np.trace(own) / len(own) - signal
    return signal / noise if noise > 0 else np.inf


def jackknife(
    of: Callable[..., float], *pairs: Float[np.ndarray, "batches batches"]
) -> tuple[float, float, float]:
    """A statistic of such products with its 95 % interval, from leaving out one batch at a time."""
    value, count = of(*pairs), len(pairs[0])
    keep = [np.arange(count) != left_out for left_out in range(count)]
    without = np.array([of(*(pair[np.ix_(on, on)] for pair in pairs)) for on in keep])
    spread = np.sqrt((count - 1) / count * np.sum((without - without.mean()) ** 2))
    half = float(t.ppf(0.975, count - 1) * spread)
    return value, value - half, value + half


def cosine(
    own: Float[np.ndarray, "batches batches"],
    other: Float[np.ndarray, "batches batches"],
    cross: Float[np.ndarray, "batches batches"],
) -> float:
    """Between two methods' mean gradients; not a number where one has no signal."""
    lengths = between(own) * between(other)
    return between(cross) / np.sqrt(lengths) if lengths > 0 else np.nan


def measured(own: Gradients, baseline: Gradients) -> dict[str, float]:
    """By name, each with its interval as `NAME/low` and `NAME/high`; what is no finite number is
    left out.
    """
    of_own, of_baseline = products(own, own), products(baseline, baseline)
    found = {}
    if not np.any(own):
        return {"signal_to_noise": 0.0}
    ratio = jackknife(signal_to_noise, of_own)
    angle = jackknife(cosine, of_own, of_baseline, products(own, baseline))
    for name, (value, low, high) in (("signal_to_noise", ratio), ("cosine", angle)):
        if np.isfinite([value, low, high]).all():
            found |= {name: value, f"{name}/low": low, f"{name}/high": high}
    return found


def ledger_of(study: Path) -> Path:
    """The study's second ledger."""
    return study.with_name(f"{study.stem}_first_gradient.py")


def settings_of(path: Path, study, cell: str) -> str:
    """A digest of all that makes a cell's numbers, the baseline's among them."""
    cells = [ledger.settings_of(path, study.CELLS[it]) for it in (cell, study.BASELINE)]
    return ledger.digest([*cells, BATCHES, SEED])


def on_file(path: Path, study) -> dict[str, Entry]:
    """By cell, what was made with the study's settings as they are now."""
    known = {entry.cell: entry for entry in ledger.entries(ledger_of(path)).values()}
    return {
        cell: known[cell]
        for cell in study.CELLS
        if cell in known and known[cell].settings == settings_of(path, study, cell)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--cells", nargs="+")
    settings = parser.parse_args()
    path, study = settings.study, load(settings.study)
    if not hasattr(study, "BASELINE"):
        parser.error(f"{path} names no BASELINE to compare directions with: give it one")
    cells = settings.cells or [*study.CELLS]
    if unknown := set(cells) - set(study.CELLS):
        parser.error(f"no such cells: {', '.join(sorted(unknown))}")
    known = on_file(path, study)
    if not (missing := [cell for cell in cells if cell not in known]):
        return
    of = lambda cell: gradients(parse([str(path), *study.CELLS[cell]])[1])
    baseline = of(study.BASELINE)
    for cell in missing:
        begin = time.monotonic()
        own = baseline if cell == study.BASELINE else of(cell)
        entry = Entry(
            cell=cell,
            rate="",
            seed=SEED,
            settings=settings_of(path, study, cell),
            command=f"python experiments/first_gradient.py {path} --cells '{cell}'",
            chosen=None,
            judged=None,
            measured=measured(own, baseline),
            along={},
            commit=ledger.commit(),
            machine=ledger.machine(),
            versions=ledger.versions(),
            seconds=time.monotonic() - begin,
        )
        ledger.add(ledger_of(path), entry)
        print(f"{cell}: {entry.measured}", flush=True)


if __name__ == "__main__":
    main()
