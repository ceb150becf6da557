"""Runs the cells of a study, and puts what came out into tables and a picture.

    python experiments/grid.py experiments/ar_opd.py                      every cell, every seed
    python experiments/grid.py experiments/ar_opd.py --workers 2          two at a time, each on its
                                                                          share of the cores
    python experiments/grid.py experiments/ar_opd.py --cells full "λ 0.6" --seeds 0
    python experiments/grid.py experiments/ar_opd.py --show               only what is finished, as
                                                                          tables and the picture

A study is a preset file, `config()`, with more names in it:

    CELLS     a cell's name to the flags that make it
    SEEDS     each cell is run with every one of them
    JUDGE     flags of `python -m jopd.evaluate`, which measures every cell's student, and the one
              before training, in the same way
    COLUMNS   a measure to its title in the table; `judge/NAME` is the judge's, `last/NAME` and
              `first/NAME` are means over a run's last and first ten lines of metrics.jsonl,
              `step_seconds` is the median step, any other name is the run's own last evaluation
    CURVES    measures of the run's own evaluations to their titles, for the picture; may be left
              out
    prepare() makes what the cells start from, where that does not ship with the package; may be
              left out

A cell and seed is one `python -m jopd.train` with a folder of its own under runs/: what is finished
is not run again, and what was killed goes on where it stopped. Cells share their compilations
through a cache on the disk.
"""

import argparse
import importlib.util
import json
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t

from jopd.diagnostics.measures import amount, measures, unit
from jopd.diagnostics.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, YELLOW
from jopd.training import logs

ENDS = 10  # lines of metrics.jsonl that `first/` and `last/` are means of
BEFORE = "before training"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study


def folder(path: Path, cell: str, seed: int) -> Path:
    return Path("runs") / path.stem / f"{cell}-seed{seed}"


# Running.


def start(arguments: Sequence[str], log: Path, cores: set[int]) -> None:
    """One command of the package, on some cores, what it says in a file."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(Path("runs/compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    with log.open("a", encoding="utf-8") as out:
        subprocess.run(
            [sys.executable, "-m", *arguments],
            check=True,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **cache},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def judge(study, model: str, output: Path, log: Path, cores: set[int]) -> None:
    if not output.is_file():
        start(["jopd.evaluate", "--model", model, "--save", str(output), *study.JUDGE], log, cores)


def run(path: Path, study, cell: str, seed: int, cores: set[int]) -> None:
    output = folder(path, cell, seed)
    log = output.with_name(f"{output.name}.log")
    if not (output / "report.json").is_file():
        begin = time.monotonic()
        flags = [*study.CELLS[cell], "--seed", str(seed), "--output", str(output)]
        start(["jopd.train", str(path), *flags], log, cores)
        print(f"{cell}, seed {seed}: {time.monotonic() - begin:.0f} s", flush=True)
    judge(study, str(output / "student"), output / "judge.jsonl", log, cores)


def run_all(path: Path, study, cells: Sequence[str], seeds: Sequence[int], workers: int) -> None:
    """All cells of a seed before the next seed, so that an interrupted study can be compared."""
    own = sorted(os.sched_getaffinity(0))
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for worker in range(workers):
        shares.put({*own[worker::workers]} or {*own})

    def one(job: tuple[str, int]) -> None:
        cores = shares.get()
        try:
            run(path, study, *job, cores)
        finally:
            shares.put(cores)

    top = Path("runs") / path.stem
    top.mkdir(parents=True, exist_ok=True)
    judge(study, study.config().student.model, top / "before.jsonl", top / "before.log", {*own})
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(one, [(cell, seed) for seed in seeds for cell in cells]):
            pass


# Reading.


def judged(file: Path) -> dict[str, float]:
    record = json.loads(file.read_text(encoding="utf-8").splitlines()[0])["record"]
    return {f"judge/{name}": measure.value for name, measure in measures(record).items()}


def found(path: Path, cell: str, seed: int) -> dict[str, float]:
    """What a finished run measured at its end, and what it took."""
    output = folder(path, cell, seed)
    report, lines = (
        json.loads((output / "report.json").read_text(encoding="utf-8")),
        logs.read(output).training,
    )
    values = {
        name: when["after"]["value"] for name, when in report["results"].items() if "after" in when
    }
    for end, chosen in (("first", lines[:ENDS]), ("last", lines[-ENDS:])):
        names = (
            [name for name, value in chosen[0].items() if isinstance(value, float)]
            if chosen
            else []
        )
        values |= {
            f"{end}/{name}": statistics.fmean(line[name] for line in chosen) for name in names
        }
    if lines:
        values["step_seconds"] = statistics.median(sum(line["seconds"].values()) for line in lines)
    return (
        values | judged(output / "judge.jsonl") | {"tokens": report["resource"]["tokens_generated"]}
    )


def finished(path: Path, study, cell: str) -> list[int]:
    return [seed for seed in study.SEEDS if (folder(path, cell, seed) / "judge.jsonl").is_file()]


def over_seeds(name: str, values: Sequence[float]) -> str:
    """The mean and, for two and more seeds, the half-width of its 95 % interval by Student's t."""
    text = amount(name, statistics.fmean(values))
    if len(values) < 2:
        return text
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{text} ± {amount(name, half)}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def table(path: Path, study, cells: Sequence[str]) -> str:
    """A row a cell, a column a measure, over the seeds that are finished."""
    titles = [
        f"{title} ({unit(name)})" if unit(name) else title for name, title in study.COLUMNS.items()
    ]
    rows = [["", *titles, "seeds"]]
    if (before := Path("runs") / path.stem / "before.jsonl").is_file():
        values = judged(before)
        rows.append(
            [
                BEFORE,
                *(
                    over_seeds(name, [values[name]]) if name in values else ""
                    for name in study.COLUMNS
                ),
                "",
            ]
        )
    for cell in cells:
        seeds = finished(path, study, cell)
        runs = [found(path, cell, seed) for seed in seeds]
        columns = [
            over_seeds(name, [one[name] for one in runs]) if runs and name in runs[0] else ""
            for name in study.COLUMNS
        ]
        rows.append([cell, *columns, ", ".join(map(str, seeds)) or "not run"])
    return markdown(rows)


def curves(path: Path, study, cells: Sequence[str], picture: Path) -> None:
    """The mean over seeds along the run, and from the lowest seed to the highest in a lighter
    shade.
    """
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK, GREY)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6 * len(study.CURVES), 5.2), layout="constrained")
        sides = figure.subplots(1, len(study.CURVES), squeeze=False)[0]
        for (name, title), axes in zip(study.CURVES.items(), sides, strict=True):
            for index, cell in enumerate(cells):
                evaluations = [
                    logs.read(folder(path, cell, seed)).evaluations
                    for seed in finished(path, study, cell)
                ]
                lines = [{line["step"]: measures(line) for line in run} for run in evaluations]
                if not lines or name not in lines[0][0]:
                    continue
                steps = sorted(lines[0])
                values = np.array([[line[step][name].value for step in steps] for line in lines])
                style = {
                    "color": colours[index % len(colours)],
                    "linestyle": ("-", "--", ":")[index // len(colours)],
                }
                axes.plot(steps, values.mean(axis=0), label=cell, **style)
                axes.fill_between(
                    steps,
                    values.min(axis=0),
                    values.max(axis=0),
                    alpha=0.12,
                    color=style["color"],
                    lw=0,
                )
            axes.set(title=title, xlabel="training step")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels)))
        )
        picture.parent.mkdir(exist_ok=True)
        figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--cells", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--show", action="store_true", help="run nothing")
    settings = parser.parse_args()
    path, study = settings.study, load(settings.study)
    cells = settings.cells or [*study.CELLS]
    if unknown := set(cells) - set(study.CELLS):
        parser.error(
            f"no such cells: {', '.join(sorted(unknown))}; there are {', '.join(study.CELLS)}"
        )
    if settings.workers < 1:
        parser.error(f"--workers {settings.workers} must be at least 1")
    if not settings.show:
        if hasattr(study, "prepare"):
            study.prepare()
        run_all(path, study, cells, settings.seeds or study.SEEDS, settings.workers)
    print(table(path, study, cells))
    for more in getattr(study, "TABLES", ()):
        print(
            "\n"
            + markdown(
                more(
                    {
                        cell: [folder(path, cell, seed) for seed in finished(path, study, cell)]
                        for cell in cells
                    }
                )
            )
        )
    if hasattr(study, "CURVES"):
        curves(path, study, cells, path.parent / "figures" / f"{path.stem}.png")


if __name__ == "__main__":
    main()
