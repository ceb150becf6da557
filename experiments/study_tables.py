"""What a study's runs came to, in tables, from the entries of its ledger.

Intervals contain seeds and problems (`intervals.py`) where it is on file how each problem came out;
elsewhere they are Student's over seeds. Differences are of the same problems and seeds.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import intervals
import numpy as np
from ledger import BEFORE, Entry
from scipy.stats import t

from jopd.diagnostics.measures import amount, bounds, measures, unit
from jopd.training import logs

ENDS = 10  # lines of metrics.jsonl that `first/` and `last/` are means of
BEGIN, END = "<!-- made of the ledger, from here -->", "<!-- to here -->"

Found = Mapping[str, Sequence[Entry]]


def ends(output: Path) -> dict[str, float]:
    """What a finished run measured at its end, and what it took."""
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    lines = logs.read(output).training
    values = {
        name: when["after"]["value"] for name, when in report["results"].items() if "after" in when
    }
    for end, chosen in (("first", lines[:ENDS]), ("last", lines[-ENDS:])):
        names = [name for name, value in (chosen or [{}])[0].items() if isinstance(value, float)]
        values |= {
            f"{end}/{name}": statistics.fmean(line[name] for line in chosen) for name in names
        }
    if lines:
        values["step_seconds"] = statistics.median(sum(line["seconds"].values()) for line in lines)
    return values | {"tokens": report["resource"]["tokens_generated"]}


def along(output: Path, study) -> dict[str, list[dict[str, float]]]:
    """The run's own evaluations of the measures that the study draws."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in getattr(study, "CURVES", ())}
    for line in logs.read(output).evaluations:
        of_line = measures(line)
        for name in found.keys() & of_line.keys():
            value, count = of_line[name].value, of_line[name].count or 0
            found[name].append({"step": line["step"], "value": value, "count": count})
    return found


def pages_tables(
    study,
    found: Found,
    choices: Mapping[str, Mapping[str, float]] | None = None,
    gradients: Mapping[str, Entry] | None = None,
    teacher: Mapping[str, Entry] | None = None,
) -> str:
    """All tables of a study, and what they were made of.

    Args:
      choices: by cell and learning rate, what the rate was chosen by.
      gradients: by cell, what `first_gradient.py` made of it.
      teacher: by view, how well the teacher does in it.
    """
    tables = [headroom(study, teacher)] if teacher else []
    tables += [table(study, found), differences(study, found)]
    tables += [rates(study, found, choices)] if choices else []
    tables += [first_gradients(study, gradients)] if gradients else []
    further = [more(found) for more in getattr(study, "TABLES", ())]
    tables += [markdown(rows) for rows in further if len(rows) > 1]
    return "\n\n".join(filter(None, [*tables, made_of(found), not_run(found)]))


def with_tables(page: str, tables: str, begin: str = BEGIN) -> str:
    """A page with its tables made anew, between the two marks.

    Raises:
      ValueError: the page has no marks.
    """
    before, mark, rest = page.partition(begin)
    _, ending, after = rest.partition(END)
    if not (mark and ending):
        raise ValueError(f"the page has no {begin} and {END}: write them where tables belong")
    return f"{before}{begin}\n\n{tables}\n\n{END}{after}"


def not_run(found: Found) -> str:
    """The cells that nobody has run yet, in a sentence."""
    names = [f"*{cell}*" for cell, entries in found.items() if not entries]
    return f"Not run yet: {'; '.join(names)}." if names else ""


def made_of(found: Found) -> str:
    """Commits, machines and the time of the runs, in a sentence."""
    entries = [entry for of_cell in found.values() for entry in of_cell]
    if not entries:
        return "Nothing of it has been run."
    several = lambda values: ", ".join(sorted(set(values)))
    seconds = sum(entry.seconds for entry in entries)
    jax = several(f"jax {entry.versions['jax']}" for entry in entries)
    return (
        f"{len(entries)} runs at commits {several(entry.commit for entry in entries)} on "
        f"{several(entry.machine for entry in entries)}, {jax}, {seconds / 60:,.0f} minutes in "
        "all, judging included."
    )


def value_of(entry: Entry, name: str) -> float | None:
    """A column's measure of one run."""
    if name.startswith("judge/"):
        return entry.judged and entry.judged["measures"].get(name.removeprefix("judge/"))
    return entry.measured.get(name)


def problems_of(entries: Sequence[Entry], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Sums and counts of each run's answer to each problem, `[runs, problems]`; None where a record
    does not say how each problem came out, or where the problems differ.
    """
    if not name.startswith("judge/"):
        return None
    records = [(entry.judged or {}).get("by_problem", {}) for entry in entries]
    key = name.removeprefix("judge/")
    if not records or any(key not in record for record in records):
        return None
    if len({record["problems"] for record in records}) > 1:
        return None
    if not isinstance(records[0][key], Mapping):
        return intervals.table([record[key] for record in records])
    of = lambda part: np.array([record[key][part] for record in records], np.float64)
    return of("sums"), of("tokens")


def shown(name: str, entries: Sequence[Entry]) -> str:
    """`58.9 [51.2, 66.6]` over seeds and problems, `58.9 ± 7.4` over seeds, or a number alone."""
    if (problems := problems_of(entries, name)) is not None:
        value, low, high, _ = intervals.mean(*problems)
        least, most = bounds(name.removeprefix("judge/"))
        return bracketed(name, value, max(low, least), min(high, most))
    values = [value for entry in entries if (value := value_of(entry, name)) is not None]
    return over_seeds(name, values) if values else ""


def _by_seed(entries: Sequence[Entry], others: Sequence[Entry]) -> dict[int, Entry]:
    """The model before training has no seed of its own: it is the same beside every one."""
    if entries and entries[0].cell == BEFORE:
        return {entry.seed: entries[0] for entry in others}
    return {entry.seed: entry for entry in entries}


def bracketed(name: str, value: float, low: float, high: float, sign: str = "") -> str:
    number = lambda x: f"{sign if x > 0 else ''}{amount(name, x)}"
    return f"{number(value)} [{number(low)}, {number(high)}]"


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


def seeds_of(entries: Sequence[Entry]) -> str:
    return ", ".join(str(entry.seed) for entry in entries)


def blank(study, name: str, cell: str) -> bool:
    return cell in getattr(study, "NOT_OF", {}).get(name, ())


def titled(study, name: str) -> str:
    title = study.COLUMNS[name]
    return f"{title} ({unit(name)})" if unit(name) else title


def table(study, found: Found) -> str:
    """A row a cell that has been run, a column a measure, over the seeds that are finished."""
    titles = [titled(study, name) for name in study.COLUMNS]
    with_rates = hasattr(study, "RATES")
    rows = [["", *titles, *["learning rate"] * with_rates, "seeds"]]
    for cell, entries in found.items():
        if not entries:
            continue
        columns = [
            "" if blank(study, name, cell) else shown(name, entries) for name in study.COLUMNS
        ]
        rate = [entries[0].rate] * with_rates
        seeds = "" if cell == BEFORE else seeds_of(entries)
        rows.append([cell, *columns, *rate, seeds])
    return markdown(rows)


def differences(study, found: Found) -> str:
    """How each cell differs from the study's baseline in what the judge measured, on the same
    problems and with the same seeds.
    """
    baseline = getattr(study, "BASELINE", BEFORE)
    rows, seen = [], set()
    for cell, entries in found.items():
        if cell == baseline:
            continue
        changes = {name: difference(name, found[baseline], entries) for name in study.COLUMNS}
        seen |= {name for name, change in changes.items() if change}
        rows.append((cell, changes, entries))
    columns = [name for name in study.COLUMNS if name in seen]
    if not columns:
        return ""
    head = [f"less {baseline}", *(titled(study, name) for name in columns)]
    body = [
        [cell, *(changes[name] for name in columns), "" if cell == BEFORE else seeds_of(entries)]
        for cell, changes, entries in rows
        if any(changes.values())
    ]
    return markdown([[*head, "seeds"], *body])


def rates(study, found: Found, choices: Mapping[str, Mapping[str, float]]) -> str:
    """What the cells that have been run had at each learning rate when it was chosen."""
    name = f"judge/{study.CHOOSE}"
    title = study.COLUMNS.get(name, study.CHOOSE)
    of = f" ({unit(name)})" if unit(name) else ""
    head = f"{title}{of}, other problems, seed {study.SEEDS[0]}, at the learning rate"
    rows = [[head, *study.RATES]]
    for cell, values in choices.items():
        entries = found.get(cell, ())
        if cell != BEFORE and values and entries:
            texts = {rate: amount(name, value) for rate, value in values.items()}
            texts[entries[0].rate] = f"**{texts[entries[0].rate]}**"
            rows.append([cell, *(texts.get(rate, "") for rate in study.RATES)])
    if (before := choices.get(BEFORE)) and len(rows) > 1:
        (value,) = before.values()
        rows.append([BEFORE, amount(name, value), *[""] * (len(study.RATES) - 1)])
    return markdown(rows) if len(rows) > 1 else ""


def headroom(study, teacher: Mapping[str, Entry]) -> str:
    """A row a view, a column each of the judge's measures that it has."""
    entries = [*teacher.values()]
    names = [
        it for it in study.COLUMNS if all(value_of(entry, it) is not None for entry in entries)
    ]
    rows = [["the teacher before training reads", *(titled(study, name) for name in names)]]
    rows += [[view, *(shown(name, [entry]) for name in names)] for view, entry in teacher.items()]
    return markdown(rows)


def first_gradients(study, gradients: Mapping[str, Entry]) -> str:
    """How much of each cell's first gradient is signal, and its angle to the baseline's."""
    rows = [
        [
            "first gradient of a batch",
            "signal / noise",
            "batches for as much of one as of the other",
            f"cosine with {study.BASELINE}'s",
        ]
    ]
    for cell, entry in gradients.items():
        ratio = entry.measured["signal_to_noise"]
        told = entry.measured.get("signal_to_noise/low", 0) > 0
        enough = f"{1 / ratio:,.0f}" if told else "not told from none" if ratio else "no gradient"
        rows.append([cell, _measured("signal_to_noise", entry), enough, _angle(study, entry, told)])
    return markdown(rows)


def _measured(name: str, entry: Entry) -> str:
    found = entry.measured
    if f"{name}/low" not in found:
        return f"{found[name]:.3f}"
    most = 1.0 if name == "cosine" else math.inf
    value, low, high = (min(found[it], most) for it in (name, f"{name}/low", f"{name}/high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _angle(study, entry: Entry, told: bool) -> str:
    """Nothing of a gradient whose signal is not told from none, nor of one with itself."""
    if not told or entry.cell == study.BASELINE or "cosine" not in entry.measured:
        return ""
    return _measured("cosine", entry)


def difference(name: str, before: Sequence[Entry], after: Sequence[Entry]) -> str:
    """`+3.2 [+0.4, +6.0]` over seeds and problems; nothing where pairs are not known."""
    change = changed(name, before, after)
    return bracketed(name, change.value, change.low, change.high, sign="+") if change else ""


def changed(
    name: str, before: Sequence[Entry], after: Sequence[Entry]
) -> intervals.Interval | None:
    """After less before in what the judge measured, by seed and problem; None where pairs are not
    known.
    """
    first, last = _by_seed(before, after), _by_seed(after, before)
    same = [seed for seed in last if seed in first]
    pairs = [problems_of([of[seed] for seed in same], name) for of in (first, last)]
    if not same or pairs[0] is None or pairs[1] is None or pairs[0][0].shape != pairs[1][0].shape:
        return None
    asked = [of[same[0]].judged["by_problem"]["problems"] for of in (first, last)]
    if asked[0] != asked[1]:
        return None
    change = intervals.difference(*pairs)
    if unit(name) == "%":  # a share can't change by more than all of it
        change = change._replace(low=max(change.low, -1.0), high=min(change.high, 1.0))
    return change
