"""Temporal credit: how much of a row's rewards, its own and later ones, a sampled token answers
for.

    l_t  = sg( log q(y_t) - log pi(y_t) )       the token's reward; its mean over pi is -KL(pi || q)
    loss = -sg(A_t) log pi(y_t)                 summed over each row, or averaged over tokens

    estimator               A_t                        expected gradient, on complete rows of pi
    immediate               l_t                        of sum_t E_d KL(pi || q), the states reached,
                                                       d, held fixed
    return_to_go            sum_{k>=t} l_k             of the reverse KL between whole rows
    discounted              sum_{k>=t} g^(k-t) l_k     neither: g = 0 is the first, 1 the second
    generalized_advantage   sum_{k>=t} (g h)^(k-t) delta_k     the discounted one's, if h = 1 or V
                                                       is exact
                            delta_t = l_t + g V(s_{t+1}) - V(s_t),  h: gae_lambda
    any of them - b(s_t)    the same, if b is detached and sees neither y_t nor what follows

The variance of a return grows with up to the fourth power of the length, that of immediate credit
with up to the second (`experiments/credit.md` measures both).

What biases them: a mean over each row's tokens of its returns, which divides long rows by more (a
sum over rows, `row_sum`, does not); a clip of l_t where it acts; rollouts from a truncated
distribution (top-k, top-p) or from an older policy; a row cut at the length limit whose rest counts
as 0; dividing by the batch's own spread. A baseline that is the batch's mean, the sample included,
shortens the gradient by the sample's share of it.

An advantage that depends on the state alone, such as -KL(s_t), has an expected gradient of exactly
zero, because sum_v pi grad log pi = 0: it looks like the loss and teaches nothing. It is a
baseline, never an advantage, and no setting makes it one.

Source: the estimators are named in the survey arXiv:2606.22793 (grade P); its formulas are not
stated, so these are reconstructions (R), forced by what each is to be unbiased for and checked by
enumeration. Generalized advantage
estimation: Schulman et al., arXiv:1506.02438 (P). Group advantage: GRPO, arXiv:2402.03300 (P).
"""

import abc
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jopd.losses import base
from jopd.losses.divergences import comparison, comparison_of, reverse_kl
from jopd.losses.vocabulary import accumulator, log_prob_of, log_softmax


def immediate(rewards: Float[Array, "B T"], mask: Shaped[Array, "B T"]) -> Float[Array, "B T"]:
    """A_t = l_t: every token answers for its own reward. In float32 or wider, 0 where the mask
    (bool or 0/1) is 0.

    >>> print(immediate(jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[1, 1, 0]])))
    [[1. 2. 0.]]
    """
    return base.silence(rewards.astype(accumulator(rewards.dtype)), mask.astype(bool))


def return_to_go(
    rewards: Float[Array, "B T"], mask: Shaped[Array, "B T"], *, discount: float | int = 1.0
) -> Float[Array, "B T"]:
    """A_t = sum_{k>=t} discount^(k-t) l_k: every token answers for what follows it, too.

    >>> rewards, mask = jnp.array([[1.0, 2.0, 4.0]]), jnp.ones((1, 3), bool)
    >>> print(return_to_go(rewards, mask), return_to_go(rewards, mask, discount=0.5))
    [[7. 6. 4.]] [[3. 4. 4.]]

    Args:
      rewards: [B, T].
      mask: [B, T], bool or 0/1, on from column 0 up to the row's last token.
      discount: in [0, 1]; 0 is immediate credit.

    Returns:
      [B, T], in float32 or wider, 0 where the mask is 0.

    Raises:
      ValueError: a discount outside [0, 1]; a mask with a hole, unless it is traced and cannot be
        looked at.
    """
    _check_share("discount", discount)
    base.check_contiguous(mask)
    return base.silence(_discounted_sum(immediate(rewards, mask), discount), mask.astype(bool))


def generalized_advantage(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Shaped[Array, "B T"],
    *,
    discount: float | int,
    gae_lambda: float | int,
    bootstrap: Float[Array, "B"] | None = None,
) -> Float[Array, "B T"]:
    """A_t = delta_t + discount gae_lambda A_{t+1}, with the errors delta_t of `td_errors`.

    >>> rewards, values, mask = jnp.ones((1, 2)), jnp.array([[2.0, 1.5]]), jnp.ones((1, 2), bool)
    >>> print(generalized_advantage(rewards, values, mask, discount=1.0, gae_lambda=0.5))
    [[ 0.25 -0.5 ]]

    Args:
      rewards: [B, T].
      values: [B, T], V(s_t), what the state before token t is worth.
      mask: [B, T], bool or 0/1, on from column 0 up to the row's last token.
      discount: in [0, 1].
      gae_lambda: in [0, 1]; 0 trusts the values after one token, 1 counts all rewards.
      bootstrap: [B], the value after each row's last token, 0 for rows that ended; left out, all
        rows ended.

    Returns:
      [B, T], in float32 or wider, 0 where the mask is 0. Differentiable in rewards and values:
      detach what is an advantage.

    Raises:
      ValueError: as `return_to_go`, or a gae_lambda outside [0, 1].
    """
    _check_share("gae_lambda", gae_lambda)
    errors = td_errors(rewards, values, mask, discount=discount, bootstrap=bootstrap)
    return base.silence(_discounted_sum(errors, discount * gae_lambda), mask.astype(bool))


def td_errors(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Shaped[Array, "B T"],
    *,
    discount: float | int,
    bootstrap: Float[Array, "B"] | None = None,
) -> Float[Array, "B T"]:
    """delta_t = l_t + discount V(s_{t+1}) - V(s_t), the bootstrap standing after the last token; as
    above.

    >>> rewards, values, mask = jnp.ones((1, 2)), jnp.array([[2.0, 1.5]]), jnp.ones((1, 2), bool)
    >>> print(td_errors(rewards, values, mask, discount=1.0))
    [[ 0.5 -0.5]]
    """
    _check_share("discount", discount)
    base.check_contiguous(mask)
    dtype = accumulator(jnp.promote_types(rewards.dtype, values.dtype))
    rewards, values, mask = rewards.astype(dtype), values.astype(dtype), mask.astype(bool)
    after_last = jnp.zeros(len(values), dtype) if bootstrap is None else bootstrap.astype(dtype)
    last = mask & ~_next_column(mask)
    following = jnp.where(last, after_last[:, None], _next_column(values))
    return base.silence(rewards + discount * following - values, mask)


def group_advantage(rewards: Float[Array, "B"], samples: int) -> Float[Array, "B 1"]:
    """GRPO's advantage of a row in its group: (reward - mean) / (standard deviation + 1e-4).

    >>> print(group_advantage(jnp.array([1.0, 0.0, 1.0, 1.0]), samples=2).round(3)[:, 0])
    [ 0.707 -0.707  0.     0.   ]

    The deviation is the sample's, divided by samples - 1, as the common implementations have it
    (theirs add 1e-4 or 1e-6). A group whose rewards are all equal gives exactly 0.

    Args:
      rewards: [B]; the rows of a group, the completions of one prompt, lie side by side.
      samples: rows a group.

    Raises:
      ValueError: groups of less than two, or a number of rows that they do not divide.
    """
    if samples < 2 or len(rewards) % samples:
        raise ValueError(
            f"samples={samples} with {len(rewards)} rows: a group advantage compares two or more "
            "completions of one prompt, and all groups have the same size; raise rollout.samples"
        )
    groups = rewards.astype(accumulator(rewards.dtype)).reshape(-1, samples)
    equal = jnp.all(groups == groups[:, :1], axis=1, keepdims=True)
    # Rounding leaves a mean of equal numbers next to them, and the small denominator would blow
    # that up.
    centred = jnp.where(equal, 0, groups - groups.mean(axis=1, keepdims=True))
    return (centred / (groups.std(axis=1, keepdims=True, ddof=1) + 1e-4)).reshape(-1, 1)


def expected_reward(
    student_logp: Float[Array, "*n V"], teacher_logp: Float[Array, "*n V"], clip: float | None
) -> Float[Array, "*n"]:
    """E_pi[ clip(log q - log pi, -clip, clip) ] over the vocabulary, without gradient; without a
    clip it is -KL(pi || q).

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{expected_reward(pi, q, None):.4f}")
    -0.1308

    Entries without student probability weigh nothing.
    """
    student_logp, teacher_logp = jax.lax.stop_gradient((student_logp, teacher_logp))
    if clip is None:
        return -reverse_kl(student_logp, teacher_logp)
    weight = jnp.exp(student_logp)
    reward = jnp.clip(jnp.where(weight > 0, teacher_logp - student_logp, 0), -clip, clip)
    return jnp.sum(weight * reward, axis=-1)


def check_credit(credit: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless the estimator is known; one that looks at the state alone is refused
    with the reason.

    >>> check_credit("immediate", ("immediate", "return_to_go"))
    """
    if credit in ("kl", "reverse_kl"):
        raise ValueError(
            f"credit={credit!r} would make an advantage of the state alone, whose expected "
            "gradient is exactly zero: it can be a baseline (baseline='kl'); to descend the exact "
            "KL use --method opd"
        )
    base.check_known("credit", [credit], known)


class Estimate(NamedTuple):
    """What a policy gradient thinks of its tokens.

    Attributes:
      advantage: [B, T], without gradient.
      losses: what else is to be minimised for it, such as a critic's error.
      metrics: what it logs about itself.
    """

    advantage: Float[Array, "B T"]
    losses: dict[str, base.LossTerm]
    metrics: dict[str, base.Total]


@dataclasses.dataclass(frozen=True)
class PolicyGradient(base.Method):
    """What the methods share that reward a sampled token with its log-ratio.

    Attributes:
      log_ratio_clip: bound on the size of a token's reward, in nats; off where left out. 5 is
        common.
      reward_weight: how much of the task's own reward is added to the advantage of each of a row's
        tokens: so many times the verifier's reward, normalised in the group of the prompt's
        samples. It counts in full at every token, undiscounted; 0 is off.
      temperature: divides the logits of student and teacher alike.
    """

    route = "policy gradient of the sampled token's log-ratio"
    sampled_gradient = True
    log_ratio_clip: float | None = None
    reward_weight: float = 0.0
    temperature: float = 1.0

    def __post_init__(self):
        base.check_temperature(self.temperature)
        if self.log_ratio_clip is not None and not self.log_ratio_clip > 0:
            raise ValueError(
                f"log_ratio_clip={self.log_ratio_clip} must be positive, in nats; 5 is common, "
                "None is off"
            )
        if not 0 <= self.reward_weight < math.inf:
            raise ValueError(
                f"reward_weight={self.reward_weight} must be finite and not negative, as that "
                "would teach wrong answers; 0 is off"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("group_advantage",) if self.reward_weight else ()

    @property
    def why_not_zero(self) -> str:
        return (
            "right answers are reinforced whatever the teacher says" if self.reward_weight else ""
        )

    @abc.abstractmethod
    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        """The advantages, of the terms that its vocabulary stage makes."""

    def aggregate(
        self, values: Float[Array, "B T"], mask: base.Mask, inputs: base.Inputs
    ) -> base.Total:
        """The sum and the count of a per-token loss that its credit is unbiased under."""
        return (base.token_mean if self.aggregation == "token mean" else base.row_sum)(
            values, mask, inputs
        )

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        advantage, losses, metrics = self.estimate(terms, mask, inputs)
        loss = self.aggregate(-advantage * terms["student_logp"], mask, inputs)
        return {"policy_gradient": base.LossTerm(1.0, *loss), **losses}, metrics | self.logged(
            terms, mask, inputs
        )

    def profiled(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Profiles:
        return {"suppressed": (self.estimate(terms, mask, inputs).advantage < 0, mask)}

    def logged(
        self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs
    ) -> dict[str, base.Total]:
        """The metrics of every policy gradient: its terms, and what it has for profiles."""
        profiles = self.profiled(terms, mask, inputs)
        return base.masked_totals(terms, mask) | {
            name: base.masked_total(*profile) for name, profile in profiles.items()
        }

    def sampled_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Logits,
        tokens: base.Tokens,
        *,
        expected: bool = False,
    ) -> base.Terms:
        """Both log-probabilities of the token, what every method logs, and on demand
        `expected_reward`.

        That is E_pi[l] over the vocabulary, -KL(pi || q), or with a clip the mean of the clipped
        rewards.
        """
        student, teacher = (
            log_softmax(logits, self.temperature) for logits in (student_logits, teacher_logits)
        )
        terms = comparison(student_logits, teacher_logits)
        if expected:
            terms["expected_reward"] = expected_reward(student, teacher, self.log_ratio_clip)
        return {
            "student_logp": log_prob_of(student, tokens),
            "teacher_logp": log_prob_of(teacher, tokens),
            **terms,
        }

    @property
    def tiled(self) -> bool:
        return self.temperature == 1

    def tiled_sampled_terms(
        self, moments: base.Moments, view: str, *, expected: bool = False
    ) -> base.Terms:
        """`sampled_terms` of the view; the expectation is that without a clip."""
        of_view = moments.teachers[view]
        terms = comparison_of(moments, view)
        if expected:
            terms["expected_reward"] = -terms["kl"]
        return {"student_logp": moments.student.logp, "teacher_logp": of_view.logp, **terms}

    def log_ratio(
        self, terms: base.Terms, mask: base.Mask
    ) -> tuple[Float[Array, "B T"], dict[str, base.Total]]:
        """The reward l_t, clipped if that is set, and its metrics."""
        ratio = jax.lax.stop_gradient(terms["teacher_logp"] - terms["student_logp"])
        metrics = {"log_ratio": base.masked_total(ratio, mask)}
        if self.log_ratio_clip is None:
            return ratio, metrics
        clipped = jnp.clip(ratio, -self.log_ratio_clip, self.log_ratio_clip)
        return clipped, metrics | {"log_ratio_clipped": base.masked_total(clipped != ratio, mask)}

    def with_task_reward(
        self, advantage: Float[Array, "B T"], mask: base.Mask, inputs: base.Inputs
    ) -> Float[Array, "B T"]:
        """The advantage and, if that is asked for, the task's."""
        if not self.reward_weight:
            return advantage
        task = jax.lax.stop_gradient(inputs["group_advantage"]).astype(advantage.dtype)
        return advantage + base.silence(
            self.reward_weight * jnp.broadcast_to(task, mask.shape), mask
        )

    def described(self, credit: str) -> dict[str, str]:
        """The survey's `credit` and `gates`, with what the shared settings add to them."""
        return {
            "credit": credit
            + (f", + {self.reward_weight:g} x task reward" if self.reward_weight else ""),
            "gates": "none"
            if self.log_ratio_clip is None
            else f"log-ratio clip {self.log_ratio_clip:g}",
        }


def _discounted_sum(x: Float[Array, "B T"], factor: float | int) -> Float[Array, "B T"]:
    """sum_{k>=t} factor^(k-t) x_k."""

    def step(later, now):
        total = now + factor * later
        return total, total

    _, sums = jax.lax.scan(step, jnp.zeros(x.shape[0], x.dtype), x.T, reverse=True)
    return sums.T


def _next_column(x: Shaped[Array, "B T"]) -> Shaped[Array, "B T"]:
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def _check_share(name, value):
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1]")
