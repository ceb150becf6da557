"""The pictures of a run, PNG files fit for a slide; each function gives its figure back, for a notebook to change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from jopd.diagnostics.measures import is_outcome, label, measures

Lines = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "font.size": 13, "axes.titlesize": 14, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "lines.linewidth": 2.2, "lines.solid_capstyle": "round",
    "legend.edgecolor": "none", "legend.framealpha": 0.85,
}  # fmt: skip


def learning_curve(training: Lines, evaluations: Lines, path: Path) -> Figure:
    """What the run learned, step by step.

    At the left the KL to the teacher (the loss, for a method without a teacher), at the right the held-out shares, such
    as accuracy, with their intervals and the teacher's own as a dashed line. A side without data is left out.

    Args:
      training: the lines of metrics.jsonl.
      evaluations: the lines of evaluations.jsonl.
    """
    curve = next((name for name in ("kl", "loss") if any(line.get(name) is not None for line in training)), None)
    found = [(line["step"], measures(line)) for line in evaluations]
    shares = [
        name for name in (found[-1][1] if found else {}) if is_outcome(name) and found[-1][1][name].low is not None
    ]
    sides = [side for side, there in (("training", curve), ("held out", shares)) if there] or ["training"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2 * len(sides), 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        for side, axes in zip(sides, figure.subplots(1, len(sides), squeeze=False)[0], strict=True):
            axes.set_xlabel("training step")
            if side == "held out":
                _shares(axes, found, shares, evaluations)
            elif curve:
                _training(axes, training, found, curve)
        return _save(figure, path)


def kl_by_position(evaluations: Lines, path: Path) -> Figure | None:
    """The KL to the teacher along the completion, before and after training, with thin lines in between.

    Without a single such evaluation (a method without a teacher) there is no picture.

    Args:
      evaluations: those with "kl_by_position", the mean KL in bins of equal width from a completion's first token to
        its last; null for a bin without tokens.
    """
    profiles = [(line["step"], line["kl_by_position"]) for line in evaluations if line.get("kl_by_position")]
    if not profiles:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes = figure.subplots()
        last = len(profiles) - 1
        for i, (step, profile) in enumerate(profiles):
            centres = [100 * (k + 0.5) / len(profile) for k in range(len(profile))]
            values = [float("nan") if value is None else value for value in profile]
            if i in (0, last):
                name = "before" if i == 0 else f"after {step:,} steps"
                axes.plot(centres, values, color=ORANGE if i == 0 else BLUE, marker="o", label=name, zorder=3)
            else:
                axes.plot(centres, values, color=GREY, linewidth=1, alpha=0.6, label="in between" if i == 1 else None)
        axes.set(
            title="Where student and teacher disagree",
            xlabel="position in the completion (% of its length)",
            xlim=(0, 100),
        )
        axes.set(ylabel="KL to the teacher (nats per token)", ylim=(0, None))
        axes.legend()
        return _save(figure, path)


def _training(axes: Axes, training: Lines, evaluations: Sequence, curve: str) -> None:
    steps = [line["step"] for line in training if line.get(curve) is not None]
    values = [line[curve] for line in training if line.get(curve) is not None]
    axes.plot(steps, values, color=BLUE, linewidth=1, alpha=0.35, label="training batch")
    axes.plot(steps, _smooth(values), color=BLUE, label="its running mean")
    held_out = [(step, found[curve]) for step, found in evaluations if curve in found]
    if held_out:
        _with_intervals(axes, held_out, ORANGE, "held-out problems")
    axes.set(title="Distance to the teacher" if curve == "kl" else "Training loss")
    axes.set(ylabel="KL to the teacher (nats per token)" if curve == "kl" else "loss")
    if min(values) >= 0:
        axes.set_ylim(0, None)
    axes.legend()


def _shares(axes: Axes, evaluations: Sequence, names: Sequence[str], lines: Lines) -> None:
    teachers = [measures(line["teacher"]) for line in lines if line.get("teacher")]
    # What all the names end with goes into the title, and the lines are told apart by the rest.
    endings = {name.split("/")[-1] for name in names}
    common = endings.pop() if len(endings) == 1 else ""
    for name, color in zip(names, (BLUE, GREEN, PURPLE, ORANGE, GREY), strict=False):
        points = [(step, found[name]) for step, found in evaluations if name in found]
        change = " → ".join(f"{100 * measure.value:.0f} %" for _, measure in [points[0], points[-1]][: len(points)])
        who = label(name.removesuffix(common).strip("/")) or "student"
        _with_intervals(axes, points, color, f"{who}: {change}")
        if teachers and name in teachers[-1]:
            value, shade = teachers[-1][name].value, ORANGE if len(names) == 1 else color
            axes.axhline(value, color=shade, linestyle="--", label=f"teacher: {100 * value:.0f} %")
    axes.set(title=f"Held-out {label(common) or 'problems'}", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    counts = {found[name].count for _, found in evaluations for name in names if name in found}
    problems = f"{counts.pop():,} problems" if len(counts) == 1 and None not in counts else "problems"
    axes.set_ylabel(f"share of {problems}, 95 % interval")
    axes.legend()


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
    return [sum(part) / len(part) for part in (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))]


def _save(figure: Figure, path: Path) -> Figure:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    return figure
