"""The pictures of what only some methods know of a batch's tokens: the evidence for each, and what
becomes of it.
"""

from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from jopd.diagnostics.style import COLORS, STYLE, Shown, aside, new_figure, save


def evidence_histogram(
    evidence: Float[np.ndarray, " N"],
    kept: Bool[np.ndarray, " N"],
    path: Path,
    shown: Shown = Shown(),
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
        figure = new_figure(7.2)
        axes = figure.subplots()
        for chosen, role, name in ((~kept, "aside", "silenced"), (kept, "student", "kept")):
            label, color = f"{name}: {100 * chosen.mean():.0f} %", COLORS[role]
            axes.hist(values[chosen], edges, color=color, alpha=0.8, label=label, linewidth=0)
        axes.axvline(0, color=COLORS["line"], linestyle="--", linewidth=1.2)
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
        return save(figure, path, shown.run, aside("one training batch", shown.batches))


def transport_against_loss(
    losses: Float[np.ndarray, " N"],
    costs: Float[np.ndarray, " N"],
    path: Path,
    shown: Shown = Shown(),
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
        figure = new_figure(7.2)
        axes = figure.subplots()
        names = ("windows", "") if threshold is None else ("really divergent", "same future")
        parts = zip((divergent, ~divergent), ("student", "aside"), names, strict=True)
        for chosen, role, name in parts:
            if chosen.any():
                share = f"{name}: {100 * chosen.mean():.0f} %"
                label = f"{len(costs):,} {name}" if threshold is None else share
                style = {"color": COLORS[role], "alpha": 0.5, "linewidths": 0}
                axes.scatter(losses[chosen], costs[chosen], 18, label=label, **style)
        if threshold is not None:
            label = f"threshold: {threshold:.2f}"
            axes.axhline(threshold, color=COLORS["line"], linestyle="--", label=label)
        axes.set_xscale("log")
        axes.set(
            title="Loss here, and what becomes of it",
            xlabel="KL to the teacher at the token (nats)",
        )
        axes.set(ylabel="transport cost of the window", ylim=(0, None))
        figure.legend(loc="outside lower center", ncols=3)
        return save(figure, path, shown.run, aside("one training batch", shown.batches))
