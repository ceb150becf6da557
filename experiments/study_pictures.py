"""A study's pictures: curves along its runs, or a dot a cell with its interval.

The dots are of a table in Markdown, so that those of a results page can be drawn when its runs are
gone.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from study_tables import BEFORE, finished, folder

from jopd.diagnostics.measures import measures, unit
from jopd.diagnostics.style import BLACK, BLUE, COLORS, GREY, SKY, STYLE, drawn, new_figure, save
from jopd.rollout.settings import Sampling
from jopd.training import logs

WITHDRAWN = " †"  # stands after a cell's name


class Dot(NamedTuple):
    """A mean over seeds and half the width of its interval, None where there is none."""

    value: float
    half: float | None


def dots_of(markdown: str, column: str) -> dict[str, Dot]:
    """By cell, what the first table with such a column has in it.

    Raises:
      ValueError: no table has it.
    """
    rows = [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        for line in markdown.splitlines()
    ]
    for start, head in enumerate(rows):
        titles = [re.sub(r" \([^)]*\)$", "", title) for title in head]
        if column in titles[1:]:
            place = titles.index(column)
            # An empty line is a row of one cell, and ends the table.
            body = itertools.takewhile(lambda row: len(row) > 1, rows[start + 2 :])
            return {row[0]: dot(row[place]) for row in body if row[place]}
    raise ValueError(f"no table with a column {column!r}: run the study, or name another column")


def dot(text: str) -> Dot:
    """`65.9 ± 4.7` or `47.8`."""
    value, _, half = text.partition(" ± ")
    return Dot(float(value), float(half) if half else None)


def dots(path: Path, study, markdown: str, picture: Path) -> Figure:
    """A row a cell, the highest in the study's first measure at the top, and a panel a measure."""
    panels = [dots_of(markdown, column) for column in study.DOTS]
    first = panels[0]
    before = [panel.pop(BEFORE, None) for panel in panels]
    cells = sorted(first, key=lambda cell: first[cell].value)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.2 * len(panels) + 1.6, 1.9 + 0.36 * len(cells))
        sides = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, column, panel, start in zip(sides, study.DOTS, panels, before, strict=True):
            _column(axes, cells, panel, start)
            of_unit = next(unit(name) for name, title in study.COLUMNS.items() if title == column)
            axes.set(title=column, xlabel=of_unit)
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
        value, half = panel[cell]
        gone = cell.endswith(WITHDRAWN)
        style = {"color": COLORS["aside" if gone else "student"], "fmt": "o", "markersize": 6}
        style |= {"markerfacecolor": "white"} if gone else {}
        label = "withdrawn (†)" if gone else "mean over seeds, 95 % interval (Student's t)"
        axes.errorbar(value, place, xerr=half, elinewidth=1.8, label=label, **style)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")


def judged_on(study) -> str:
    """What the study's judge asks, and how it is answered."""
    flags = dict(zip(study.JUDGE[::2], study.JUDGE[1::2], strict=True))
    temperature = float(flags.get("--sampling.temperature", Sampling().temperature))
    return f"{flags['--data.held-out']} held-out problems ({drawn(temperature)})"


def curves(path: Path, study, cells: Sequence[str], picture: Path) -> Figure:
    """The mean over seeds along the run, and from the lowest seed to the highest in a lighter
    shade.
    """
    others = itertools.cycle([BLUE, BLACK, GREY, SKY])
    colors = {cell: COLORS[cell] if cell in COLORS else next(others) for cell in cells}
    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.6 * len(study.CURVES), 5.6)
        sides = figure.subplots(1, len(study.CURVES), squeeze=False)[0]
        for (name, title), axes in zip(study.CURVES.items(), sides, strict=True):
            for cell in cells:
                _curve(axes, path, cell, finished(path, study, cell), name, colors[cell])
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


def _curve(axes: Axes, path: Path, cell: str, seeds: Sequence[int], name: str, color: str) -> None:
    evaluations = [logs.read(folder(path, cell, seed)).evaluations for seed in seeds]
    lines = [{line["step"]: measures(line) for line in run} for run in evaluations]
    if not lines or name not in lines[0][0]:
        return
    steps = sorted(lines[0])
    values = np.array([[line[step][name].value for step in steps] for line in lines])
    low, high = values.min(axis=0), values.max(axis=0)
    axes.plot(steps, values.mean(axis=0), label=cell, color=color)
    axes.fill_between(steps, low, high, alpha=0.12, color=color, linewidth=0)
