"""The report beside every run: `report.md` for a person and `report.json` for a program.

It follows the survey's checklist (`jopd.diagnostics.checklist`). What a run did not record is said
to be missing, not left out.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jopd.diagnostics.checklist import CHECKLIST, TITLES, VARIABLES
from jopd.diagnostics.findings import Evaluations, Row, comparison, findings, results_of
from jopd.diagnostics.measures import duration, number, plain, unit

PACKAGES = ("jopd", "jax", "jaxlib", "flax", "optax")
MISSING = "not recorded"
# What stands in a run's plots/, in the order of the report.
PLOTS = {
    "learning_curve": "learning curve",
    "kl_by_position": "KL to the teacher by position",
    "overlap_by_position": "top-k overlap by position",
    "accuracy_by_length": "accuracy by length",
    "evidence": "evidence of the sampled tokens",
    "transport_against_loss": "transport cost against loss",
}


def collected(
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    variables: Mapping[str, str],
    evaluations: Evaluations,
) -> dict[str, Any]:
    """What `report.json` holds.

    Args:
      config: the whole configuration as plain data, for the JSON.
      facts: by group of CHECKLIST, what the run knows under the group's keys, and any further keys.
        Filled in unless given: versions and command, and the update's support, credit, gates,
        routing and regularisers, which the variables say. Times are in seconds.
      variables: the method's six survey variables, all of VARIABLES.
      evaluations: the lines of evaluations.jsonl.

    Raises:
      ValueError: a group or variable that does not exist, or a variable that is missing.
    """
    if unknown := set(facts) - set(CHECKLIST):
        raise ValueError(
            f"facts has groups {sorted(unknown)}; the report's groups are {', '.join(CHECKLIST)}"
        )
    if set(variables) != set(VARIABLES):
        raise ValueError(
            f"variables={sorted(variables)} must be the survey's six: {', '.join(VARIABLES)}"
        )
    derived = {
        "run": {"versions": versions(), "command": command()},
        "update": {
            **{name: variables[name] for name in ("support", "credit", "gates", "routing")},
            "regularisers": variables["regularisation"],
        },
    }
    groups = {}
    for group, keys in CHECKLIST.items():
        recorded = {**derived.get(group, {}), **facts.get(group, {})}
        groups[group] = {
            key: plain(recorded.get(key, MISSING)) for key in dict.fromkeys((*keys, *recorded))
        }
    return {
        **groups,
        "variables": dict(variables),
        "results": plain(_results(evaluations)),
        "config": plain(config),
    }


def write(folder: Path, data: Mapping[str, Any], evaluations: Evaluations) -> None:
    """Writes what was `collected` into a run's folder, as `report.json` and `report.md`."""
    (folder / "report.md").write_text(_markdown(folder, data, evaluations), encoding="utf-8")
    # Last, and whole or not at all: a folder with a report.json is that of a finished run.
    partial = folder / ".report.json.partial"
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / "report.json")


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a run's numbers."""
    installed = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def command() -> str:
    """The command line of this process."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def _results(evaluations: Evaluations) -> dict[str, dict[str, Any]]:
    """By measure, what it was before, after and of the teacher, and how it changed."""
    results = results_of(evaluations)
    columns: dict[str, Mapping[str, Any]] = {
        "before": results.before,
        "after": results.after,
        "teacher": results.teacher,
        "change": results.changed,
    }
    return {
        name: {when: column[name]._asdict() for when, column in columns.items() if name in column}
        for name in results.before | results.after
    }


def _markdown(
    folder: Path,
    data: Mapping[str, Any],
    evaluations: Evaluations,
) -> str:
    run, variables = data["run"], data["variables"]
    parts = [f"# Run report: {run['preset']}, method {run['method']}"]
    if sentences := findings(evaluations):
        compared = bool(results_of(evaluations).changed)
        parts.append("\n".join(f"- {sentence}" for sentence in sentences))
        parts.append(_coverage(run["seed"], data["config"], compared=compared))
    header = ("held-out problems", "before", "after", "teacher", "problems")
    parts.append(_rows(header, comparison(evaluations)))
    parts.append(
        "Brackets: 95 % intervals of each number by itself. `evaluations.jsonl` holds every "
        "evaluation, `samples.jsonl` some answers."
    )
    for name, alternative in PLOTS.items():
        if (folder / "plots" / f"{name}.png").exists():
            parts.append(f"![{alternative}](plots/{name}.png)")
    if why := comparison(evaluations, diagnostics=True):
        parts += ["## Diagnostics", _rows(("on the student's answers", *header[1:]), why)]
    what = {key: value for key, value in run.items() if key != "command"}
    parts += [
        f"## {TITLES['run']}",
        f"```\n{run['command']}\n```",
        _facts(what),
        "Every setting is in `config.yaml`.",
    ]
    parts += [
        "## The method in the survey's six variables",
        _facts({name: variables[name] for name in VARIABLES}),
    ]
    for group in ("state", "feedback", "update", "resource", "speed"):
        parts += [f"## {TITLES[group]}", _facts(data[group])]
    return "\n\n".join(parts) + "\n"


def _rows(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of rows without its empty columns."""
    filled = [i for i in range(len(header)) if i < 3 or any(row[i] for row in rows)]
    return _table([header[i] for i in filled], [[row[i] for i in filled] for row in rows])


def _coverage(seed: Any, config: Mapping[str, Any], *, compared: bool) -> str:
    """What tests and intervals cover, and what they leave out."""
    temperature = config.get("evaluation", {}).get("sampling", {}).get("temperature", 0)
    covered = "which problems were asked"
    if temperature > 0:
        covered += f" and how the one answer to each fell, drawn at temperature {temperature:g}"
    paired = "" if not compared else ", and compare the same problems before and after one by one"
    return (
        f"Tests (at 5 %) and intervals (95 %) cover {covered}{paired}. They leave out how runs "
        f"with other seeds than {seed} would differ, and that some of many tests come out by "
        "chance."
    )


def _facts(facts: Mapping[str, Any]) -> str:
    return _table(
        ["", ""], [[key.replace("_", " "), words(key, value)] for key, value in facts.items()]
    )


def words(key: str, value: Any) -> str:
    """A fact as a person reads it; its key tells the unit."""
    if isinstance(value, Mapping):
        return (
            ", ".join(
                f"{name.replace('_', ' ')} {words(key, item)}" for name, item in value.items()
            )
            or "none"
        )
    if isinstance(value, list):
        return ", ".join(words(key, item) for item in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, (int, float)):
        if unit(key) == "%":
            return f"{100 * value:.1f} %"
        if key.endswith("bytes"):
            return f"{value / 2**30:,.2f} GiB"
        return (
            duration(value)
            if key.endswith("seconds")
            else str(value)
            if key.startswith("seed")
            else number(value)
        )
    return str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)
