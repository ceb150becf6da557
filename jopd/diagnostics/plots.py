"""The pictures of a run, PNG files fit for a slide; each function gives its figure back, for a
notebook to change.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from jopd.diagnostics.measures import explains, is_outcome, label, measures

Lines = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8a8a"
SKY, YELLOW, BLACK = "#56b4e9", "#e69f00", "#333333"
STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
}


def learning_curve(training: Lines, evaluations: Lines, path: Path) -> Figure:
    """What the run learned, step by step.

    At the left the KL to the teacher (the loss, for a method without a teacher), at the right the
    held-out shares, such as accuracy, with their intervals and the teacher's own as a dashed line.
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
    last = measured[-1][1] if measured else {}
    shares = [
        name
        for name, measure in last.items()
        if is_outcome(name) and not explains(name) and measure.interval
    ]
    everyone = [of for _, of in measured] + [
        measures(line["teacher"]) for line in evaluations if line.get("teacher")
    ]
    shares = [
        name
        for name in shares
        if name == shares[0] or any(name in of and of[name].value for of in everyone)
    ]
    sides = [side for side, there in (("training", curve), ("held out", shares)) if there] or [
        "training"
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(6.2 * len(sides), 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
        )
        for side, axes in zip(sides, figure.subplots(1, len(sides), squeeze=False)[0], strict=True):
            axes.set_xlabel("training step")
            if side == "held out":
                _shares(axes, measured, shares, evaluations)
            elif curve:
                _training(axes, training, measured, curve)
        return _save(figure, path)


def kl_by_position(evaluations: Lines, path: Path) -> Figure | None:
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
        return _save(figure, path)


def overlap_by_position(evaluations: Lines, path: Path) -> Figure | None:
    """The share of the teacher's top-k that is in the student's too, as `kl_by_position` shows the
    KL.

    Args:
      evaluations: those with "top_k_overlap_by_position".
    """
    with matplotlib.rc_context(STYLE):
        if (figure := _along_the_completion(evaluations, "top_k_overlap_by_position")) is None:
            return None
        figure.axes[0].set(
            title="How much of their top-k they share", ylabel="top-k overlap", ylim=(0, 1.02)
        )
        figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        return _save(figure, path)


def accuracy_by_length(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path
) -> Figure | None:
    """The accuracy among completions of similar length, with 95 % intervals and the number of
    completions in each bar.

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
    if not any(bucket["count"] for buckets in runs.values() for bucket in buckets):
        return None
    names = [f"{low}–{high - 1}" if high else f"{low} or more" for low, high in edges.pop()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes, width = figure.subplots(), 0.8 / len(runs)
        for index, ((run, buckets), color) in enumerate(
            zip(runs.items(), _colors(len(runs)), strict=True)
        ):
            for place, bucket in enumerate(buckets):
                if not bucket["count"]:
                    continue
                x, value = place + (index - (len(runs) - 1) / 2) * width, bucket["value"]
                axes.bar(x, value, 0.92 * width, color=color, alpha=0.9)
                axes.vlines(x, bucket["low"], bucket["high"], color=BLACK, linewidth=1.4)
                inside = value > 0.07
                axes.text(
                    x,
                    0.012 if inside else bucket["high"] + 0.012,
                    f"{bucket['count']:,}",
                    ha="center",
                    va="bottom",
                    fontsize=9 if len(runs) < 4 else 7,
                    color="white" if inside else BLACK,
                )
            axes.bar(0, 0, color=color, alpha=0.9, label=run)
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
        return _save(figure, path)


def evidence_histogram(
    evidence: Float[np.ndarray, " N"], kept: Bool[np.ndarray, " N"], path: Path
) -> Figure:
    """How much likelier the privileged context makes each sampled token, and which tokens count.

    Args:
      evidence: nats a token, `log q(y | with the context) - log q(y | without)`.
      kept: whether the method learns from the token.
    """
    # One token in a thousand may be anywhere: it is counted in the outermost bars.
    low, high = np.quantile(evidence[np.isfinite(evidence)], (0.001, 0.999))
    low, high = min(low, -0.5), max(high, 0.5)
    # Bins that begin at 0, so that no bar is on both sides of it.
    step = (high - low) / 60
    edges = step * np.arange(int(np.floor(low / step)), int(np.ceil(high / step)) + 1)
    values = np.clip(evidence, edges[0], edges[-1])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes = figure.subplots()
        for chosen, color, name in ((~kept, GREY, "silenced"), (kept, BLUE, "kept")):
            label = f"{name}: {100 * chosen.mean():.0f} %"
            axes.hist(values[chosen], edges, color=color, alpha=0.8, label=label, linewidth=0)
        axes.axvline(0, color=ORANGE, linestyle="--", linewidth=1.2)
        axes.set_yscale("log")
        axes.set(
            title="What the context says for each token",
            xlabel="evidence (nats)",
            ylabel=f"tokens, of {len(evidence):,} (log scale)",
            xlim=(edges[0], edges[-1]),
            ylim=(0.7, None),
        )
        axes.grid(visible=False, axis="x")
        axes.legend()
        return _save(figure, path)


def transport_against_loss(
    losses: Float[np.ndarray, " N"],
    costs: Float[np.ndarray, " N"],
    path: Path,
    *,
    threshold: float | None = None,
) -> Figure:
    """Whether a token of high loss also leads to another future: its window's transport cost
    against its loss.

    Args:
      losses: nats, the KL at each window's position, on a logarithmic axis; what is below a
        ten-thousandth is put there.
      costs: each window's optimal transport cost.
      threshold: what is above it counts as really divergent.
    """
    losses = np.maximum(losses, 1e-4)
    divergent = np.full(costs.shape, True) if threshold is None else costs > threshold
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes = figure.subplots()
        names = ("windows", "") if threshold is None else ("really divergent", "same future")
        for chosen, color, name in ((divergent, BLUE, names[0]), (~divergent, GREY, names[1])):
            if chosen.any():
                label = (
                    f"{name}: {100 * chosen.mean():.0f} %"
                    if threshold is not None
                    else f"{len(costs):,} {name}"
                )
                axes.scatter(
                    losses[chosen],
                    costs[chosen],
                    18,
                    color=color,
                    alpha=0.5,
                    linewidths=0,
                    label=label,
                )
        if threshold is not None:
            axes.axhline(
                threshold, color=ORANGE, linestyle="--", label=f"threshold: {threshold:.2f}"
            )
        axes.set_xscale("log")
        axes.set(
            title="Loss here, and what becomes of it",
            xlabel="KL to the teacher at the token (nats)",
        )
        axes.set(ylabel="transport cost of the window", ylim=(0, None))
        axes.legend()
        return _save(figure, path)


def _along_the_completion(evaluations: Lines, name: str) -> Figure | None:
    """Profiles of that name before, after, and thin in between; its axes lack a title and what the
    height means.
    """
    profiles = [(line["step"], line[name]) for line in evaluations if line.get(name)]
    if not profiles:
        return None
    figure = Figure(figsize=(7.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes = figure.subplots()
    last = len(profiles) - 1
    for i, (step, profile) in enumerate(profiles):
        centres = [100 * (k + 0.5) / len(profile) for k in range(len(profile))]
        values = [float("nan") if value is None else value for value in profile]
        if i in (0, last):
            when = "before" if i == 0 else f"after {step:,} steps"
            axes.plot(
                centres, values, color=ORANGE if i == 0 else BLUE, marker="o", label=when, zorder=3
            )
        else:
            axes.plot(
                centres,
                values,
                color=GREY,
                linewidth=1,
                alpha=0.6,
                label="in between" if i == 1 else None,
            )
    axes.set(xlabel="position in the completion (% of its length)", xlim=(0, 100), ylim=(0, None))
    axes.legend()
    return figure


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
        change = " → ".join(
            f"{100 * measure.value:.0f} %" for _, measure in [points[0], points[-1]][: len(points)]
        )
        who = label(name.removesuffix(common).strip("/")) or "student"
        _with_intervals(axes, points, color, f"{who}: {change}")
        if teachers and name in teachers[-1]:
            value, shade = teachers[-1][name].value, ORANGE if len(names) == 1 else color
            axes.axhline(value, color=shade, linestyle="--", label=f"teacher: {100 * value:.0f} %")
    axes.set(title=f"Held-out {label(common) or 'problems'}", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    counts = {found[name].count for _, found in evaluations for name in names if name in found}
    problems = (
        f"{counts.pop():,} problems" if len(counts) == 1 and None not in counts else "problems"
    )
    axes.set_ylabel(f"share of {problems}, 95 % interval")
    axes.legend()


def _colors(count: int) -> list[str]:
    """One for each of several runs; the first of two is what came before."""
    colors = (
        (ORANGE, BLUE) if count == 2 else (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY, BLACK)
    )
    return [colors[index % len(colors)] for index in range(count)]


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


def _save(figure: Figure, path: Path) -> Figure:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    return figure
