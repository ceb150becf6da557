"""What a run's evaluations show and what they don't, in a table and in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jopd.diagnostics.measures import (
    Measure,
    amount,
    explains,
    is_outcome,
    label,
    measures,
    show,
    unit,
)
from jopd.diagnostics.paired import Change, changes

Evaluations = Sequence[Mapping[str, Any]]


class Row(NamedTuple):
    """A measure before and after training, ready to be printed."""

    measure: str
    before: str
    after: str
    teacher: str
    problems: str


class Results(NamedTuple):
    """The measures before, after (none after a single evaluation) and of the teacher, from the last
    record with any.
    """

    before: dict[str, Measure]
    after: dict[str, Measure]
    teacher: dict[str, Measure]

    def gap_closed(self, name: str) -> float | None:
        """For an accuracy, the share of the way from before to the teacher's."""
        if not name.endswith("accuracy") or not all(name in at for at in self):
            return None
        gap = self.teacher[name].value - self.before[name].value
        return (self.after[name].value - self.before[name].value) / gap if gap > 0 else None


def results_of(evaluations: Evaluations) -> Results:
    before = measures(evaluations[0]) if evaluations else {}
    after = measures(evaluations[-1]) if len(evaluations) > 1 else {}
    teachers = [line["teacher"] for line in evaluations if line.get("teacher")]
    return Results(before, after, measures(teachers[-1]) if teachers else {})


def comparison(evaluations: Evaluations, *, diagnostics: bool = False) -> list[Row]:
    """The first and the last evaluation, a row a measure, and for an accuracy that rose the share
    of the way to the teacher's.

    With `diagnostics` the rows of the groups `measures.DIAGNOSTICS`, otherwise all others.
    """
    results, rows = results_of(evaluations), []
    for name in results.before | results.after:
        if explains(name) != diagnostics:
            continue
        was, now, aim = (show(name, at[name]) if name in at else "" for at in results)
        count = (results.after.get(name) or results.before[name]).count
        title = f"{label(name)} ({unit(name)})" if unit(name) else label(name)
        rows.append(Row(title, was, now, aim, f"{count:,}" if count else ""))
        closed = results.gap_closed(name)
        if closed is not None and 0 <= closed <= 1:
            rows.append(Row("  way to the teacher (%)", "", f"{100 * closed:.0f}", "", ""))
    return rows


def findings(evaluations: Evaluations) -> list[str]:
    """What changed from the first to the last evaluation, a sentence a measure: of outcomes, and of
    the KL to the teacher.
    """
    if len(evaluations) < 2:
        return []
    results, changed = results_of(evaluations), changes(evaluations[0], evaluations[-1])
    judged = [
        name
        for name in results.before
        if name in results.after
        and results.before[name].interval
        and (is_outcome(name) or name.split("/")[-1] == "kl")
        and not explains(name)
    ]
    return [sentence(name, results, changed.get(name)) for name in judged]


def sentence(name: str, results: Results, change: Change | None) -> str:
    was, now = results.before[name], results.after[name]
    old, new = amount(name, was.value), amount(name, now.value)
    verb = "rose" if now.value > was.value else "fell"
    to = f"{new} {unit(name)}"
    moved = f"is {to} before and after" if new == old else f"{verb} from {old} to {to}"
    on = f" on {now.count:,} held-out problems" if now.count else ""
    title = label(name)
    what = f"{title[0].upper()}{title[1:]} {moved}{on}{way(name, results)}"
    if change is None:
        return f"{what}. How each problem came out is not on file, so the two are not compared."
    verdict = "" if change.is_shown else ", so this run alone does not show a change"
    return f"{what}: {change}{verdict}."


def way(name: str, results: Results) -> str:
    """How an accuracy moved with respect to the teacher's, in words."""
    if (closed := results.gap_closed(name)) is None:
        return ""
    aim = f"the teacher's {amount(name, results.teacher[name].value)} %"
    if closed < 0:
        return f", away from {aim}"
    return f", beyond {aim}" if closed > 1 else f", {100 * closed:.0f} % of the way to {aim}"
