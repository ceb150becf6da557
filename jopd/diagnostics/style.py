"""How every picture looks: its colours, each of which means one thing in all of them, its letters,
and the line above it that says which run it shows.
"""

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8a8a"
SKY, YELLOW, BLACK = "#56b4e9", "#e69f00", "#333333"
# What a colour stands for, in the pictures of a run and of a study.
COLORS = {
    "student": BLUE,  # as it ends, and what it learns from
    "before": SKY,  # the student before training
    "teacher": ORANGE,
    "partial": GREEN,  # a teacher that reads a part of the context
    "full": PURPLE,  # a teacher that reads all of it
    "sft": YELLOW,
    "aside": GREY,  # training batches, what lies between, what is passed over
    "line": BLACK,  # thresholds, intervals on bars
}
# For what has none of these roles: further measures, further runs.
FURTHER = (GREEN, PURPLE, YELLOW, GREY, BLACK, SKY)
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
LETTERS_AN_INCH = 11  # of the line above a picture


class Shown(NamedTuple):
    """What a picture says of the run that it shows; nothing, where it is not known.

    Attributes:
      run: which one it is.
      batches: how the completions of training batches are drawn, "greedy" or "sampled ...".
      answers: how those to held-out problems are.
      k: of the top-k that overlaps are measured on.
    """

    run: str = ""
    batches: str = ""
    answers: str = ""
    k: int | None = None


def drawn(temperature: float) -> str:
    """How completions are drawn, in a word or three."""
    return f"sampled at temperature {temperature:g}" if temperature else "greedy"


def aside(name: str, *remarks: str) -> str:
    """`name (remark, remark)`, of the remarks that say something.

    >>> aside("training batch", "greedy", ""), aside("training batch", "")
    ('training batch (greedy)', 'training batch')
    """
    said = ", ".join(remark for remark in remarks if remark)
    return f"{name} ({said})" if said else name


def new_figure(width: float, height: float = 4.6) -> Figure:
    """An empty one, in inches, whose parts keep out of each other's way."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))


def save(figure: Figure, path: Path, *subtitle: str) -> Figure:
    """Writes it, under a line of what is said of it, and gives it back."""
    if words := " · ".join(part for part in subtitle if part):
        room = int(LETTERS_AN_INCH * figure.get_figwidth())
        text = "\n".join(textwrap.wrap(words, room))
        figure.suptitle(text, x=0.015, ha="left", fontsize=11, color=BLACK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    return figure
