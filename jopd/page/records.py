"""What a page knows of its runs: their files, read as they are, and put in columns.

A run may still be going on, or have been written by an earlier version: what is not there is left
out. `config.yaml` is read as data, so no code that it names is run.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jopd.diagnostics import report
from jopd.diagnostics.checklist import CHECKLIST, TITLES
from jopd.diagnostics.findings import comparison, findings
from jopd.diagnostics.measures import label, measures, unit
from jopd.training import logs

# So many training steps make a curve; of more, the means of neighbours.
POINTS = 600
# So many evaluations' answers are in a page, the first and the last among them, evenly spread; and
# so many columns a heat map has.
EVALUATIONS, COLUMNS = 16, 40

Data = dict[str, Any]
Lines = Sequence[Mapping[str, Any]]


class NotARun(ValueError):
    """A folder without what a run writes."""


def read_run(folder: Path, name: str, collected: Mapping[str, Any] | None = None) -> Data:
    """One run, as plain JSON data.

    Args:
      collected: what its report.json will hold, where that is yet to be written.

    Raises:
      NotARun: there is no config.yaml, or it or a record can't be read.
    """
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config, records = yaml.safe_load(text), logs.read(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise NotARun(f"{name} holds no run (no config.yaml): name the folder of one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise NotARun(f"{name} can't be read ({' '.join(str(error).split())})") from None
    if not (isinstance(config, dict) and isinstance(config.get("method"), dict)):
        raise NotARun(f"{name}/config.yaml holds no settings of a run")
    facts = collected or _read_report(folder / "report.json")
    if facts.get("config", {}).get("steps") != config.get("steps"):
        facts = {}  # of before the run became longer
    groups = thinned(records.training)
    return {
        "name": name,
        "method": config["method"].get("name", ""),
        "preset": config.get("preset", ""),
        "steps": config.get("steps"),
        "done": records.training[-1]["step"] if records.training else 0,
        "finished": bool(facts),
        "steps_a_point": max(map(len, groups), default=1),
        "settings": flat(config),
        "findings": findings(records.evaluations),
        "result": [list(row) for row in comparison(records.evaluations)],
        "why": [list(row) for row in comparison(records.evaluations, diagnostics=True)],
        "curves": {
            "training": curves([coarse(group) for group in groups]),
            "evaluation": curves(records.evaluations),
        },
        "teacher": teacher_of(records.evaluations),
        "profiles": {
            "on held-out problems": profiles(records.evaluations),
            "in training steps": profiles(
                {"step": line["step"], **line["diagnostics"]}
                for line in records.training
                if "diagnostics" in line
            ),
        },
        "samples": shown_samples(records.samples),
        "checklist": checklist(facts),
    }


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when one of a run's files does."""
    names = ("config.yaml", "report.json", logs.METRICS, logs.EVALUATIONS, logs.SAMPLES)
    known = [(folder / name, name) for name in names if (folder / name).is_file()]
    return tuple((name, it.stat().st_size, it.stat().st_mtime_ns) for it, name in known)


def _read_report(file: Path) -> Mapping[str, Any]:
    """What a finished run has written, if it can be read and is whole."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(facts, dict) and {"config", "variables", *CHECKLIST} <= facts.keys()
    return facts if whole else {}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings under their names on the command line."""
    by_name: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            by_name |= flat(value, f"{prefix}{key}.")
        else:
            by_name[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False, default=str)
    return by_name


def thinned(lines: Lines) -> list[list[Mapping[str, Any]]]:
    """Neighbours that make one point of a curve: as many steps as a round number says, so that runs
    of other lengths have points at the same steps.
    """
    last = lines[-1]["step"] if lines else 0
    sizes = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    size = next(size for size in sizes if last <= size * POINTS)
    groups = itertools.groupby(lines, key=lambda line: (line["step"] - 1) // size)
    return [list(group) for _, group in groups]


def coarse(group: Lines) -> dict[str, Any]:
    """The means of neighbouring steps, at the last of them."""
    if len(group) == 1:
        return dict(group[0])
    by_name: dict[str, list[float]] = {}
    for line in group:
        for name, measure in measures(line).items():
            by_name.setdefault(name, []).append(measure.value)
        for name, seconds in line.get("seconds", {}).items():
            by_name.setdefault(f"seconds/{name}", []).append(seconds)
    means = {name: sum(values) / len(values) for name, values in by_name.items()}
    return {"step": group[-1]["step"], **means}


def curves(lines: Lines) -> dict[str, Data]:
    """By measure, in columns: `step`, `value`, and where an interval is known `low` and `high`."""
    by_name: dict[str, Data] = {}
    for line in lines:
        of_line = measures(line)
        if isinstance(seconds := line.get("seconds"), Mapping):
            of_line |= {f"seconds/{name}": it for name, it in measures(seconds).items()}
        for name, measure in of_line.items():
            curve = by_name.setdefault(name, titled(name, step=[], value=[], low=[], high=[]))
            curve["step"].append(line["step"])
            for column in ("value", "low", "high"):
                curve[column].append(getattr(measure, column))
    for curve in by_name.values():
        if all(value is None for value in curve["low"]):
            del curve["low"], curve["high"]
    return by_name


def titled(name: str, **columns: Any) -> Data:
    return {"title": label(name), "unit": unit(name), **columns}


def teacher_of(evaluations: Lines) -> dict[str, float]:
    """The teacher's own measures on the same problems."""
    teachers = [line["teacher"] for line in evaluations if line.get("teacher")]
    return {name: it.value for name, it in measures(teachers[-1]).items()} if teachers else {}


def profiles(lines: Iterable[Mapping[str, Any]]) -> dict[str, Data]:
    """By measure, along the completion or over its length: `bins`, `step`, and `value`, a list for
    each step.
    """
    by_name: dict[str, Data] = {}
    for line in spread(list(lines), COLUMNS):
        for name, values in line.items():
            along = name.endswith("_by_position")
            if not (along or name.endswith("_by_length")) or not values:
                continue
            if along and isinstance(values[0], list):  # quantiles: the median
                values = [value[len(value) // 2] for value in values]
            numbers = [it.get("value") if isinstance(it, Mapping) else it for it in values]
            measure = name.removesuffix("_by_position").removesuffix("_by_length")
            if name not in by_name:
                by_name[name] = titled(measure, bins=bins(name, values), step=[], value=[])
                by_name[name]["title"] += " by position" if along else " by length"
            profile = by_name[name]
            profile["step"].append(line["step"])
            profile["value"].append(numbers)
    return by_name


def bins(name: str, values: Sequence[Any]) -> list[str]:
    """What the places of a profile are called."""
    if name.endswith("_by_position"):
        count = len(values)
        return [f"{100 * i // count}-{100 * (i + 1) // count} %" for i in range(count)]
    if all(isinstance(value, Mapping) for value in values):
        return [
            f"{value['from']}-{value['to'] - 1}" if value["to"] else f"{value['from']} or more"
            for value in values
        ]
    return [f"quarter {i + 1}" for i in range(len(values))]


def shown_samples(samples: Lines) -> Data:
    """The answers, by the evaluations that are in the page, and how many evaluations there are."""
    steps = list(dict.fromkeys(line["step"] for line in samples))
    kept = spread(steps, EVALUATIONS)
    by_step = {step: [line for line in samples if line["step"] == step] for step in kept}
    return {"steps": kept, "of": len(steps), "answers": list(by_step.values())}


def spread(items: list, count: int) -> list:
    """At most so many of the items, evenly spread, the first and the last among them.

    >>> spread([0, 1, 2, 3, 4], 3), spread([0, 1], 3)
    ([0, 2, 4], [0, 1])
    """
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def checklist(facts: Mapping[str, Any]) -> list[Data]:
    """The report's groups in words; none before the run's end."""
    if not facts:
        return []
    groups = {"The method in the survey's six variables": facts["variables"]}
    groups |= {TITLES[group]: facts.get(group, {}) for group in CHECKLIST}
    return [
        {
            "title": title,
            "items": [
                [key.replace("_", " "), report.words(key, value)] for key, value in items.items()
            ],
        }
        for title, items in groups.items()
    ]
