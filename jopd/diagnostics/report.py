"""The report beside every run: `report.md` for a person and `report.json` for a program.

Its four groups are the least that a paper on on-policy distillation should tell, after the survey
(arXiv:2606.22793), whose six variables name the method. What a run did not record is said to be
missing, not left out.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jopd.diagnostics.findings import Evaluations, Row, comparison, findings, results_of
from jopd.diagnostics.measures import duration, number, plain, unit
from jopd.diagnostics.paired import changes

PACKAGES = ("jopd", "jax", "jaxlib", "flax", "optax")
VARIABLES = ("state", "support", "credit", "routing", "gates", "regularisation")
# Group -> its items, by the key that `facts` holds them under.
CHECKLIST: dict[str, tuple[str, ...]] = {
    "run": ("preset", "method", "command", "seed", "versions", "device", "mesh", "seconds"),
    "state": (
        "prompts",
        "rollouts_per_prompt",
        "sampling",
        "truncation_rate",
        "off_policy_share",
        "policy_age",
        "student_init",
        "cold_start",
    ),
    "feedback": (
        "teacher",
        "self_or_external",
        "teacher_update",
        "views",
        "signal",
        "k",
        "temperature",
        "precision",
        "tokenizer_match",
        "masked_specials",
    ),
    "update": (
        "route",
        "divergence",
        "support",
        "credit",
        "stop_gradients",
        "gates",
        "clips",
        "routing",
        "aggregation",
        "regularisers",
        "optimizer",
    ),
    "resource": ("tokens_generated", "teacher_tokens", "device_hours", "seeds", "grade"),
}
TITLES = {
    "run": "What was run",
    "state": "State: who wrote what was graded",
    "feedback": "Feedback: what the teacher said",
    "update": "Update: how the student moved",
    "resource": "Resource and evidence",
}
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


def write(
    folder: Path,
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    variables: Mapping[str, str],
    evaluations: Evaluations,
) -> None:
    """Writes `report.json` and `report.md` into a run's folder.

    Args:
      config: the whole configuration as plain data, for the JSON.
      facts: by group of CHECKLIST, what the run knows under the group's keys, and any further keys.
        Filled in unless
        given: versions and command, and the update's support, credit, gates, routing and
          regularisers, which the
        variables say. Times are in seconds.
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
        known = {**derived.get(group, {}), **facts.get(group, {})}
        groups[group] = {
            key: plain(known.get(key, MISSING)) for key in dict.fromkeys((*keys, *known))
        }
    measured = results_of(evaluations)
    results = {
        name: {
            when: values[name]._asdict()
            for when, values in measured._asdict().items()
            if name in values
        }
        for name in measured.before | measured.after
    }
    if len(evaluations) > 1:
        for name, change in changes(evaluations[0], evaluations[-1]).items():
            results[name]["change"] = change._asdict()
    data = {
        **groups,
        "variables": dict(variables),
        "results": plain(results),
        "config": plain(config),
    }
    (folder / "report.md").write_text(
        _markdown(folder, groups, variables, evaluations), encoding="utf-8"
    )
    # Last, and whole or not at all: a folder with a report.json is that of a finished run.
    partial = folder / ".report.json.partial"
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / "report.json")


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a run's numbers."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def command() -> str:
    """The command line of this process."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def _markdown(
    folder: Path,
    groups: Mapping[str, Any],
    variables: Mapping[str, str],
    evaluations: Evaluations,
) -> str:
    run = groups["run"]
    parts = [
        f"# Run report: {run['preset']}, method {run['method']}",
        *_findings(groups, evaluations),
    ]
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
    for group in ("state", "feedback", "update", "resource"):
        parts += [f"## {TITLES[group]}", _facts(groups[group])]
    return "\n\n".join(parts) + "\n"


def _rows(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of rows without its empty columns."""
    kept = [i for i in range(len(header)) if i < 3 or any(row[i] for row in rows)]
    return _table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _findings(groups: Mapping[str, Any], evaluations: Evaluations) -> list[str]:
    """What is shown, and what the tests cover."""
    if not (shown := findings(evaluations)):
        return []
    caution = (
        f"Seed {groups['run']['seed']}: tests and intervals cover the choice of problems, paired "
        "where two evaluations are compared, not how runs with other seeds would differ."
    )
    return ["\n".join(f"- {sentence}" for sentence in shown), caution]


def _facts(facts: Mapping[str, Any]) -> str:
    return _table(
        ["", ""], [[key.replace("_", " "), _words(key, value)] for key, value in facts.items()]
    )


def _words(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            ", ".join(
                f"{name.replace('_', ' ')} {_words(key, item)}" for name, item in value.items()
            )
            or "none"
        )
    if isinstance(value, list):
        return ", ".join(_words(key, item) for item in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, (int, float)):
        if unit(key) == "%":
            return f"{100 * value:.1f} %"
        return (
            duration(value)
            if key == "seconds"
            else str(value)
            if key.startswith("seed")
            else number(value)
        )
    return str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)
