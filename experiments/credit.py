"""Bias and variance of the credit estimators, exactly: all rows of a small world are written out,
none is sampled.

    python experiments/credit.py

prints the tables of experiments/credit.md and draws experiments/figures/credit.png, in about a
minute on two cores.

Three tokens, one of which ends the row, as the horizon does. A policy is a table of logits, three
in each state, and a state is the tokens written so far. Student and teacher are drawn at random,
PAIRS times: the student's logits are normal, END's lowered by 3 so that rows grow long; the
teacher's are the student's plus a normal gap. A deeper world is the same pair with more states
below.

What is to be estimated is the gradient on those logits of KL(P || Q), P and Q the distributions of
whole rows. Biases and standard deviations are in units of its norm; variances are a single row's,
summed over the logits, and a batch of n rows has one n-th of them. Float64 throughout. The
advantages are made by the package's own functions.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from scipy.stats import t

from jopd.diagnostics.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, save
from jopd.losses import credit

TOKENS, END = 3, 2
PAIRS, HORIZON = 32, 10
GAPS = {"far": 1.0, "near": 0.25}
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
HERE = Path(__file__).parent

returns = jax.jit(credit.return_to_go, static_argnames="discount")
generalized = jax.jit(credit.generalized_advantage, static_argnames=("discount", "gae_lambda"))


class World(NamedTuple):
    """All rows of the horizon, R, and P pairs of policies.

    Attributes:
      tokens, states, mask: [R, T]; states are numbered, shorter prefixes first.
      pi: [P, S, 3], the student's probabilities in each state.
      log_ratio: [P, S, 3], log q - log pi.
      probability: [P, R], of each row.
    """

    tokens: np.ndarray
    states: np.ndarray
    mask: np.ndarray
    pi: np.ndarray
    log_ratio: np.ndarray
    probability: np.ndarray

    @property
    def rewards(self) -> np.ndarray:
        """l_t, [P, R, T]."""
        return np.where(self.mask, self.log_ratio[:, self.states, self.tokens], 0)

    @property
    def kl(self) -> np.ndarray:
        """KL(pi || q) in each state, [P, S]."""
        return -(self.pi * self.log_ratio).sum(axis=2)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Of values [P, R, T] by state and token, each times its row's probability: [P, S, 3]."""
        weighted = np.where(self.mask, values, 0) * self.probability[..., None]
        pair = np.arange(len(self.pi))[:, None, None]
        where = np.ravel_multi_index(
            np.broadcast_arrays(pair, self.states, self.tokens), self.pi.shape
        )
        return np.bincount(where.ravel(), weighted.ravel(), self.pi.size).reshape(self.pi.shape)

    @property
    def reach(self) -> np.ndarray:
        """How probably a row comes through each state, [P, S]."""
        return self.sums(np.ones_like(self.rewards)).sum(axis=2)


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))


def world(horizon: int, gap: float) -> World:
    prefixes = [
        prefix for length in range(horizon) for prefix in itertools.product((0, 1), repeat=length)
    ]
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    rows = [(*prefix, END) for prefix in prefixes] + list(itertools.product((0, 1), repeat=horizon))
    tokens, states, mask = (np.zeros((len(rows), horizon), kind) for kind in (int, int, bool))
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
        states[i, : len(row)] = [number[row[:k]] for k in range(len(row))]
    drawn = np.stack(
        [np.random.default_rng(seed).normal(size=(2**HORIZON, 2, TOKENS)) for seed in range(PAIRS)]
    )
    student, difference = drawn[:, : len(prefixes), 0], drawn[:, : len(prefixes), 1]
    student[..., END] -= 3
    logp, logq = log_softmax(student), log_softmax(student + gap * difference)
    probability = np.exp(np.where(mask, logp[:, states, tokens], 0).sum(axis=2))
    return World(tokens, states, mask, np.exp(logp), logq - logp, probability)


# Advantages, [P, R, T]. The package has the rows of a batch below one another.


def below(world: World, function: Callable, *arrays: np.ndarray, **settings: float) -> np.ndarray:
    shape = world.rewards.shape
    rows = [
        jnp.asarray(a.reshape(-1, shape[-1])) for a in (*arrays, np.broadcast_to(world.mask, shape))
    ]
    return np.asarray(function(*rows, **settings)).reshape(shape)


def return_to_go(world: World, discount: float = 1.0) -> np.ndarray:
    return below(world, returns, world.rewards, discount=discount)


def gae(world: World, values: np.ndarray, gae_lambda: float) -> np.ndarray:
    at_tokens = values[:, world.states]
    return below(world, generalized, world.rewards, at_tokens, discount=1.0, gae_lambda=gae_lambda)


def exact_values(world: World) -> np.ndarray:
    """V, the mean of what a row earns from a state on, [P, S]."""
    return world.sums(return_to_go(world)).sum(axis=2) / world.reach


def best_baseline(world: World, advantage: np.ndarray) -> np.ndarray:
    """The baseline of each state that leaves the least variance, [P, S]: the mean weighted with the
    squared score.
    """
    squares = squared_scores(world)
    weights = world.sums(np.ones_like(advantage)) * squares
    return (world.sums(advantage) * squares).sum(axis=2) / weights.sum(axis=2)


def estimators(world: World) -> dict[str, np.ndarray]:
    immediate, later, exact = (
        world.rewards,
        return_to_go(world),
        exact_values(world)[:, world.states],
    )
    kl = world.kl[:, world.states]
    best = lambda advantage: best_baseline(world, advantage)[:, world.states]
    return {
        "immediate": immediate,
        "immediate + KL (vOPD)": immediate + kl,
        "immediate − best baseline": immediate - best(immediate),
        "discounted 0.5": return_to_go(world, 0.5),
        "discounted 0.9": return_to_go(world, 0.9),
        "return-to-go": later,
        "return-to-go + KL": later + kl,
        "return-to-go − exact V": later - exact,
        "return-to-go − best baseline": later - best(later),
        "GAE λ 0, V = −KL": gae(world, -world.kl, 0.0),
        "GAE λ 0.95, V = −KL": gae(world, -world.kl, 0.95),
        "GAE λ 0, exact V": gae(world, exact_values(world), 0.0),
        "GAE λ 0.95, exact V": gae(world, exact_values(world), 0.95),
    }


CRITICS = {
    "V = 0": lambda world: 0 * world.kl,
    "V = −KL": lambda world: -world.kl,
    "exact V": exact_values,
}


# Gradients on the student's logits, [P, S, 3].


def expected(world: World, advantage: np.ndarray) -> np.ndarray:
    """The mean of the gradient of -sum_t A_t log pi(y_t), A_t held fixed."""
    chosen = world.sums(advantage)
    return world.pi * chosen.sum(axis=2, keepdims=True) - chosen


def squared_scores(world: World) -> np.ndarray:
    """|e_v - pi|^2, of the gradient of log pi(v) on a state's logits, [P, S, 3]."""
    return 1 - 2 * world.pi + (world.pi**2).sum(axis=2, keepdims=True)


def variance(world: World, advantage: np.ndarray) -> np.ndarray:
    """[P], of one row's gradient, summed over logits. No row meets a state twice, so its tokens'
    squares add up.
    """
    return (world.sums(advantage**2) * squared_scores(world)).sum(axis=(1, 2)) - norm(
        expected(world, advantage)
    ) ** 2


def shared_variance(world: World, advantage: np.ndarray) -> np.ndarray:
    """The same of three parameters alone, which are added to the logits of every state alike."""
    score = np.eye(TOKENS)[world.tokens] - world.pi[:, world.states]
    rows = ((advantage * world.mask)[..., None] * score).sum(axis=2)
    mean = expected(world, advantage).sum(axis=1)
    return (world.probability * (rows**2).sum(axis=2)).sum(axis=1) - (mean**2).sum(axis=1)


def objectives(world: World) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of KL(P || Q) and of sum_s d(s) KL(pi || q), the reach d held fixed, by
    differentiating those.
    """

    def of_rows(logits, logq, reach):
        logp = jax.nn.log_softmax(logits)
        log_p, log_q = (
            jnp.where(world.mask, x[world.states, world.tokens], 0).sum(axis=1)
            for x in (logp, logq)
        )
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    def of_states(logits, logq, reach):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(reach[:, None] * jnp.exp(logp) * (logp - logq))

    logits = jnp.log(world.pi)
    found = (
        jax.vmap(jax.grad(f))(logits, logits + world.log_ratio, world.reach)
        for f in (of_rows, of_states)
    )
    whole, fixed = map(np.asarray, found)
    return whole, fixed


def norm(gradient: np.ndarray) -> np.ndarray:
    return np.sqrt((gradient**2).sum(axis=(1, 2)))


class Measured(NamedTuple):
    """Of one estimator, [P] each; biases and variance in units of the norm of the gradient that it
    is held against.
    """

    bias: np.ndarray
    fixed_state_bias: np.ndarray
    variance: np.ndarray
    raw_variance: np.ndarray
    raw_shared_variance: np.ndarray

    def error(self, rows: np.ndarray) -> np.ndarray:
        """[P, n], the root of the mean squared error of batches of so many rows."""
        return np.sqrt(self.bias[:, None] ** 2 + self.variance[:, None] / rows)


def measure(world: World, advantages: dict[str, np.ndarray]) -> dict[str, Measured]:
    whole, fixed = objectives(world)
    found = {}
    for name, advantage in advantages.items():
        gradient, raw = expected(world, advantage), variance(world, advantage)
        found[name] = Measured(
            norm(gradient - whole) / norm(whole),
            norm(gradient - fixed) / norm(fixed),
            raw / norm(whole) ** 2,
            raw,
            shared_variance(world, advantage),
        )
    return found


def bent(world: World) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A return after what is often done to it: its expected gradient's norm, in the true one's, and
    cosine with it.
    """
    whole, _ = objectives(world)
    plain, lengths = return_to_go(world), world.mask.sum(axis=1)[:, None]
    clipped = return_to_go(world._replace(log_ratio=np.clip(world.log_ratio, -0.5, 0.5)))

    # Rows written with the smallest set of tokens that has 0.9 of the probability, and scored as if
    # with all.
    larger = (world.pi[..., None, :] > world.pi[..., None]) * world.pi[..., None, :]
    nucleus = np.where(larger.sum(axis=3) < 0.9, world.pi, 0)
    nucleus /= nucleus.sum(axis=2, keepdims=True)
    written = np.where(world.mask, nucleus[:, world.states, world.tokens], 1).prod(axis=2)

    # Rows cut halfway: what follows counts as nothing, or as what the exact critic says of it.
    half = HORIZON // 2
    early = np.arange(HORIZON) < half
    cut = return_to_go(world._replace(mask=world.mask & early))
    went_on = np.where(lengths[:, 0] > half, exact_values(world)[:, world.states[:, half]], 0)
    above = slice(2**half - 1)  # the states before the cut

    found = {
        "each row divided by its length": (expected(world, plain / lengths), whole),
        "log-ratios clipped to ±0.5": (expected(world, clipped), whole),
        "rows written by top-p 0.9": (expected(world._replace(probability=written), plain), whole),
        "rows cut halfway": (expected(world, cut)[:, above], whole[:, above]),
        "the same, exact bootstrap": (
            expected(world, cut + went_on[..., None])[:, above],
            whole[:, above],
        ),
    }
    return {
        name: (norm(a) / norm(b), (a * b).sum(axis=(1, 2)) / (norm(a) * norm(b)))
        for name, (a, b) in found.items()
    }


# What stands on the page: means over the pairs with 95 % intervals.


def mean(values: np.ndarray) -> tuple[float, float]:
    """And the half-width by Student's t."""
    return float(values.mean()), float(
        t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    )


def geometric(values: np.ndarray) -> np.ndarray:
    """Mean and interval of what spreads over factors."""
    centre, half = mean(np.log(values))
    return np.exp([centre, centre - half, centre + half])


def percent(values: np.ndarray) -> str:
    centre, half = mean(100 * values)
    return f"{centre:.1f} ± {half:.1f}" if np.abs(values).max() > 1e-9 else "0"


def factor(values: np.ndarray) -> str:
    show = lambda x: f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"
    centre, low, high = map(show, geometric(values))
    return f"{centre} [{low}, {high}]"


def power(values: np.ndarray) -> str:
    return "{:.1f} ± {:.1f}".format(*mean(values))


def table(title: str, *lines: list[str]) -> None:
    print(f"\n**{title}**\n")
    for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]):
        print("| " + " | ".join(line) + " |")


def print_estimators(
    gap: str, worlds: dict[int, World], found: dict[int, dict[str, Measured]]
) -> None:
    half, deep = HORIZON // 2, HORIZON
    lengths = {horizon: worlds[horizon].reach.sum(axis=1) for horizon in (half, deep)}
    slope = lambda raw: power(np.log(raw[deep] / raw[half]) / np.log(lengths[deep] / lengths[half]))
    lines = [
        [
            name,
            percent(measured.bias),
            percent(measured.fixed_state_bias),
            factor(measured.variance),
            slope({horizon: found[horizon][name].raw_variance for horizon in lengths}),
            slope({horizon: found[horizon][name].raw_shared_variance for horizon in lengths}),
        ]
        for name, measured in found[deep].items()
    ]
    per_state = (worlds[deep].reach * worlds[deep].kl).sum(axis=1) / lengths[deep]
    title = (
        f"Teacher {gap}: {per_state.mean():.3f} nats a token; "
        f"horizon {deep}, mean length {lengths[deep].mean():.1f}"
    )
    head = [
        "estimator",
        "bias, whole rows (%)",
        "bias, fixed states (%)",
        "variance",
        "its power of the length",
    ]
    table(title, [*head, "logits shared"], *lines)


def print_lambdas(found: dict[str, dict[str, Measured]]) -> None:
    lines = [
        [
            f"{gae_lambda:g}",
            *(percent(found[critic][f"{gae_lambda:g}"].bias) for critic in CRITICS),
            *(factor(found[critic][f"{gae_lambda:g}"].variance) for critic in CRITICS),
        ]
        for gae_lambda in LAMBDAS
    ]
    head = [
        *(f"bias (%), {critic}" for critic in CRITICS),
        *(f"variance, {critic}" for critic in CRITICS),
    ]
    table(f"GAE, teacher far, horizon {HORIZON}", ["λ", *head], *lines)


def print_horizons(found: dict[str, dict[int, dict[str, Measured]]]) -> None:
    shown = [
        (gap, name) for gap in GAPS for name in ("immediate", "GAE λ 0, V = −KL", "discounted 0.9")
    ]
    lines = [
        [str(horizon), *(percent(found[gap][horizon][name].bias) for gap, name in shown)]
        for horizon in range(1, HORIZON + 1)
    ]
    table("Bias (%) by horizon", ["horizon", *(f"{gap}: {name}" for gap, name in shown)], *lines)


def print_break_even(found: dict[str, dict[str, Measured]]) -> None:
    lines = []
    for name in (
        "return-to-go",
        "return-to-go − exact V",
        "GAE λ 0.95, exact V",
        "GAE λ 0, exact V",
    ):
        rows = []
        for gap in GAPS:
            biased, unbiased = found[gap]["immediate"], found[gap][name]
            rows.append(
                factor(np.maximum((unbiased.variance - biased.variance) / biased.bias**2, 1))
            )
        lines.append([name, *rows])
    title = (
        f"Rows a batch needs before its error is below that of immediate credit, horizon {HORIZON}"
    )
    table(title, ["", *(f"teacher {gap}" for gap in GAPS)], *lines)


def print_baselines(found: dict[str, dict[str, Measured]]) -> None:
    lines = []
    for after, before in (
        ("immediate + KL (vOPD)", "immediate"),
        ("immediate − best baseline", "immediate"),
        ("return-to-go + KL", "return-to-go"),
        ("return-to-go − exact V", "return-to-go"),
        ("return-to-go − best baseline", "return-to-go"),
    ):
        ratios = [found[gap][after].variance / found[gap][before].variance for gap in GAPS]
        lines.append(
            [
                after,
                *(text for r in ratios for text in (percent(r - 1), f"{(r < 1).sum()} of {PAIRS}")),
            ]
        )
    head = [text for gap in GAPS for text in (f"teacher {gap}: change (%)", "lower in")]
    table(f"What a baseline does to the variance, horizon {HORIZON}", ["", *head], *lines)


def print_bent(worlds: dict[str, World]) -> None:
    found = {gap: bent(world) for gap, world in worlds.items()}
    show = lambda values: "{:.2f} ± {:.2f}".format(*mean(values))
    lines = [
        [name, *(show(number) for gap in GAPS for number in found[gap][name])]
        for name in next(iter(found.values()))
    ]
    head = [text for gap in GAPS for text in (f"teacher {gap}: norm", "cosine")]
    table(f"What bends a return, horizon {HORIZON}: 1 and 1 is unbiased", ["", *head], *lines)


# The figure, of the far teacher.

COLORS = {
    "immediate": BLUE,
    "discounted 0.9": SKY,
    "return-to-go": ORANGE,
    "return-to-go − exact V": PURPLE,
    "GAE λ 0, V = −KL": GREEN,
    "GAE λ 0, exact V": BLACK,
}


def with_band(
    axes: Axes, x, values: list[np.ndarray], color: str, name: str, interval: Callable
) -> None:
    centre, low, high = np.transpose([interval(v) for v in values])
    axes.plot(x, centre, color=color, label=name)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def draw(found: dict[int, dict[str, Measured]], paths: dict[str, dict[str, Measured]]) -> Figure:
    figure = Figure(figsize=(13, 9.6), layout="constrained")
    (bias, spread), (trade, batch) = figure.subplots(2, 2)
    horizons, deep = list(found), found[HORIZON]
    around = lambda v: (mean(v)[0], mean(v)[0] - mean(v)[1], mean(v)[0] + mean(v)[1])

    for name in ("immediate", "GAE λ 0, V = −KL", "discounted 0.9", "return-to-go"):
        with_band(
            bias, horizons, [found[h][name].bias for h in horizons], COLORS[name], name, around
        )
    bias.set(title="Immediate credit is biased, more so in long rows", xlabel="horizon (tokens)")
    bias.set(ylabel="bias, share of the gradient", ylim=(-0.01, None))
    bias.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %", decimals=0))

    for name in ("return-to-go", "return-to-go − exact V", "immediate", "GAE λ 0, exact V"):
        with_band(
            spread,
            horizons,
            [found[h][name].raw_variance for h in horizons],
            COLORS[name],
            name,
            geometric,
        )
    spread.set(
        title="A return's variance grows faster",
        xlabel="horizon (tokens)",
        xscale="log",
        yscale="log",
    )
    spread.set_ylabel("variance of one row's gradient")
    spread.set_xticks([1, 2, 4, 6, 8, 10], ["1", "2", "4", "6", "8", "10"])
    spread.minorticks_off()

    for (critic, path), color in zip(paths.items(), (GREY, GREEN, BLACK), strict=True):
        x, *x_ends = np.transpose([around(path[f"{h:g}"].bias) for h in LAMBDAS])
        y, *y_ends = np.transpose([geometric(path[f"{h:g}"].variance) for h in LAMBDAS])
        trade.plot(x, y, color=color, marker="o", label=f"GAE, {critic}", clip_on=False)
        trade.hlines(y, *x_ends, color=color, alpha=0.35, linewidth=1.2)
        trade.vlines(x, *y_ends, color=color, alpha=0.35, linewidth=1.2)
        if critic == "V = 0":
            for *at, h in list(zip(x, y, LAMBDAS, strict=True))[1:-1]:
                trade.annotate(
                    f"λ {h:g}", at, (7, 5), textcoords="offset points", color=color, fontsize=11
                )
    for name, at_lambda, offset, side in (
        ("immediate", 0, (4, -22), "right"),
        ("return-to-go", 1, (12, -2), "left"),
    ):
        at = (deep[name].bias.mean(), geometric(deep[name].variance)[0])
        trade.plot(*at, "o", color=COLORS[name], markersize=11, zorder=3)
        trade.annotate(
            f"{name} (λ {at_lambda})",
            at,
            offset,
            textcoords="offset points",
            color=COLORS[name],
            ha=side,
        )
    trade.set(
        title=f"What λ buys, and what a critic buys (horizon {HORIZON})",
        xlabel="bias, share of the gradient",
    )
    trade.set(ylabel="variance of one row, in squared gradients", yscale="log", ylim=(4.5, None))
    trade.set_yticks([5, 10, 20, 30])
    trade.minorticks_off()
    trade.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %", decimals=0))

    rows = 2.0 ** np.arange(0, 15)
    for name in (
        "immediate",
        "return-to-go",
        "return-to-go − exact V",
        "GAE λ 0, V = −KL",
        "GAE λ 0, exact V",
    ):
        with_band(batch, rows, list(deep[name].error(rows).T), COLORS[name], name, geometric)
    batch.set(
        title="The best one depends on the batch",
        xlabel="rows in the batch",
        xscale="log",
        yscale="log",
    )
    batch.set_ylabel("error, in gradients")

    for axes in (spread, trade, batch):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    batch.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    for axes in (bias, spread, trade, batch):
        axes.legend(fontsize=11)
    return figure


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    start = time.monotonic()
    worlds = {gap: {h: world(h, size) for h in range(1, HORIZON + 1)} for gap, size in GAPS.items()}
    found = {
        gap: {horizon: measure(one, estimators(one)) for horizon, one in deeper.items()}
        for gap, deeper in worlds.items()
    }
    deep = {gap: worlds[gap][HORIZON] for gap in GAPS}
    paths = {
        critic: measure(
            deep["far"], {f"{h:g}": gae(deep["far"], values(deep["far"]), h) for h in LAMBDAS}
        )
        for critic, values in CRITICS.items()
    }
    for gap in GAPS:
        print_estimators(gap, worlds[gap], found[gap])
    print_lambdas(paths)
    print_horizons(found)
    print_break_even({gap: found[gap][HORIZON] for gap in GAPS})
    print_baselines({gap: found[gap][HORIZON] for gap in GAPS})
    print_bent(deep)
    with matplotlib.rc_context(STYLE):
        figure, words = draw(found["far"], paths), f"{PAIRS} pairs of policies, teacher far"
        save(
            figure,
            HERE / "figures" / "credit.png",
            words,
            "bands and bars: 95 % intervals over pairs",
        )
    print(f"\n{PAIRS} pairs, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
