"""The pictures of a run's evaluations, PNG files fit for a slide; each function gives its figure
back, for a notebook to change.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jopd.diagnostics.measures import Measure, explains, is_outcome, label, measures
from jopd.diagnostics.style import COLORS, FURTHER, STYLE, Shown, aside, new_figure, save

Lines = Sequence[Mapping[str, Any]]


def learning_curve(
    training: Lines, evaluations: Lines, path: Path, shown: Shown = Shown()
) -> Figure:
    """What the run learned, step by step.

    At the left the KL to the teacher (the loss, for a method without a teacher), at the right the
    held-out shares, such as accuracy, with their intervals and the teacher's own as dashed lines.
    What never happens is left out, and so is a side without data.

    Args:
      training: the lines of metrics.jsonl.
      evaluations: the lines of evaluations.jsonl.
    """
    curve = next(
        (name for name in ("kl", "loss") if any(line.get(name) is not None for line in training)),
        None,
    )
    measured = [(line["step"], measures(line)) for line in evaluations]
    shares = _outcomes(measured, evaluations)
    sides = [side for side, there in (("training", curve), ("held out", shares)) if there] or [
        "training"
    ]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.2 * len(sides), 5.4)
        for side, axes in zip(sides, figure.subplots(1, len(sides), squeeze=False)[0], strict=True):
            axes.set_xlabel("training step")
            if side == "held out":
                _shares(axes, measured, shares, evaluations, shown)
            elif curve:
                _training(axes, training, measured, curve, shown)
        return save(figure, path, shown.run)


def kl_by_position(evaluations: Lines, path: Path, shown: Shown = Shown()) -> Figure | None:
    """The KL to the teacher along the completion, before and after training, with thin lines in
    between.

    Without a single such evaluation (a method without a teacher) there is no picture.

    Args:
      evaluations: those with "kl_by_position", the mean KL in bins of equal width from a
        completion's first token to its last; null for a bin without tokens.
    """
    with matplotlib.rc_context(STYLE):
        if (figure := _along_the_completion(evaluations, "kl_by_position")) is None:
            return None
        figure.axes[0].set(
            title="Where student and teacher disagree", ylabel="KL to the teacher (nats per token)"
        )
        return save(figure, path, shown.run, aside("held-out problems", shown.answers))


def overlap_by_position(evaluations: Lines, path: Path, shown: Shown = Shown()) -> Figure | None:
    """The share of the teacher's top-k that is in the student's too, as `kl_by_position` shows the
    KL.

    Args:
      evaluations: those with "top_k_overlap_by_position".
    """
    top = f"top-{shown.k or 'k'}"
    with matplotlib.rc_context(STYLE):
        if (figure := _along_the_completion(evaluations, "top_k_overlap_by_position")) is None:
            return None
        figure.axes[0].set(
            title=f"How much of their {top} they share", ylabel=f"{top} overlap", ylim=(0, 1.02)
        )
        figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        return save(figure, path, shown.run, aside("held-out problems", shown.answers))


def accuracy_by_length(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, shown: Shown = Shown()
) -> Figure | None:
    """The accuracy among completions of similar length, with 95 % intervals and the number of
    completions in each bar; buckets without any are left out.

    Without a completion in any bucket there is no picture.

    Args:
      runs: by what the legend is to say, the buckets of
        `jopd.diagnostics.profiles.share_by_length`, the same edges for all. Different runs, or one
        before and after training.

    Raises:
      ValueError: runs with different buckets.
    """
    edges = {
        tuple((bucket["from"], bucket["to"]) for bucket in buckets) for buckets in runs.values()
    }
    if len(edges) > 1:
        raise ValueError(
            f"the runs {', '.join(runs)} have different buckets {sorted(edges)}: "
            "give all the same edges"
        )
    together = zip(*runs.values(), strict=True)
    filled = [i for i, same in enumerate(together) if any(bucket["count"] for bucket in same)]
    if not filled:
        return None
    (all_edges,) = edges
    ends = [all_edges[i] for i in filled]
    names = [f"{low}–{high - 1}" if high else f"{low} or more" for low, high in ends]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(4.8, 2 + 1.4 * len(names)))
        axes, width = figure.subplots(), 0.8 / len(runs)
        for index, (run, color) in enumerate(zip(runs, _colors(list(runs)), strict=True)):
            shift = (index - (len(runs) - 1) / 2) * width
            for place, bucket in enumerate(runs[run][i] for i in filled):
                if bucket["count"]:
                    size = 9 if len(runs) < 4 else 7
                    _bar(axes, place + shift, bucket, width=0.92 * width, color=color, size=size)
            axes.bar(0, 0, color=color, label=run)
        axes.set_xticks(range(len(names)), names)
        axes.grid(visible=False, axis="x")
        axes.set(
            title="Accuracy by length",
            xlabel="tokens of the completion",
            ylabel="accuracy, 95 % interval",
        )
        axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        if len(runs) > 1:
            figure.legend(loc="outside lower center", ncols=min(len(runs), 4))
        return save(figure, path, shown.run, aside("held-out problems", shown.answers))


def _bar(
    axes: Axes, x: float, bucket: Mapping[str, Any], *, width: float, color: str, size: int
) -> None:
    """A share, its interval, and at the foot the number of completions behind it."""
    axes.bar(x, bucket["value"], width, color=color)
    axes.vlines(x, bucket["low"], bucket["high"], color=COLORS["line"], linewidth=1.4)
    inside = bucket["value"] > 0.07 and bucket["low"] > 0.07
    foot = 0.012 if inside else bucket["high"] + 0.012
    pale = not inside or color in (COLORS["before"], COLORS["sft"])
    axes.text(
        x,
        foot,
        f"{bucket['count']:,}",
        ha="center",
        va="bottom",
        fontsize=size,
        color=COLORS["line"] if pale else "white",
    )


def _along_the_completion(evaluations: Lines, name: str) -> Figure | None:
    """Profiles of that name before, after, and thin in between; its axes lack a title and what the
    height means.
    """
    profiles = [
        (line["step"], line[name])
        for line in evaluations
        if any(value is not None for value in line.get(name) or ())
    ]
    if not profiles:
        return None
    figure = new_figure(7.2)
    axes = figure.subplots()
    last = len(profiles) - 1
    for i, (step, profile) in enumerate(profiles):
        centres = [100 * (k + 0.5) / len(profile) for k in range(len(profile))]
        values = [float("nan") if value is None else value for value in profile]
        if i in (0, last):
            when = f"after {step:,} steps" if step else "before"
            style = {"color": COLORS["student" if step else "before"], "marker": "o", "zorder": 3}
            axes.plot(centres, values, label=when, clip_on=False, **style)
        else:
            between = "in between" if i == 1 else None
            style = {"color": COLORS["aside"], "linewidth": 1, "alpha": 0.6}
            axes.plot(centres, values, label=between, **style)
    axes.set(xlabel="position in the completion (% of its length)", xlim=(0, 100), ylim=(0, None))
    axes.legend()
    return figure


def _outcomes(measured: Sequence[tuple[int, dict[str, Measure]]], evaluations: Lines) -> list[str]:
    """The shares that the curve shows: of what the last evaluation has, the first and those that
    ever happen, to the student or to the teacher.
    """
    last = measured[-1][1] if measured else {}
    shares = [
        name
        for name, measure in last.items()
        if is_outcome(name) and not explains(name) and measure.interval
    ]
    everyone = [of for _, of in measured] + [
        measures(line["teacher"]) for line in evaluations if line.get("teacher")
    ]
    return [
        name
        for name in shares
        if name == shares[0] or any(name in of and of[name].value for of in everyone)
    ]


def _training(axes: Axes, training: Lines, evaluations: Sequence, curve: str, shown: Shown) -> None:
    steps = [line["step"] for line in training if line.get(curve) is not None]
    values = [line[curve] for line in training if line.get(curve) is not None]
    batch, color = aside("training batch", shown.batches), COLORS["aside"]
    axes.plot(steps, values, color=color, linewidth=1, alpha=0.45, label=batch)
    axes.plot(steps, _smooth(values), color=color, label="its running mean")
    held_out = [(step, found[curve]) for step, found in evaluations if curve in found]
    if held_out:
        problems = aside("held-out problems, 95 % interval", shown.answers)
        _with_intervals(axes, held_out, COLORS["student"], problems)
    axes.set(title="Distance to the teacher" if curve == "kl" else "Training loss")
    axes.set(ylabel="KL to the teacher (nats per token)" if curve == "kl" else "loss")
    if min(values) >= 0:
        axes.set_ylim(0, None)
    _legend_below(axes)


def _shares(
    axes: Axes, evaluations: Sequence, names: Sequence[str], lines: Lines, shown: Shown
) -> None:
    teachers = [measures(line["teacher"]) for line in lines if line.get("teacher")]
    # What all the names end with goes into the title, and the lines are told apart by the rest.
    endings = {name.split("/")[-1] for name in names}
    common = endings.pop() if len(endings) == 1 else ""
    colors = (COLORS["student"], *FURTHER)
    for name, color in zip(names, colors, strict=False):
        points = [(step, found[name]) for step, found in evaluations if name in found]
        change = " → ".join(
            f"{100 * measure.value:.0f} %" for _, measure in [points[0], points[-1]][: len(points)]
        )
        what = label(name.removesuffix(common).strip("/"))
        _with_intervals(axes, points, color, f"{what or 'student'}: {change}")
        if teachers and name in teachers[-1]:
            teacher, alone = teachers[-1][name], len(names) == 1
            whose = "teacher" if alone else f"teacher, {what}"
            shade = COLORS["teacher"] if alone else color
            words = f"{whose}: {100 * teacher.value:.0f} %"
            axes.axhline(teacher.value, color=shade, linestyle="--", label=words)
            if teacher.interval:
                axes.axhspan(*teacher.interval, color=shade, alpha=0.12, linewidth=0)
    drawn = aside(f"Held-out {label(common) or 'problems'}", shown.answers)
    axes.set(title=drawn, ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    counts = {found[name].count for _, found in evaluations for name in names if name in found}
    problems = (
        f"{counts.pop():,} problems" if len(counts) == 1 and None not in counts else "problems"
    )
    axes.set_ylabel(f"share of {problems}, 95 % interval")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    """Where it hides no interval."""
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.17), borderaxespad=0, fontsize=11)


def _colors(runs: Sequence[str]) -> list[str]:
    """One for each of several runs; of two the first is the student as it was."""
    if len(runs) == 2 and runs[0] == "before":
        return [COLORS["before"], COLORS["student"]]
    colors = (COLORS["student"], *FURTHER)
    return [colors[index % len(colors)] for index in range(len(runs))]


def _with_intervals(axes: Axes, points: Sequence, color: str, name: str) -> None:
    """A line with a bar from low to high at each point that has them."""
    steps, values = [step for step, _ in points], [measure.value for _, measure in points]
    axes.plot(steps, values, color=color, marker="o", label=name, zorder=3, clip_on=False)
    bars = [(step, *measure.interval) for step, measure in points if measure.interval]
    if bars:
        axes.vlines(*zip(*bars, strict=True), color=color, linewidth=1.6, alpha=0.6, zorder=2)


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred running mean over about a twentieth of the run, narrower at its ends."""
    reach = len(values) // 40
    return [
        sum(part) / len(part)
        for part in (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    ]
