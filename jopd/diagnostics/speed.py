"""What the time of a run went into, from its records: those of a resumed run are whole, so it does
not matter how often it was started.

Counted are its steps and evaluations; not what lies between them, such as loading, a save that the
disk is too slow for, and the last export.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jopd.diagnostics.measures import duration, number

Lines = Sequence[Mapping[str, Any]]
# What bounds a run, where the name of its share doesn't say it.
BOUNDS = {
    "score": "the scoring",
    "rewards": "the rewards, which the host computes",
    "waiting": "the host, which the devices wait for",
    "evaluation": "the evaluations",
}


def spent(training: Lines, evaluations: Lines) -> dict[str, float]:
    """Seconds, by phase of the steps (`jopd.training.laps`) and for evaluations; most first."""
    total: dict[str, float] = {}
    for line in training:
        for phase, seconds in line["seconds"].items():
            total[phase] = total.get(phase, 0.0) + seconds
    total["evaluation"] = sum(line.get("seconds", 0.0) for line in evaluations)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def bound_by(spent: Sequence[str]) -> str:
    """What most of the time went into, by what it was spent on, most first. A longer run would not
    compile again, so it says what is next too.
    """
    first, *others = spent
    if first == "compiling":
        return f"compiling, and then by {bound_by(others)}"
    return BOUNDS.get(first, f"the {first}")


def median(training: Lines, name: str) -> float | None:
    """Of the steps that have such a speed (`jopd.training.speed`), so that what compiles or waits
    now and then doesn't count; None where no step has.
    """
    values = [line["speed"][name] for line in training if name in line.get("speed", {})]
    return statistics.median(values) if values else None


def sentence(training: Lines, evaluations: Lines) -> str:
    """The same in a line for the screen."""
    seconds = spent(training, evaluations)
    total = sum(seconds.values())
    shares = [
        f"{name} {100 * it / total:.0f} %" for name, it in seconds.items() if it / total > 5e-3
    ]
    step = statistics.median(sum(line["seconds"].values()) for line in training)
    typical = [duration(step)]
    if (tokens := median(training, "tokens_per_second")) is not None:
        typical.append(f"{number(tokens)} tokens/s")
    if (utilisation := median(training, "model_flops_utilisation")) is not None:
        typical.append(f"MFU {100 * utilisation:.1f} %")
    return (
        f"of {duration(total)} in steps and evaluations: {', '.join(shares)}; the median step: "
        f"{', '.join(typical)}; bound by {bound_by([*seconds])}"
    )


def facts(training: Lines, evaluations: Lines) -> dict[str, Any]:
    """The items of the report's group "speed" that the records tell."""
    seconds = spent(training, evaluations)
    peaks = [line.get("speed", {}).get("peak_memory_bytes") for line in training]
    flops = median(training, "model_flops_per_second")
    known = {
        "tokens_per_second": median(training, "tokens_per_second"),
        "model_teraflops_per_second": None if flops is None else flops / 1e12,
        "model_flops_utilisation": median(training, "model_flops_utilisation"),
        "peak_memory_bytes": max((it for it in peaks if it is not None), default=None),
    }
    return {name: value for name, value in known.items() if value is not None} | {
        "median_step_seconds": statistics.median(
            sum(line["seconds"].values()) for line in training
        ),
        "seconds": seconds,
        "time_share": {name: it / sum(seconds.values()) for name, it in seconds.items()},
        "bound_by": bound_by([*seconds]),
    }
