"""The memory that the vocabulary stage's gradient needs beside its arguments, as the vocabulary,
the rows' length and the number of views grow: compiled for this machine, not run.

    python experiments/benchmarks/vocabulary_memory.py

Writes experiments/figures/vocabulary_memory.png and prints its numbers. 16 rows, width 1,024,
float32; the logits of 4,096 tokens at once.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from vocabulary import FORMS, gradient_of

sys.path.insert(0, str(Path(__file__).parents[1]))

from study_tables import markdown

from jopd.diagnostics.style import BLUE, GREY, ORANGE

ROWS, WIDTH, TOKENS = 16, 1024, 4096
USUAL = {"vocabulary": 131_072, "length": 2048, "views": 1}
SWEEPS = {
    "vocabulary": (32_768, 65_536, 131_072, 262_144),
    "length": (512, 1024, 2048, 4096, 8192),
    "views": (1, 2, 3),
}
COLOURS = dict(zip(FORMS, (GREY, ORANGE, BLUE), strict=True))
GIB = 2.0**30


def memory(form: str, *, vocabulary: int, length: int, views: int) -> float:
    """GiB beside the arguments and the two gradients, which are the caller's."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    reader = array(ROWS, length, WIDTH), array(WIDTH, vocabulary)
    teachers = {f"view {i}": reader for i in range(views)}
    tokens = jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
    gradient = gradient_of(form, TOKENS // ROWS, vocabulary)
    found = gradient.lower(*reader, teachers, tokens).compile().memory_analysis()
    return found.temp_size_in_bytes / GIB


def main() -> None:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    rows = [["grows", "to", *(f"{form} (GiB)" for form in FORMS)]]
    for axes, (name, sizes) in zip(figure.subplots(1, 3), SWEEPS.items(), strict=True):
        found = {form: [memory(form, **USUAL | {name: size}) for size in sizes] for form in FORMS}
        for form, values in found.items():
            axes.plot(sizes, values, "o-", color=COLOURS[form], label=form)
        axes.set(xlabel=name, ylabel="GiB beside the arguments", yscale="log")
        if name != "views":
            axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
        axes.minorticks_off()
        for i, size in enumerate(sizes):
            rows.append([name, f"{size:,}", *(f"{found[form][i]:.2f}" for form in FORMS)])
    figure.axes[0].legend(frameon=False, loc="upper left")
    target = Path(__file__).parents[1] / "figures" / "vocabulary_memory.png"
    figure.savefig(target, dpi=150)
    print(markdown(rows))


if __name__ == "__main__":
    main()
