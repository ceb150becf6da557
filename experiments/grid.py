"""Runs the cells of a study, and puts what came out into tables and a picture.

    python experiments/grid.py experiments/ar_opd.py                     every cell, every seed
    python experiments/grid.py experiments/ar_opd.py --workers 2         two at a time, each on its
                                                                         share of the cores
    python experiments/grid.py experiments/ar_opd.py --cells full "λ 0.6" --seeds 0
    python experiments/grid.py experiments/ar_opd.py --show              only what is finished, as
                                                                         tables and
                                                                         figures/ar_opd.png
    python experiments/grid.py experiments/leaderboard.py --page         only the picture, of the
                                                                         table in leaderboard.md

A study is a preset file, `config()`, with more names in it:

    CELLS     a cell's name to the flags that make it
    SEEDS     each cell is run with every one of them
    JUDGE     flags of `python -m jopd.evaluate`, which measures every cell's student, and the one
              before training, in the same way
    COLUMNS   a measure to its title in the table; `judge/NAME` is the judge's, `last/NAME` and
              `first/NAME` are means over a run's last and first ten lines of metrics.jsonl,
              `step_seconds` is the median step, any other name is the run's own last evaluation
    BASELINE  the cell that a second table compares the others with, problem by problem; the model
              before training where it is left out
    CURVES    measures of the run's own evaluations to their titles, for a picture of them along
              the run; may be left out
    DOTS      or titles of the table's columns, for a picture of the cells sorted by the first
    TABLES    functions of the runs' folders by cell, a further table each; may be left out
    prepare() makes what the cells start from, where that does not ship with the package; may be
    left out

A cell and seed is one `python -m jopd.train` with a folder of its own under runs/: what is finished
is not run again, and what was killed goes on where it stopped. Cells share their compilations
through a cache on the disk.
"""

import argparse
import importlib.util
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from study_pictures import curves, dots
from study_tables import differences, finished, folder, markdown, table


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--cells", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--page", action="store_true", help="draw the page's table, and no more")
    settings = parser.parse_args()
    path, study = settings.study, load(settings.study)
    cells = settings.cells or [*study.CELLS]
    if unknown := set(cells) - set(study.CELLS):
        parser.error(
            f"no such cells: {', '.join(sorted(unknown))}; there are {', '.join(study.CELLS)}"
        )
    if settings.workers < 1:
        parser.error(f"--workers {settings.workers} must be at least 1")
    picture = path.parent / "figures" / f"{path.stem}.png"
    if settings.page:
        if not hasattr(study, "DOTS"):
            parser.error(f"--page: {path} names no DOTS, the columns that are to be drawn")
        dots(path, study, path.with_suffix(".md").read_text(encoding="utf-8"), picture)
        return
    if not settings.show:
        if hasattr(study, "prepare"):
            study.prepare()
        run_all(path, study, cells, settings.seeds or study.SEEDS, settings.workers)
    cells_and_means = table(path, study, cells)
    print(cells_and_means, differences(path, study, cells), sep="\n\n")
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
        curves(path, study, cells, picture)
    if hasattr(study, "DOTS"):
        dots(path, study, cells_and_means, picture)


if __name__ == "__main__":
    main()
