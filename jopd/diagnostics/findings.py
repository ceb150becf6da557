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
    record with any; and problem by problem how they changed, and what the teacher is ahead by at
    the start.
    """

    before: dict[str, Measure]
    after: dict[str, Measure]
    teacher: dict[str, Measure]
    changed: dict[str, Change]
    ahead: dict[str, Change]

    def way(self, name: str) -> float | None:
        """For an accuracy, the change as a share of the way from before to the teacher's; None
        unless both the change and the teacher's lead are shown, as a share of noise says nothing.
        """
        changed, ahead = self.changed.get(name), self.ahead.get(name)
        if not name.endswith("accuracy") or changed is None or ahead is None:
            return None
        gap = self.teacher[name].value - self.before[name].value
        if not (changed.is_shown and ahead.is_shown and gap > 0):
            return None
        return (self.after[name].value - self.before[name].value) / gap


def results_of(evaluations: Evaluations) -> Results:
    if not evaluations:
        return Results({}, {}, {}, {}, {})
    first, last = evaluations[0], evaluations[-1] if len(evaluations) > 1 else {}
    teacher = next((line["teacher"] for line in reversed(evaluations) if line.get("teacher")), {})
    return Results(
        before=measures(first),
        after=measures(last),
        teacher=measures(teacher),
        changed=changes(first, last),
        ahead=changes(first, teacher),
    )


def comparison(evaluations: Evaluations, *, diagnostics: bool = False) -> list[Row]:
    """The first and the last evaluation, a row a measure, and for an accuracy that is shown to have
    risen the share of the way to the teacher's.

    With `diagnostics` the rows of the groups `measures.DIAGNOSTICS`, otherwise all others.
    """
    results, rows = results_of(evaluations), []
    for name in results.before | results.after:
        if explains(name) != diagnostics:
            continue
        columns = (results.before, results.after, results.teacher)
        was, now, aim = (show(name, column[name]) if name in column else "" for column in columns)
        count = (results.after.get(name) or results.before[name]).count
        title = f"{label(name)} ({unit(name)})" if unit(name) else label(name)
        rows.append(Row(title, was, now, aim, f"{count:,}" if count else ""))
        if (closed := results.way(name)) is not None and 0 <= closed <= 1:
            rows.append(Row("  way to the teacher (%)", "", f"{100 * closed:.0f}", "", ""))
    return rows


def findings(evaluations: Evaluations) -> list[str]:
    """What changed from the first to the last evaluation, a sentence a measure: of outcomes, and of
    the KL to the teacher.
    """
    if len(evaluations) < 2:
        return []
    results = results_of(evaluations)
    judged = [
        name
        for name in results.before
        if name in results.after
        and results.before[name].interval
        and (is_outcome(name) or name.split("/")[-1] == "kl")
        and not explains(name)
    ]
    return [sentence(name, results) for name in judged]


def sentence(name: str, results: Results) -> str:
    was, now, change = results.before[name], results.after[name], results.changed.get(name)
    on = f" on {now.count:,} held-out problems" if now.count else ""
    title = label(name)
    what = f"{title[0].upper()}{title[1:]} {moved(name, was, now)}{on}{of_teacher(name, results)}"
    if change is None:
        return f"{what}. How each problem came out is not on file, so the two are not compared."
    verdict = "" if change.is_shown else ", so this run alone does not show a change"
    return f"{what}: {change}{verdict}."


def moved(name: str, was: Measure, now: Measure) -> str:
    """From where to where, as far as the digits tell."""
    old, new, of = amount(name, was.value), amount(name, now.value), unit(name)
    if was.value == now.value:
        return f"is {new} {of} before and after"
    verb = "rose" if now.value > was.value else "fell"
    if new == old:
        return f"{verb} from {old} {of} by less than its last digit"
    return f"{verb} from {old} to {new} {of}"


def of_teacher(name: str, results: Results) -> str:
    """Where an accuracy is with respect to the teacher's, in words."""
    if not name.endswith("accuracy") or name not in results.teacher:
        return ""
    aim = f"the teacher's {amount(name, results.teacher[name].value)} %"
    if (closed := results.way(name)) is None:
        return f" ({aim.removeprefix('the ')})"
    if closed < 0:
        return f", away from {aim}"
    return f", beyond {aim}" if closed > 1 else f", {100 * closed:.0f} % of the way to {aim}"
