"""Runs the cells of a study, and puts what came out into its ledger, tables and a picture.

    python experiments/grid.py experiments/ar_opd.py                     what is not yet in the
                                                                         ledger: every cell, seed
    python experiments/grid.py experiments/ar_opd.py --workers 2         two at a time, each on its
                                                                         share of the cores
    python experiments/grid.py experiments/ar_opd.py --cells full "λ 0.6" --seeds 0
    python experiments/grid.py experiments/ar_opd.py --page              only the tables of
                                                                         ar_opd.md and its picture,
                                                                         made of the ledger

A study is a preset file, `config()`, with more names in it:

    CELLS     a cell's name to the flags that make it
    SEEDS     each cell is run with every one of them
    JUDGE     flags of `python -m jopd.evaluate`, which measures every cell's student, and the one
              before training, in the same way
    ALSO      a name to flags of a further judge, whose measures are `judge/NAME/MEASURE`; may be
              left out
    COLUMNS   a measure to its title in the table; `judge/NAME` is the judge's, `last/NAME` and
              `first/NAME` are means over a run's last and first ten lines of metrics.jsonl,
              `step_seconds` is the median step, any other name is the run's own last evaluation
    NOT_OF    a column or curve to the cells of which it would mean something else, and is left
              blank; may be left out
    BASELINE  the cell that a second table compares the others with, problem by problem; the model
              before training where it is left out
    RATES     learning rates; each cell is run at every one of them with the first seed, and with
              the other seeds at the one that CHOOSE, a measure, is highest at (of equals the
              lowest) on the problems of CHOICE, flags of the judge, which are not the test's. So
              one of the seeds that are judged was looked at, on other problems. All may be left out
    HEADROOM  a view's title to more flags of `python -m jopd.evaluate`, which says how well the
              teacher does in it, before anything is trained; may be left out
    CURVES    measures of the run's own evaluations to their titles, for a picture of them along
              the run; may be left out
    DOTS      or titles of the table's columns, for a picture of the cells sorted by the first
    TABLES    functions of the ledger's entries by cell, a further table each; may be left out
    prepare() makes what the cells start from, where that does not ship with the package; may be
    left out

A run is one `python -m jopd.train` with a folder of its own under runs/. Once it is judged, its
line is in `ledger/STUDY.jsonl` (see `ledger.py`) and it is not run again; what was killed goes on
where it stopped. Runs share their compilations through a cache on the disk.
"""

import argparse
import importlib.util
import json
import os
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ledger
from ledger import BEFORE, Entry, Run
from study_pictures import curves, dots
from study_tables import along, ends, pages_tables, with_tables


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study


def flags_of(study, run: Run) -> list[str]:
    """Of `python -m jopd.train STUDY`, but for seed and folder."""
    rate = ["--optimizer.learning-rate", run.rate] if run.rate else []
    return [*study.CELLS[run.cell], *rate]


def settings_of(path: Path, study, run: Run) -> str:
    """A digest of what makes a run's numbers; before training that is the model alone."""
    if run.cell == BEFORE:
        return ledger.digest(study.config().student.model)
    return ledger.settings_of(path, flags_of(study, run))


def folder_of(path: Path, run: Run, settings: str) -> Path:
    """Whoever changes a study's settings does not find what others have made."""
    rate = f"-{run.rate}" if run.rate else ""
    return Path("runs") / path.stem / f"{run.cell}{rate}-seed{run.seed}-{settings}"


def start(arguments: Sequence[str], log: Path, cores: set[int]) -> None:
    """One command of the package, on some cores, what it says in a file."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(Path("runs/compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        ended = subprocess.run(
            [sys.executable, "-m", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **cache},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    if ended.returncode:
        raise SystemExit(
            f"{shlex.join(arguments)} failed: {log} says why; the same command goes on"
        )


def judged(study, by: str, model: str, output: Path, log: Path, cores: set[int]) -> dict[str, Any]:
    """What the judge, "JUDGE" or "CHOICE", says of a model, and with the first of them ALSO."""

    def asked(flags: Sequence[str], file: Path) -> dict[str, Any]:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            start(["jopd.evaluate", "--model", model, "--save", str(file), *flags], log, cores)
        with file.open(encoding="utf-8") as lines:
            return json.loads(next(lines))["record"]

    flags = getattr(study, by)
    record = asked(flags, output / f"{by.lower()}-{ledger.digest(flags)}.jsonl")
    if by == "CHOICE":
        return ledger.kept(record, [], flags)  # a choice needs no intervals
    columns = [name.removeprefix("judge/") for name in study.COLUMNS]
    found = ledger.kept(record, columns, flags)
    for name, flags in getattr(study, "ALSO", {}).items():
        more = asked(flags, output / f"{name}-{ledger.digest(flags)}.jsonl")
        of_name = [it.removeprefix(f"{name}/") for it in columns if it.startswith(f"{name}/")]
        found = ledger.joined(found, name, ledger.kept(more, of_name, flags))
    return found


def current(path: Path, study, runs: Iterable[Run]) -> dict[Run, Entry]:
    """Of these runs those on file that were made with the study's settings as they are now, and of
    their judgements those that were asked as the study asks now.
    """
    also = [ledger.digest(flags) for flags in getattr(study, "ALSO", {}).values()]
    asks = {
        "chosen": ledger.digest(getattr(study, "CHOICE", [])),
        "judged": " ".join([ledger.digest(study.JUDGE), *also]),
    }

    def as_asked(entry: Entry) -> Entry:
        of = {name: getattr(entry, name) for name in asks}
        kept = {name: it if it and it["asked"] == asks[name] else None for name, it in of.items()}
        return entry._replace(**kept)

    known = ledger.entries(path)
    return {
        run: as_asked(known[run])
        for run in runs
        if run in known and known[run].settings == settings_of(path, study, run)
    }


def carry_out(path: Path, study, run: Run, judges: Sequence[str], cores: set[int]) -> None:
    """Makes a run, has it judged and puts it into the ledger."""
    settings = settings_of(path, study, run)
    output = folder_of(path, run, settings)
    log, begin = output.with_name(f"{output.name}.log"), time.monotonic()
    if run.cell == BEFORE:
        model, command = study.config().student.model, []
    else:
        model, flags = str(output / "student"), flags_of(study, run)
        command = ["jopd.train", str(path), *flags, "--seed", str(run.seed)]
        command += ["--output", str(output)]
        if not (output / "report.json").is_file():
            start(command, log, cores)
    records = {by: judged(study, by, model, output, log, cores) for by in judges}
    seconds = time.monotonic() - begin
    keep = current(path, study, [run]).get(run)
    entry = Entry(
        *run,
        settings=settings,
        command=ledger.command(command) if command else "",
        chosen=records.get("CHOICE") or (keep and keep.chosen),
        judged=records.get("JUDGE") or (keep and keep.judged),
        measured=ends(output) if command else {},
        along=along(output, study) if command else {},
        commit=ledger.commit(),
        machine=ledger.machine(),
        versions=ledger.versions(),
        seconds=seconds + (keep.seconds if keep else 0),
    )
    ledger.add(path, entry)
    print(f"{run.cell} {run.rate} seed {run.seed}: {seconds:.0f} s", flush=True)


def headroom(path: Path, study) -> dict[str, tuple[Run, list[str]]]:
    """By view, the run that asks the teacher in it, and its flags."""
    config = study.config()
    teacher = config.student.model if config.teacher.model == "self" else config.teacher.model
    return {
        title: (Run(title, ledger.HEADROOM, study.SEEDS[0]), ["--model", teacher, *flags])
        for title, flags in getattr(study, "HEADROOM", {}).items()
    }


def known_headroom(path: Path, study) -> dict[str, Entry]:
    known = ledger.entries(path)
    return {
        title: known[run]
        for title, (run, flags) in headroom(path, study).items()
        if run in known and known[run].settings == ledger.digest(flags)
    }


def ask_teacher(path: Path, study, title: str, cores: set[int]) -> None:
    """How well the teacher does in one view, into the ledger."""
    run, flags = headroom(path, study)[title]
    folder = folder_of(path, run, ledger.digest(flags))
    file, begin = folder.with_name(f"{folder.name}.jsonl"), time.monotonic()
    command = ["jopd.evaluate", *flags, "--save", str(file)]
    start(command, file.with_suffix(".log"), cores)
    with file.open(encoding="utf-8") as lines:
        record = json.loads(next(lines))["record"]
    entry = Entry(
        *run,
        settings=ledger.digest(flags),
        command=ledger.command(command),
        chosen=None,
        judged=ledger.kept(record, [it.removeprefix("judge/") for it in study.COLUMNS], flags),
        measured={},
        along={},
        commit=ledger.commit(),
        machine=ledger.machine(),
        versions=ledger.versions(),
        seconds=time.monotonic() - begin,
    )
    ledger.add(path, entry)
    print(f"headroom, {title}: {entry.seconds:.0f} s", flush=True)


def gradients_on_file(path: Path, study) -> dict[str, Entry]:
    import first_gradient  # which imports this file

    return first_gradient.on_file(path, study) if hasattr(study, "BASELINE") else {}


def in_parallel(jobs: Sequence[Any], do: Callable[[Any, set[int]], None], workers: int) -> None:
    """Each job with a share of the cores. What fails is told at once, and raised when the others
    are done.
    """
    own = sorted(os.sched_getaffinity(0))
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for worker in range(workers):
        shares.put({*own[worker::workers]} or {*own})

    failed: list[BaseException] = []

    def one(job: Any) -> None:
        cores = shares.get()
        try:
            do(job, cores)
        except (Exception, SystemExit) as error:
            print(error, file=sys.stderr, flush=True)
            failed.append(error)
        finally:
            shares.put(cores)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))
    if failed:
        raise failed[0]


def run_all(path: Path, study, cells: Sequence[str], seeds: Sequence[int], workers: int) -> None:
    """First how well the teacher does; then what learning rates are chosen by; then all cells of a
    seed before the next seed, so that an interrupted study can be compared.
    """
    unasked = [title for title in headroom(path, study) if title not in known_headroom(path, study)]
    ask = lambda title, cores: ask_teacher(path, study, title, cores)
    in_parallel(unasked, ask, workers)
    rates = getattr(study, "RATES", ())

    def carry_out_missing(runs: Sequence[Run], judges: Sequence[str]) -> None:
        known = current(path, study, runs)
        asked = {"CHOICE": lambda entry: entry.chosen, "JUDGE": lambda entry: entry.judged}
        missing = [
            run
            for run in runs
            if run not in known or not all(asked[by](known[run]) for by in judges)
        ]
        do = lambda run, cores: carry_out(path, study, run, judges, cores)
        in_parallel(missing, do, workers)

    before = Run(BEFORE, "", study.SEEDS[0])
    carry_out_missing([before], ["JUDGE", *(["CHOICE"] if rates else [])])
    if rates:
        first = [Run(cell, rate, study.SEEDS[0]) for cell in cells for rate in rates]
        carry_out_missing(first, ["CHOICE"])
    chosen = chosen_rates(path, study, cells)
    carry_out_missing(
        [Run(cell, chosen[cell], seed) for seed in seeds for cell in cells], ["JUDGE"]
    )


def chosen_rates(path: Path, study, cells: Sequence[str]) -> dict[str, str]:
    """Each cell's learning rate: of those of RATES that were run the one with the highest CHOOSE;
    cells of which none was run are left out.
    """
    rates = getattr(study, "RATES", ())
    if not rates:
        return dict.fromkeys(cells, "")
    found = choices(path, study, cells)
    return {
        cell: max(rates, key=lambda rate: values.get(rate, float("-inf")))
        for cell, values in found.items()
        if values and cell != BEFORE
    }


def choices(path: Path, study, cells: Sequence[str]) -> dict[str, dict[str, float]]:
    """What rates are chosen by: CHOOSE of each cell's student at every one that was run, and, its
    rate being empty, of the model before training.
    """
    if not hasattr(study, "RATES"):
        return {}
    rates = {BEFORE: ("",), **dict.fromkeys(cells, study.RATES)}
    of = {cell: [Run(cell, it, study.SEEDS[0]) for it in rates[cell]] for cell in rates}
    known = current(path, study, [run for runs in of.values() for run in runs])
    asked = {run: entry.chosen for run, entry in known.items() if entry.chosen}
    return {
        cell: {run.rate: asked[run]["measures"][study.CHOOSE] for run in runs if run in asked}
        for cell, runs in of.items()
    }


def on_file(path: Path, study, cells: Sequence[str]) -> dict[str, list[Entry]]:
    """By cell, and of the model before training, the judged runs at the cell's learning rate, by
    seed.
    """
    chosen = chosen_rates(path, study, cells)
    runs = [Run(BEFORE, "", study.SEEDS[0])]
    runs += [Run(cell, rate, seed) for cell, rate in chosen.items() for seed in study.SEEDS]
    known = current(path, study, runs)
    judged = [known[run] for run in runs if run in known and known[run].judged]
    return {cell: [it for it in judged if it.cell == cell] for cell in (BEFORE, *cells)}


def tables_of(path: Path, study) -> str:
    """All tables of what the study's ledger holds."""
    cells = [*study.CELLS]
    return pages_tables(
        study,
        on_file(path, study, cells),
        choices(path, study, cells),
        gradients_on_file(path, study),
        known_headroom(path, study),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--cells", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--page", action="store_true", help="tables and picture, and no run")
    settings = parser.parse_args()
    path, study = settings.study, load(settings.study)
    cells = settings.cells or [*study.CELLS]
    if unknown := set(cells) - set(study.CELLS):
        parser.error(
            f"no such cells: {', '.join(sorted(unknown))}; there are {', '.join(study.CELLS)}"
        )
    if settings.workers < 1:
        parser.error(f"--workers {settings.workers} must be at least 1")
    if not settings.page:
        if hasattr(study, "prepare"):
            study.prepare()
        run_all(path, study, cells, settings.seeds or study.SEEDS, settings.workers)
    found, tables = on_file(path, study, [*study.CELLS]), tables_of(path, study)
    print(tables)
    if not settings.page:
        return
    if not any(found.values()):
        parser.error(f"--page: nothing of {path} is in {ledger.file_of(path)} yet: run it first")
    page = path.with_suffix(".md")
    try:
        text = with_tables(page.read_text(encoding="utf-8"), tables)
    except ValueError as error:
        parser.error(f"--page: {page}: {error}")
    page.write_text(text, encoding="utf-8")
    picture = path.parent / "figures" / f"{path.stem}.png"
    if hasattr(study, "CURVES"):
        curves(path, study, found, picture)
    if hasattr(study, "DOTS"):
        dots(path, study, found, picture)


if __name__ == "__main__":
    main()
