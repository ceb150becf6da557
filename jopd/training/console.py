"""What a user sees while a run goes on.

Everything is printed on CONSOLE; processes other than the first set `CONSOLE.quiet = True`. On a
terminal there are colours and a progress bar that redraws itself. In a log file the same is said
without either: a line every few seconds for the bar, and signs instead of colours.
"""

import contextlib
import io
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

import numpy as np
import rich.progress
from jaxtyping import Int, Shaped
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jopd.data.texts import Decoder, pieces_of
from jopd.diagnostics.measures import duration, number


def _console() -> Console:
    # What a model writes may hold any character; a locale without it must not end a run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(
        highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    )


CONSOLE = _console()


def say(message: str) -> None:
    """One line, however long: a log file's lines are not folded."""
    CONSOLE.print(Text(message), soft_wrap=True)


def announce(lines: Mapping[str, str], *, title: str = "jopd") -> None:
    """What is about to happen, a name and a value a line, in a frame."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        table.add_row(Text(name), Text(value))
    CONSOLE.print(_frame(table, title))


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """Says that something long has begun (a compilation, an evaluation) and, when it is done, how
    long it took.
    """
    begin = time.monotonic()
    say(f"{message} ...")
    yield
    say(f"{message}: {duration(time.monotonic() - begin)}")


# The example.

# Light to dark red under black, then white, letters: legible on light and on dark terminals.
SHADES = (
    "black on #c7e9c0",
    "black on #fee391",
    "black on #fe9929",
    "white on #d7301f",
    "bold white on #7f0000",
)
OUTSIDE, NEW = "dim strike", "bold magenta"

Tokens = Sequence[int] | Int[np.ndarray, " _"]
Numbers = Sequence[int | float] | Shaped[np.ndarray, " _"]
Values = list[float] | None


def show_example(
    views: Mapping[str, Tokens],
    completion: Tokens,
    mask: Numbers,
    tokenizer: Decoder,
    *,
    values: Numbers | None = None,
    value_name: str = "KL to the teacher in nats",
    title: str = "The student writes",
    limit: int = 400,
) -> None:
    """One problem as each reader sees it, and a completion with what the loss makes of each token.

    Text that a teacher reads and the student does not is marked, and so is each token of the answer
    that the loss sees; the shade grows with the size of its value.

    Args:
      views: by name, the tokens of each reader's context without padding; "student" among them.
      completion: `[T]` what is learnt from; padding at its end is fine.
      mask: `[T]` 0 on tokens that the loss does not see.
      values: `[T]` a number a token, such as its KL.
      title: of the completion.
      limit: longer texts lose their middle, and say so.

    Raises:
      ValueError: no student view, or lengths that differ.
    """
    contexts = {name: [int(token) for token in context] for name, context in views.items()}
    completion, mask = [int(token) for token in completion], [float(m) for m in mask]
    values = None if values is None else [float(value) for value in values]
    if "student" not in views:
        raise ValueError(
            f"views={sorted(views)} must hold 'student', what the writer of the completion saw"
        )
    if len(mask) != len(completion) or (values is not None and len(values) != len(completion)):
        raise ValueError(
            f"mask and values must be as long as the completion, {len(completion)} tokens"
        )
    student, parts, legend = contexts["student"], [], []
    for name, context in sorted(contexts.items(), key=lambda item: item[0] != "student"):
        reader = {"student": "The student reads", "teacher": "The teacher reads"}.get(
            name, f"The teacher reads (view: {name})"
        )
        if name != "student" and context == student:
            parts.append(Text.assemble((reader, "bold"), ": exactly what the student reads\n"))
            continue
        new = _new_in(context, student)
        alone = f", {sum(new):,} for this reader alone" if any(new) else ""
        styles = [NEW if is_new else "" for is_new in new]
        parts.append(_heading(reader, _count(len(context)) + alone))
        parts.append(_body(_paint(pieces_of(tokenizer, context), styles, ("{+", "+}"), limit)))
        if alone and not legend:
            legend.append(_paint(["text for this reader alone"], [NEW], ("{+", "+}")))
    pieces = [piece.replace("\n", "↵\n") for piece in pieces_of(tokenizer, completion)]
    written = max((i + 1 for i, m in enumerate(mask) if m), default=0)
    inside = sum(1 for m in mask if m)
    seen_by_loss = "all" if inside == written else f"{inside:,}"
    parts.append(_heading(title, f"{_count(written)}, {seen_by_loss} seen by the loss"))
    parts.append(_body(_completion(pieces, completion, mask, values, limit)))
    legend += _legend(mask, values, value_name)
    if values is not None and inside:
        legend.append(_largest(pieces, mask, values, value_name))
    CONSOLE.print(_frame(Group(*parts, *legend), "one example"))


def _completion(
    pieces: list[str], completion: list[int], mask: list[float], values: Values, limit: int
) -> Text:
    shown, styles, shades = [], [], _shades(mask, values)
    # Padding: the same unseen token over and over is said once.
    for _, group in groupby(
        range(len(completion)), key=lambda i: (completion[i], i if mask[i] else -1)
    ):
        run = list(group)
        printed, times = (run, "") if len(run) < 4 else (run[:1], f" (× {len(run):,})")
        shown += [pieces[i] + times for i in printed]
        styles += [SHADES[shade] if (shade := shades[i]) is not None else OUTSIDE for i in printed]
    return _paint(shown, styles, ("[", "]"), limit, unmarked=OUTSIDE)


def _shades(mask: list[float], values: Values) -> list[int | None]:
    """Of each token an index into SHADES, None outside the loss."""
    edges = _edges(mask, values)
    sizes = [0.0] * len(mask) if values is None else [abs(value) for value in values]
    return [
        sum(size >= edge > 0 for edge in edges) if m else None
        for m, size in zip(mask, sizes, strict=True)
    ]


def _edges(mask: list[float], values: Values) -> list[float]:
    """Where the shades begin: each is twice the one before, since a few tokens carry most of a
    divergence.
    """
    inside = (
        [] if values is None else [abs(value) for m, value in zip(mask, values, strict=True) if m]
    )
    largest = max(inside, default=0.0)
    return [largest / 2**k for k in range(len(SHADES) - 1, 0, -1)]


def _legend(mask: list[float], values: Values, value_name: str) -> Iterator[Text]:
    edges = _edges(mask, values)
    line = _paint(["seen by the loss"], [SHADES[0]], ("[", "]"))
    if edges[-1] and _colours():
        line = Text(f"seen by the loss, shaded by {value_name}, from:  ")
        for low, shade in zip([0.0, *edges], SHADES, strict=True):
            line.append(f"\u00a0{low:.2g}\u00a0", shade)
    yield line
    if not all(mask):
        yield Text("not seen by the loss", OUTSIDE if _colours() else "")


def _largest(
    pieces: list[str], mask: list[float], values: list[float], value_name: str, count: int = 5
) -> Text:
    """The tokens with the largest values, each after the two before it so that one finds it."""
    order = sorted((i for i, m in enumerate(mask) if m), key=lambda i: -abs(values[i]))[:count]
    where = lambda i: "".join(pieces[max(i - 2, 0) : i + 1]).replace("\n", "").strip()
    largest = ", ".join(f"“{where(i)}” {number(values[i])}" for i in order)
    return Text(f"largest {value_name}, at the last token of: {largest}")


def _new_in(context: Sequence[int], student: Sequence[int]) -> list[bool]:
    """Which tokens of a context the student's lacks."""
    # Most contexts differ in one place: what begins and ends the same way need not be searched,
    # which takes its square.
    shorter = min(len(context), len(student))
    head = next((i for i in range(shorter) if context[i] != student[i]), shorter)
    tail = next(
        (i for i in range(shorter - head) if context[-1 - i] != student[-1 - i]), shorter - head
    )
    middle, theirs = context[head : len(context) - tail], student[head : len(student) - tail]
    new = [False] * head + [True] * len(middle) + [False] * tail
    for block in SequenceMatcher(None, theirs, middle, autojunk=False).get_matching_blocks():
        new[head + block.b : head + block.b + block.size] = [False] * block.size
    return new


def _paint(
    pieces: Sequence[str],
    styles: Sequence[str],
    marks: tuple[str, str],
    limit: int = 1,
    unmarked: str = "",
) -> Text:
    """The pieces in their styles; without colours, pieces with a style other than `unmarked` stand
    between marks.
    """
    text, colours, is_open = Text(), _colours(), False
    hidden = range(2 * limit // 3, len(pieces) - limit // 3) if len(pieces) > limit else range(0)
    for i, (piece, style) in enumerate(zip(pieces, styles, strict=True)):
        if i in hidden:
            if i == hidden[0]:
                text.append(f" ... {_count(len(hidden))} not shown ... ", "italic")
            continue
        marked = not colours and bool(style) and style != unmarked
        if marked != is_open:
            text.append(marks[0] if marked else marks[1])
            is_open = marked
        text.append(piece, style if colours else "")
    return text.append(marks[1]) if is_open else text


def _heading(what: str, detail: str) -> Text:
    return Text.assemble((what, "bold"), (f"  {detail}", "dim"))


def _body(text: Text) -> Padding:
    return Padding(text, (0, 0, 1, 2))


def _count(tokens: int) -> str:
    return f"{tokens:,} token{'' if tokens == 1 else 's'}"


# Progress.


class Progress:
    """How far a run is, what it costs and how long it still takes.

    On a terminal two lines that redraw themselves, a bar and the numbers of the last step;
    elsewhere a line for the first and last step and for one every `every` seconds. Other output in
    between appears above.
    """

    def __init__(self, total: int, *, done: int = 0, every: int | float = 10):
        """`total` steps, of which `done` were made before a resume."""
        self.total, self.every = total, every
        self._printed = float("-inf")
        # The first step of a process compiles: the clock for the rest starts after it.
        self._ends: deque[tuple[int, float]] = deque(maxlen=20)
        self._bar = _Bar(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.percentage:.0f} %"),
            rich.progress.TextColumn("{task.fields[left]}"),
            console=CONSOLE,
            expand=True,
            disable=not _draws(),
        )
        self._task = self._bar.add_task("", total=total, completed=done, left="")

    def update(
        self,
        step: int,
        metrics: Mapping[str, Any],
        seconds: Mapping[str, float],
        speed: Mapping[str, float],
    ) -> None:
        """Step `step` is done. Of its metrics "loss" and "kl" are shown, of its speed tokens a
        second and, where it is known, the utilisation.
        """
        now = time.monotonic()
        self._ends.append((step, now))
        numbers, left = "  ".join(_numbers(metrics, seconds, speed)), self._left(step)
        if _draws():
            self._bar.numbers = numbers
            self._bar.update(self._task, completed=step, left=left)
        elif now - self._printed >= self.every or step == self.total:
            self._printed = now
            say(
                f"step {step:>{len(str(self.total))}}/{self.total}  {numbers}"
                + (f"  {left}" if left else "")
            )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def _left(self, step: int) -> str:
        (first, begin), (_, now) = self._ends[0], self._ends[-1]
        if step == self.total or step == first:
            return ""
        return f"{duration((now - begin) / (step - first) * (self.total - step))} left"


class _Bar(rich.progress.Progress):
    """rich's bar with a line of numbers under it."""

    numbers = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.numbers, style="cyan", no_wrap=True, overflow="ellipsis")


def _numbers(
    metrics: Mapping[str, Any], seconds: Mapping[str, float], speed: Mapping[str, float]
) -> Iterator[str]:
    for name, title in (("loss", "loss"), ("kl", "KL")):
        if name in metrics:
            yield f"{title} {float(metrics[name]):.4f}"
    yield f"{speed['tokens_per_second']:,.0f} tokens/s"
    if "model_flops_utilisation" in speed:
        yield f"MFU {100 * speed['model_flops_utilisation']:.1f} %"
    total = sum(seconds.values())
    for phase, value in seconds.items():
        # What is no phase is told where it matters.
        if phase not in ("waiting", "compiling") or value > 0.05 * total:
            yield f"{phase} {duration(value)}"


# The result.


def results_table(
    rows: Sequence[tuple[str, str, str, str, str]],
    *,
    title: str = "held-out problems, before and after",
) -> None:
    """The rows of `jopd.diagnostics.findings.comparison`, without the columns that are empty."""
    table = Table(
        title=Text(title),
        caption="brackets: 95 % intervals",
        box=box.SIMPLE_HEAD,
        title_style="bold",
        caption_style="dim",
    )
    filled = [any(row[i] for row in rows) for i in range(5)]
    names = ("", "before" if filled[2] else "value", "after", "teacher", "problems")
    columns = [i for i in range(len(names)) if i == 0 or filled[i]]
    for i in columns:
        table.add_column(
            names[i],
            justify="left" if i == 0 else "right",
            style="bold" if names[i] == "after" else None,
        )
    for row in rows:
        # In a narrow window a cell breaks before its interval, not inside it.
        table.add_row(*(Text(row[i].replace(", ", ",\u00a0")) for i in columns))
    CONSOLE.print(table)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> None:
    """Words in columns, folded to the width of the window."""
    grid = Table(title=Text(title), box=box.SIMPLE_HEAD, title_style="bold")
    for name in header:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    CONSOLE.print(grid)


def _frame(content: RenderableType, title: str) -> Panel:
    return Panel(
        content,
        title=Text(title, style="bold"),
        title_align="left",
        border_style="cyan",
        padding=(0, 1),
    )


def _draws() -> bool:
    return CONSOLE.is_terminal and not CONSOLE.is_dumb_terminal and not CONSOLE.quiet


def _colours() -> bool:
    return CONSOLE.color_system is not None and not CONSOLE.no_color
