"""How far apart the near futures of student and teacher are, by how high the loss is: before
training, after OPD and after TOPD.

    python experiments/grid.py experiments/topd.py --workers 2
    python experiments/topd_transport.py

On BATCHES batches of new problems both models write on from places of the student's completions
where the loss is high (the method's own candidates), where it is low (below the row's median), and
at random (an upper-half and a lower-half place of each row, drawn evenly). What TOPD calls a false
alarm is a place of high loss whose transport costs no more than the 75th percentile of low-loss
places.

It prints the table of experiments/topd.md and draws experiments/figures/topd_transport.png.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import matplotlib
import numpy as np
import topd
from grid import load
from matplotlib.figure import Figure
from study_tables import folder, markdown

from jopd.config import Config, Student
from jopd.diagnostics.style import BLUE, COLORS, GREEN, GREY, STYLE, new_figure, save
from jopd.training import setup
from jopd.training.worker import Worker

BATCHES, SEED = 12, 100  # a seed that no cell trains with
HERE = Path(__file__).parent


def costs(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Transport costs of the windows at chosen places and at the probes below the median, of all
    batches.
    """
    run = setup.prepare("topd-transport", config)
    worker = Worker(run)
    chosen, probes = [], []
    with jax.set_mesh(run.mesh):
        for step in range(1, BATCHES + 1):
            written = worker.write(step, run.state)
            *_, points = jax.device_get(
                worker.windows(run.state, worker.grade(run.state, written.batch), written.rows)
            )
            transport, there = points["transport"], points["compared"]
            chosen.append(transport[:, :-1][there[:, :-1]])
            probes.append(transport[:, -1][there[:, -1]])
    return np.concatenate(chosen), np.concatenate(probes)


def of(model: str) -> dict[str, np.ndarray]:
    config = topd.config()
    config = dataclasses.replace(
        config, seed=SEED, student=Student(model=model), output="runs/topd-transport"
    )
    high, low = costs(config)
    half = dataclasses.replace(
        config, method=dataclasses.replace(config.method, windows=1, share=0.5)
    )
    return {"high": high, "random": np.concatenate(costs(half)), "low": low}


def main() -> None:
    study = load(HERE / "topd.py")
    students = {"before training": [study.config().student.model]}
    students |= {
        f"after {cell}": [
            str(folder(HERE / "topd.py", cell, seed) / "student") for seed in study.SEEDS
        ]
        for cell in ("opd", "topd")
    }
    rows = [["", "median, high loss", "random", "low loss", "mean, high loss", "false alarms (%)"]]
    found = {}
    for when, models in students.items():
        parts = [of(model) for model in models]
        found[when] = {where: np.concatenate([part[where] for part in parts]) for where in parts[0]}
        here = found[when]
        alarms = np.mean(here["high"] <= np.percentile(here["low"], 75))
        medians = [f"{np.median(here[where]):.3f}" for where in ("high", "random", "low")]
        rows.append([when, *medians, f"{here['high'].mean():.3f}", f"{100 * alarms:.0f}"])
    print(markdown(rows))

    draw(found, study.SEEDS, HERE / "figures" / "topd_transport.png")


def draw(
    found: Mapping[str, Mapping[str, np.ndarray]], seeds: Sequence[int], picture: Path
) -> Figure:
    """By when, the share of places up to each cost: of high loss, at random, of low loss."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.2 * len(found), 5.2)
        for axes, (when, here) in zip(
            figure.subplots(1, len(found), sharey=True), found.items(), strict=True
        ):
            for (where, values), color in zip(here.items(), (BLUE, GREY, GREEN), strict=True):
                label = f"{where} loss" if where != "random" else where
                share = np.arange(1, len(values) + 1) / len(values)
                axes.plot(np.sort(values), share, color=color, label=label)
            threshold = np.percentile(here["low"], 75)
            words = "threshold: 75th percentile of low loss"
            axes.axvline(threshold, color=COLORS["line"], lw=1.2, ls="--", label=words)
            axes.set(title=when, xlabel="transport cost of the near futures")
        figure.axes[0].set(ylabel="share of places up to that cost")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        students = f"students of seeds {', '.join(map(str, seeds))} together"
        return save(figure, picture, "topd_transport", students, f"{BATCHES} batches, sampled")


if __name__ == "__main__":
    main()
