"""TOPD, near-future guidance: where student and teacher differ most, both write on, and the student
learns from that.

    D_t    = KL(pi_t || q_t)                           at every token of the student's completion
    W_S, W_T                                           K tokens each, by student and teacher, that
                                                       go on from x, y_<t
    C_ij   = 1 - cos(E[W_S_i], E[W_T_j])               E: by default the student's input embeddings
    gamma  = argmin <gamma, C> - epsilon entropy(gamma)        over plans with uniform marginals
    D_OT   = <gamma, C>
    w_ij   = gamma_ij / sum_j gamma_ij                 how much of the target at i is W_T_j
    L_traj = mean over windows and i of -sum_j w_ij log pi(W_T_j | x, y_<t, W_S_<i)
    loss   = token_mean( D_t ) + trajectory_coefficient L_traj

Windows start at up to `windows` places a row, drawn from those of highest D; L_traj takes those
alone that are really divergent, whose D_OT exceeds the 75th percentile of D_OT at places of low D.
For that percentile each row also probes one place below its median D. The others are false alarms:
two ways to say the same.

Where student and teacher agree the first term and its gradient are 0. L_traj is not: a
cross-entropy with what another draw from the same distribution said, held off by the gate for the
most part.

Deviations: the down-weighting ablation caps D at the row's median on the tokens that have a window
alone, and as a weight, so the mean's count falls with it.

Source: TOPD, arXiv:2606.00305. Grade P for the two terms, the gate and the targets, whose rows as
printed sum to 1/K.
Reconstruction: the paper does not state the solver (log-domain Sinkhorn), the cost and its
embeddings, how candidates are drawn, the threshold, the windows' sampling settings, the
coefficient, or on which median its ablation caps. The control `teacher_window` is ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jopd.losses import base
from jopd.losses.divergences import comparison, comparison_of, reverse_kl
from jopd.losses.optimal_transport import check_solver, soft_targets, transport
from jopd.losses.vocabulary import log_softmax
from jopd.losses.windows import Compared, Places, Space, Window, Windows

State = Mapping[str, Array]

# How many low-loss windows the running percentile looks back on, and the share of high-loss ones
# that is capped.
REMEMBERED = 256
CAPPED = 0.3


@dataclasses.dataclass(frozen=True)
class TOPD(base.Method):
    """Reverse KL, and the teacher's near future as soft targets where the two part for good.

    Attributes:
      windows: places a row, at most, from which both models write on.
      window_tokens: how many tokens they write there, at most 50; places are so far apart.
      share: of a row's tokens, those of highest divergence are candidates for a place, in (0, 0.5].
      space: what tokens of the windows are compared by. `embeddings`: the student's input
        embeddings, the same wherever a token stands; `hidden_states`: the teacher's final hidden
        states, of both windows, after it has read the token.
      epsilon: weight of the plan's entropy. A small one makes targets of one token, 0.5 smears them
        over the window.
      iterations: of the transport's solver.
      percentile: of the transport cost at low-loss places, above which a window is really
        divergent.
      trajectory_coefficient: of the windows' loss beside the divergence.
      temperature: divides the logits of student and teacher alike.
      target: what a window teaches: the teacher's tokens by their transport onto the student's
        (`transport`), or, the control, the teacher's window itself from the student's prefix
        (`teacher_window`).
      down_weight: an ablation: caps the divergence at the row's median on the 30 % of the windows'
        first tokens whose transport costs least (`low_transport`), or as many where it costs most
        (`high_transport`).
    """

    name = "topd"
    source = "arXiv:2606.00305 (P; solver, cost, selection, threshold and coefficient R)"
    ordered = True
    windows: int = 2
    window_tokens: int = 50
    share: float = 0.0225
    space: Space = "embeddings"
    epsilon: float = 0.05
    iterations: int = 200
    percentile: float = 75.0
    trajectory_coefficient: float = 0.1
    temperature: float = 1.0
    target: Literal["transport", "teacher_window"] = "transport"
    down_weight: Literal["none", "low_transport", "high_transport"] = "none"

    def __post_init__(self):
        if self.windows < 1:
            raise ValueError(
                f"windows={self.windows} must be at least 1: without windows use --method opd"
            )
        if not 1 <= self.window_tokens <= 50:
            raise ValueError(
                f"window_tokens={self.window_tokens} must lie in 1..50: the future that counts is "
                "near"
            )
        if not 0 < self.share <= 0.5:
            raise ValueError(
                f"share={self.share} must lie in (0, 0.5]: candidates are tokens above the median "
                "loss"
            )
        base.check_known("space", [self.space], get_args(Space))
        check_solver(self.epsilon, self.iterations)
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile} must lie in [0, 100]")
        if not 0 <= self.trajectory_coefficient < float("inf"):
            raise ValueError(
                f"trajectory_coefficient={self.trajectory_coefficient} must be a finite number of "
                "0 or more"
            )
        base.check_temperature(self.temperature)
        base.check_known("target", [self.target], ("transport", "teacher_window"))
        base.check_known(
            "down_weight", [self.down_weight], ("none", "low_transport", "high_transport")
        )

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        divergence = Divergence(self.temperature).token_terms(
            student_logits, teacher_logits, tokens, extras
        )
        return divergence | comparison(student_logits, teacher_logits["teacher"])

    @property
    def tiled(self) -> bool:
        return self.temperature == 1

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        divergence = Divergence(self.temperature).tiled_terms(moments)
        return divergence | comparison_of(moments, "teacher")

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        loss = base.token_mean(terms["divergence"], mask, inputs)
        return {"divergence": base.LossTerm(1.0, *loss)}, base.masked_totals(terms, mask)

    def scoring(self) -> base.Stage:
        return Divergence(self.temperature)

    def prepare(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> dict[str, Array]:
        return {"scored_divergence": terms["divergence"]}

    @property
    def near_future(self) -> Windows:
        return self

    @property
    def streams(self) -> Mapping[str, base.Loss]:
        return {"windows": TrajectoryLoss(self.trajectory_coefficient, self.temperature)}

    def init_state(self) -> dict[str, Array]:
        return {
            "low_costs": jnp.zeros(REMEMBERED, jnp.float32),
            "written": jnp.zeros((), jnp.int32),
        }

    def choose_windows(
        self, inputs: base.Inputs, mask: base.Mask, noise: Float[Array, "B T"]
    ) -> Places:
        """Where the windows begin, from what `prepare` made; see `choose`."""
        return choose(
            inputs["scored_divergence"],
            mask,
            noise,
            windows=self.windows,
            apart=self.window_tokens,
            share=self.share,
        )

    def compare_windows(
        self,
        places: Places,
        student: Window,
        teacher: Window,
        inputs: base.Inputs,
        mask: base.Mask,
        state: State,
    ) -> Compared:
        """What the windows that student and teacher wrote at the places are good for."""
        plan, costs = transport(
            student.embeddings,
            teacher.embeddings,
            student.mask,
            teacher.mask,
            epsilon=self.epsilon,
            iterations=self.iterations,
        )
        costs = costs.reshape(places.positions.shape)
        written = jnp.any(student.mask, axis=1) & jnp.any(teacher.mask, axis=1)
        compared = places.valid & written.reshape(places.valid.shape)
        high, high_costs, probe, probe_costs = (
            compared[:, :-1],
            costs[:, :-1],
            compared[:, -1:],
            costs[:, -1:],
        )

        # Micro-batches and the mesh set the rows in another order.
        rows = jnp.arange(len(costs)) if places.rows is None else places.rows
        as_written = jnp.argsort(rows)
        after = remember(state, probe_costs[as_written, 0], probe[as_written, 0])
        limit = threshold(after, self.percentile).astype(costs.dtype)
        divergent = high & (high_costs > limit)

        candidates = lambda x: x.reshape(*costs.shape, *x.shape[1:])[:, :-1].reshape(
            -1, *x.shape[1:]
        )
        weights = soft_targets(plan)
        if self.target == "transport":
            stream, ids = student, jnp.broadcast_to(teacher.tokens[:, None], weights.shape)
        else:
            stream, ids, weights = (
                teacher,
                teacher.tokens[..., None],
                jnp.ones_like(weights[..., :1]),
            )

        divergence = inputs["scored_divergence"]
        weight = {}
        if self.down_weight != "none":
            sign = 1 if self.down_weight == "low_transport" else -1
            capped = lowest(sign * high_costs[as_written], high[as_written], CAPPED)
            capped = capped[jnp.argsort(as_written)]
            weight["weight"] = cap(divergence, mask, places.positions[:, :-1], capped)
        perplexity = jnp.exp(_entropy(soft_targets(plan)))
        known = jnp.isfinite(limit)
        return Compared(
            tokens=candidates(stream.tokens),
            mask=candidates(stream.mask) & divergent.reshape(-1)[:, None],
            extras={"target_ids": candidates(ids), "target_weights": candidates(weights)},
            inputs=weight,
            state=after,
            metrics={
                "transport_high": base.masked_total(high_costs, high),
                "transport_low": base.masked_total(probe_costs, probe),
                "transport_threshold": base.Total(
                    jnp.where(known, limit, 0), known.astype(limit.dtype)
                ),
                "false_alarms": base.masked_total(~divergent, high & known),
                "divergent_windows": base.masked_total(
                    divergent.sum(axis=1, keepdims=True), jnp.any(mask, axis=1, keepdims=True)
                ),
                "target_perplexity": base.masked_total(
                    perplexity, student.mask & compared.reshape(-1)[:, None]
                ),
            },
            points={
                "transport": costs,
                "divergence": jnp.take_along_axis(divergence, places.positions, axis=1),
                "compared": compared,
            },
        )

    def variables(self) -> base.Variables:
        aim = "by optimal transport" if self.target == "transport" else "as it stands"
        gates = [f"windows above the {self.percentile:g}th percentile of low-loss transport"]
        gates += [f"loss capped at {self.down_weight.replace('_', ' ')}"] * (
            self.down_weight != "none"
        )
        return base.Variables(
            state=f"student rollouts; {self.window_tokens} tokens of both models from their "
            "prefixes",
            support="full vocabulary; in windows the teacher's sampled tokens",
            credit=f"immediate; the teacher's next {self.window_tokens} tokens {aim}",
            routing="none",
            gates=", ".join(gates),
            regularisation="none",
        )


@dataclasses.dataclass(frozen=True)
class TrajectoryLoss(base.Loss):
    """Cross-entropy with a few weighted tokens at each position of a window; never 0 at the
    teacher, who draws anew.

    Attributes:
      coefficient: of the loss beside the method's own.
      temperature: divides the logits.
    """

    name = "topd_windows"
    extras = ("target_ids", "target_weights")
    why_not_zero = "a cross-entropy with what another draw from the same distribution said"
    coefficient: float = 0.1
    temperature: float = 1.0

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        logp = log_softmax(student_logits, self.temperature)
        ids, weights = (
            extras["target_ids"],
            jax.lax.stop_gradient(extras["target_weights"]).astype(logp.dtype),
        )
        columns = jax.lax.broadcasted_iota(ids.dtype, logp.shape, logp.ndim - 1)
        # One comparison a pair, summed at each vocabulary entry: XLA fuses all of them into the sum
        # below, and neither the target distribution nor an array of every pair and entry is ever
        # held.
        weight = sum(
            jnp.where(columns == ids[..., j, None], weights[..., j, None], 0)
            for j in range(ids.shape[-1])
        )
        return {"cross_entropy": -jnp.sum(jnp.where(weight > 0, weight * logp, 0), axis=-1)}

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        loss = base.token_mean(terms["cross_entropy"], mask, inputs)
        return {"trajectory": base.LossTerm(self.coefficient, *loss)}, base.masked_totals(
            terms, mask
        )


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The stage of the scoring pass: the reverse KL alone."""

    second_pass = None
    temperature: float = 1.0

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        student, teacher = student_logits, teacher_logits["teacher"]
        return {
            "divergence": reverse_kl(
                log_softmax(student, self.temperature), log_softmax(teacher, self.temperature)
            )
        }

    @property
    def tiled(self) -> bool:
        return self.temperature == 1

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        return {"divergence": moments.teachers["teacher"].reverse_kl}


def choose(
    divergence: Float[Array, "B T"],
    mask: base.Mask,
    noise: Float[Array, "B T"],
    *,
    windows: int,
    apart: int,
    share: float,
) -> Places:
    """Places [B, windows + 1] for windows to begin.

    >>> divergence, on = jnp.array([[0.1, 5.0, 0.2, 0.3]]), jnp.ones((1, 4), bool)
    >>> noise = jnp.array([[0.1, 0.2, 0.3, 0.4]])
    >>> choose(divergence, on, noise, windows=1, apart=2, share=0.25).positions.tolist()
    [[1, 2]]

    Candidates are a row's max(1, ceil(share * tokens)) tokens of highest divergence, the earlier
    one of equals. Up to `windows` of them are taken, those of highest noise and at least `apart`
    from each other; then, as the probe, one token whose divergence is below the row's median.
    Columns that find none are not valid.

    Args:
      divergence: each token's.
      mask: on where a token was written.
      noise: random numbers without ties, which make the draws.
      windows, apart, share: as above.
    """
    length = mask.shape[1]
    # Worked out beforehand, as 0.0225 * 400 in float32 may be more than 9.
    counts = np.maximum(1, np.ceil(np.round(share * np.arange(length + 1), 9))).astype(np.int32)
    count = jnp.asarray(counts)[mask.sum(axis=1)]
    candidates = mask & (_rank(jnp.where(mask, -divergence, jnp.inf)) < count[:, None])
    low = mask & (divergence < _median(divergence, mask))

    positions, valid = [], []
    for _ in range(windows):
        position, is_there = _draw(candidates, noise)
        positions, valid = [*positions, position], [*valid, is_there]
        candidates &= jnp.abs(jnp.arange(length)[None] - position) >= apart
    position, is_there = _draw(low, noise)
    return Places(
        jnp.concatenate([*positions, position], axis=1), jnp.concatenate([*valid, is_there], axis=1)
    )


def remember(state: State, costs: Float[Array, " n"], valid: Bool[Array, " n"]) -> dict[str, Array]:
    """The state after the valid costs are written over the oldest ones.

    >>> state = {"low_costs": jnp.zeros(2), "written": jnp.array(0)}
    >>> after = remember(state, jnp.array([0.3, 0.1]), jnp.array([True, False]))
    >>> print(after["low_costs"], after["written"])
    [0.3 0. ] 1
    """
    size, order = state["low_costs"].shape[0], jnp.cumsum(valid) - 1
    written = valid & (order >= valid.sum() - size)  # of more than it holds, the last
    slots = jnp.where(written, (state["written"] + order) % size, size)
    costs = costs.astype(state["low_costs"].dtype)
    return {
        "low_costs": state["low_costs"].at[slots].set(costs, mode="drop"),
        "written": state["written"] + valid.sum(dtype=state["written"].dtype),
    }


def threshold(state: State, percentile: float) -> Float[Array, ""]:
    """The percentile of the costs that are remembered; infinite, so that nothing exceeds it, before
    the first.

    >>> state = {"low_costs": jnp.array([0.1, 0.3, 0.0]), "written": jnp.array(2)}
    >>> print(f"{threshold(state, 50.0):.2f}")
    0.20
    """
    filled = jnp.arange(state["low_costs"].shape[0]) < state["written"]
    value = jnp.nanpercentile(jnp.where(filled, state["low_costs"], jnp.nan), percentile)
    return jnp.where(state["written"] > 0, value, jnp.inf)


def lowest(
    costs: Float[Array, "B M"], valid: Bool[Array, "B M"], share: float
) -> Bool[Array, "B M"]:
    """Which are the cheapest `share`, to the nearest number, of the whole batch's valid windows; of
    equal ones the first.

    >>> print(lowest(jnp.array([[0.4, 0.1, 0.2]]), jnp.ones((1, 3), bool), 1 / 3))
    [[False  True False]]
    """
    rank = _rank(jnp.where(valid, costs, jnp.inf).reshape(1, -1)).reshape(costs.shape)
    return valid & (rank < jnp.round(share * valid.sum().astype(costs.dtype)).astype(rank.dtype))


def cap(
    divergence: Float[Array, "B T"],
    mask: base.Mask,
    positions: Int[Array, "B M"],
    capped: Bool[Array, "B M"],
) -> Float[Array, "B T"]:
    """Weights that bring the divergence down to the row's median at the positions that are capped,
    1 elsewhere.

    >>> divergence, on = jnp.array([[1.0, 2.0, 8.0]]), jnp.ones((1, 3), bool)
    >>> print(cap(divergence, on, jnp.array([[2]]), jnp.array([[True]])))
    [[1.   1.   0.25]]

    A weight, as the minimum of the two has no gradient above the median.
    """
    columns = jnp.arange(mask.shape[1])[None, None]
    there = jnp.any(capped[..., None] & (positions[..., None] == columns), axis=1)
    median = _median(divergence, mask)
    above = there & (divergence > median)
    return jnp.where(above, median / jnp.where(above, divergence, 1), 1)


def _rank(values):
    """0 for the smallest of each row, the earlier one of equals."""
    return jnp.argsort(jnp.argsort(values, axis=1), axis=1)


def _median(values, mask):
    return jnp.nanmedian(jnp.where(mask, values, jnp.nan), axis=1, keepdims=True)


def _draw(allowed, noise):
    """The allowed column of highest noise, [B, 1], and whether there is one."""
    position = jnp.argmax(jnp.where(allowed, noise, -jnp.inf), axis=1, keepdims=True).astype(
        jnp.int32
    )
    return position, jnp.any(allowed, axis=1, keepdims=True)


def _entropy(probabilities):
    return -jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities), axis=-1)
