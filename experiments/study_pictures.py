"""A study's pictures, of the entries of its ledger: curves along its runs, or a dot a cell with
its interval.
"""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import intervals
import matplotlib
import numpy as np
from ledger import BEFORE, Entry
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from study_tables import Found, blank, problems_of, value_of

from jopd.diagnostics.measures import unit
from jopd.diagnostics.style import BLACK, BLUE, COLORS, GREY, SKY, STYLE, drawn, new_figure, save
from jopd.rollout.settings import Sampling


class Dot(NamedTuple):
    """A mean, and the ends of its interval, None where there is none."""

    value: float
    ends: tuple[float, float] | None


def dots_of(study, found: Found, title: str) -> tuple[str, dict[str, Dot]]:
    """By cell, what its runs came to in the column of that title; and the column's measure."""
    name = next(name for name, of_column in study.COLUMNS.items() if of_column == title)
    factor = 100 if unit(name) == "%" else 1
    drawn_cells = {}
    for cell, entries in found.items():
        if (problems := problems_of(entries, name)) is not None:
            value, low, high, _ = intervals.mean(*problems)
            drawn_cells[cell] = Dot(factor * value, (factor * low, factor * high))
        elif values := [x for it in entries if (x := value_of(it, name)) is not None]:
            drawn_cells[cell] = Dot(factor * statistics.fmean(values), None)
    return name, drawn_cells


def dots(path: Path, study, found: Found, picture: Path) -> Figure:
    """A row a cell, the highest in the study's first measure at the top, and a panel a measure."""
    names, panels = zip(*(dots_of(study, found, title) for title in study.DOTS), strict=True)
    before = [panel.pop(BEFORE, None) for panel in panels]
    cells = sorted(panels[0], key=lambda cell: panels[0][cell].value)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.2 * len(panels) + 1.6, 1.9 + 0.36 * len(cells))
        sides = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        columns = zip(sides, study.DOTS, names, panels, before, strict=True)
        for axes, title, name, panel, start in columns:
            _column(axes, cells, panel, start)
            axes.set(title=title, xlabel=unit(name))
        sides[0].set_yticks(range(len(cells)), cells)
        # Of every kind one, wherever it first occurs.
        handles = {
            label: handle
            for axes in sides
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        seeds = ", ".join(map(str, study.SEEDS))
        return save(figure, picture, path.stem, f"seeds {seeds}", judged_on(study))


def _column(axes: Axes, cells: Sequence[str], panel: dict[str, Dot], before: Dot | None) -> None:
    if before is not None:
        axes.axvline(before.value, color=COLORS["before"], linestyle="--", label=BEFORE)
    for place, cell in enumerate(cells):
        if cell not in panel:
            continue
        value, ends = panel[cell]
        reach = ends and [[value - ends[0]], [ends[1] - value]]
        style = {"color": COLORS["student"], "fmt": "o", "markersize": 6}
        label = "mean, 95 % interval over seeds and problems"
        axes.errorbar(value, place, xerr=reach, elinewidth=1.8, label=label, **style)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")


def judged_on(study) -> str:
    """What the study's judge asks, and how it is answered."""
    flags = dict(zip(study.JUDGE[::2], study.JUDGE[1::2], strict=True))
    temperature = float(flags.get("--sampling.temperature", Sampling().temperature))
    return f"{flags['--data.held-out']} held-out problems ({drawn(temperature)})"


def curves(path: Path, study, found: Found, picture: Path) -> Figure:
    """The mean over seeds along the run, and from the lowest seed to the highest in a lighter
    shade.
    """
    cells = [cell for cell, entries in found.items() if cell != BEFORE and entries]
    others = itertools.product(("-", "--", ":"), (BLUE, BLACK, GREY, SKY))
    lines = {cell: ("-", COLORS[cell]) if cell in COLORS else next(others) for cell in cells}
    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.6 * len(study.CURVES), 5.6)
        sides = figure.subplots(1, len(study.CURVES), squeeze=False)[0]
        for (name, title), axes in zip(study.CURVES.items(), sides, strict=True):
            for cell in cells:
                if not blank(study, name, cell):
                    _curve(axes, cell, found[cell], name, lines[cell])
            axes.set(title=title, xlabel="training step")
            if unit(name) == "%":
                axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        ncols = min(4, max(1, len(labels)))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
        evaluation = study.config().evaluation.sampling
        seeds = f"seeds {', '.join(map(str, study.SEEDS))}: mean, shade from lowest to highest"
        answers = f"held-out problems ({drawn(evaluation.temperature)})"
        return save(figure, picture, path.stem, seeds, answers)


def _curve(
    axes: Axes, cell: str, entries: Sequence[Entry], name: str, line: tuple[str, str]
) -> None:
    runs = [entry.along[name] for entry in entries if entry.along.get(name)]
    if not runs:
        return
    steps = [point["step"] for point in runs[0]]
    values = np.array([[point["value"] for point in run] for run in runs])
    low, high = values.min(axis=0), values.max(axis=0)
    style, color = line
    axes.plot(steps, values.mean(axis=0), label=cell, linestyle=style, color=color)
    axes.fill_between(steps, low, high, alpha=0.12, color=color, linewidth=0)
