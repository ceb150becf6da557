"""What an evaluation measured, and how a person reads it: names, units, intervals, durations.

An evaluation record is a dict of numbers; of measures with an interval, `{"value", "low", "high",
"count"}`; of groups of these (`{"identity": {...}, "ordinary": {...}}`); and of profiles, lists
along the completion or over its length. The unit follows from the words of the name's last part:
`accuracy` and `*_rate` are shares of problems, `*_share`, `*_agreement`, `*_overlap`, `*_mass*` and
`stop_gap` are shares of tokens or probabilities, `*_utilisation` one of a peak, `*kl*`,
`*_entropy`, `entropy_gap` and `log_ratio*` are nats a token, `length*` counts tokens. Under
"teacher" a record may hold the teacher's own measures on the same problems; under "by_problem" it
holds how each problem came out, in their order, which `jopd.diagnostics.paired` compares; under
"seconds" how long it took.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

NOT_MEASURES = ("step", "seconds", "teacher", "by_problem")
# Names that need more than their own words.
LABELS = {
    "kl": "KL to the teacher",
    "forward_kl": "KL from the teacher",
    "entropy_gap": "gap between the entropies",
    "top1_agreement": "same best token",
    "top_k_overlap": "top-k overlap",
    "overlap_mass": "teacher's mass on the overlap",
    "non_overlap_mass": "teacher's mass on its top-k beside the overlap",
    "teacher_mass_on_student_top_k": "teacher's mass on the student's top-k",
    "student_mass_on_teacher_top_k": "student's mass on the teacher's top-k",
    "out_of_support_mass": "teacher's mass out of the student's support",
    "reachable_teacher_mass": "teacher's mass within the student's reach",
    "sampled_outside_share": "sampled outside the teacher's top-k",
    "stop_gap": "gap between the stop probabilities",
    "repetition_rate": "repeated 4-grams",
    "shortcut_rate": "shortcuts",
    "shortcut_refers_rate": "refers to a solution",
    "shortcut_asserts_rate": "asserts without deriving",
    "shortcut_cues_rate": "knows beforehand",
}
# Groups of an evaluation record that say why rather than what: in report.md's second table, not on
# the screen nor in the curve.
DIAGNOSTICS = ("support", "late", "shortcuts")


class Measure(NamedTuple):
    """A number, and where known its interval and the number of problems behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


def measures(record: Mapping[str, Any]) -> dict[str, Measure]:
    """The numbers of an evaluation record, those of nested groups under names joined by "/"; no
    profiles, no texts.
    """
    by_name = {}
    for name, value in record.items():
        if name in NOT_MEASURES or isinstance(value, (bool, str)):
            continue
        if isinstance(value, (int, float)):
            by_name[name] = Measure(value)
        elif isinstance(value, Mapping) and "value" in value:
            by_name[name] = Measure(
                value["value"], value.get("low"), value.get("high"), value.get("count")
            )
        elif isinstance(value, Mapping):
            by_name |= {f"{name}/{inner}": measure for inner, measure in measures(value).items()}
    return {name: measure for name, measure in by_name.items() if measure.value is not None}


def label(name: str) -> str:
    *groups, last = name.split("/")
    return ": ".join([*groups, LABELS.get(last, last)]).replace("_", " ")


def unit(name: str) -> str:
    """`%`, `nats`, `tokens`, or nothing."""
    words = name.split("/")[-1].split("_")
    if words == ["learning", "rate"]:
        return ""
    if (
        "mass" in words
        or words[-1] == "clipped"
        or words[-1] in ("accuracy", "rate", "share", "utilisation", "agreement", "overlap")
        or words == ["stop", "gap"]
    ):
        return "%"
    if (
        "kl" in words
        or words[-1] == "entropy"
        or words[:2] == ["log", "ratio"]
        or words == ["entropy", "gap"]
    ):
        return "nats"
    return "tokens" if words[0] == "length" else ""


def bounds(name: str) -> tuple[float, float]:
    """What the measure can't leave: a share 0 and 1, a KL, an entropy or a length 0."""
    if unit(name) == "%":
        return 0.0, 1.0
    of_any_sign = name.split("/")[-1].startswith("log_ratio") or not unit(name)
    return (-math.inf if of_any_sign else 0.0), math.inf


def is_outcome(name: str) -> bool:
    """Whether it is a share of the problems (and not of the tokens): what a run is judged by."""
    return name.split("/")[-1].split("_")[-1] in ("accuracy", "rate")


def explains(name: str) -> bool:
    """Whether it belongs to a group of DIAGNOSTICS."""
    return name.split("/")[0] in DIAGNOSTICS


def amount(name: str, value: int | float) -> str:
    """The number in the measure's unit, without saying it: 0.412 of an accuracy is `41.2`."""
    return {"%": f"{100 * value:z.1f}", "nats": f"{value:z.3f}"}.get(unit(name)) or number(value)


def show(name: str, measure: Measure) -> str:
    """The amount and, in brackets, its interval: `41.2 [35.3, 47.4]`."""
    text = amount(name, measure.value)
    return text + (
        f" [{', '.join(amount(name, bound) for bound in measure.interval)}]"
        if measure.interval
        else ""
    )


def number(value: int | float) -> str:
    """Three significant digits, or all digits of the integer part: 0.0123, 4.56, 78.9, 12,345."""
    if not math.isfinite(value) or (isinstance(value, float) and 0 < abs(value) < 999.5):
        return f"{value:.3g}"
    return f"{value:,.0f}"


def duration(seconds: int | float) -> str:
    """`85 ms`, `3.2 s`, `42 s`, `4 min 12 s`, `3 h 05 min`."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plain(value: Any) -> Any:
    """The same as JSON data: arrays become lists, NumPy scalars numbers, and numbers that are not
    finite null, which JSON has no word for.

    Nine digits are kept, enough to give every float32 back exactly.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
