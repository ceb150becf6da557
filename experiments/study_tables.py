"""What a study's runs came to, in tables, from the files that `grid.py` had written.

Differences of cells whose students answered the same problems are taken problem by problem.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t

from jopd.diagnostics.measures import amount, measures, unit
from jopd.diagnostics.paired import change_of_runs
from jopd.training import logs

ENDS = 10  # lines of metrics.jsonl that `first/` and `last/` are means of
BEFORE = "before training"


def folder(path: Path, cell: str, seed: int) -> Path:
    return Path("runs") / path.stem / f"{cell}-seed{seed}"


def record_of(file: Path) -> dict[str, Any]:
    """The judge's."""
    return json.loads(file.read_text(encoding="utf-8").splitlines()[0])["record"]


def judged(file: Path) -> dict[str, float]:
    values = measures(record_of(file))
    return {f"judge/{name}": measure.value for name, measure in values.items()}


def found(path: Path, cell: str, seed: int) -> dict[str, float]:
    """What a finished run measured at its end, and what it took."""
    output = folder(path, cell, seed)
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    lines = logs.read(output).training
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


def judges(path: Path, study, cell: str) -> dict[int, dict[str, Any]]:
    """By seed, the judge's record of a cell's runs, or of the model before training for each."""
    if cell == BEFORE:
        file = Path("runs") / path.stem / "before.jsonl"
        return {seed: record_of(file) for seed in study.SEEDS} if file.is_file() else {}
    return {
        seed: record_of(folder(path, cell, seed) / "judge.jsonl")
        for seed in finished(path, study, cell)
    }


def differences(path: Path, study, cells: Sequence[str]) -> str:
    """How each cell differs from the study's baseline in what the judge measured, on the same
    problems and with the same seeds.

    Brackets: 95 % intervals over problems, whose runs are taken together; ±: over seeds.
    """
    baseline = getattr(study, "BASELINE", BEFORE)
    of_cells = {cell: judges(path, study, cell) for cell in (baseline, *cells)}
    on_file = {
        name
        for records in of_cells.values()
        for record in records.values()
        for name in record.get("by_problem", {})
    }
    columns = {
        name: f"{title} ({unit(name)})"
        for name, title in zip(map(bare, study.COLUMNS), study.COLUMNS.values(), strict=True)
        if name in on_file
    }
    if not columns:
        return "How each problem came out is not on file, so cells are not compared."
    rows, first = [[f"less {baseline}", *columns.values(), "seeds"]], of_cells.pop(baseline)
    for cell, second in of_cells.items():
        if seeds := [seed for seed in second if seed in first]:
            pairs = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
            words = [difference(name, *pairs) for name in columns]
            rows.append([cell, *words, ", ".join(map(str, seeds))])
    return markdown(rows)


def bare(name: str) -> str:
    """A column's measure as the judge calls it."""
    return name.removeprefix("judge/") if name.startswith("judge/") else ""


def difference(name: str, before: Sequence[dict], after: Sequence[dict]) -> str:
    """`+3.2 [+0.4, +6.0] ± 4.1`, or that it is not known how each problem came out."""
    if (change := change_of_runs(before, after, name)) is None:
        return "pairs not known"
    signed = lambda value: f"{'+' if value > 0 else ''}{amount(name, value)}"
    interval = f"[{signed(change.low)}, {signed(change.high)}]"
    of_seeds = [
        measures(last)[name].value - measures(first)[name].value
        for first, last in zip(before, after, strict=True)
    ]
    _, plus_minus, half = over_seeds(name, of_seeds).partition(" ± ")
    return f"{signed(change.value)} {interval}{plus_minus}{half}"
