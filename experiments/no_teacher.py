"""A loss without a teacher: what a student comes to that is told nothing at all.

    A_t  = -1 at the least likely 20 % of a completion's tokens, by the student itself; else 0
    loss = token_mean( -A_t log pi(y_t) )

It makes a model surer of itself, which by itself may help: whatever a teacher's sampled
tokens are credited with has to exceed it.

    python -m jopd.train --method experiments/no_teacher.py:NoTeacher

Source: after arXiv:2608.31046, of which we know the idea alone (a constant negative advantage on
the 20 % least probable tokens); the rest is a reconstruction.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jopd.losses import base
from jopd.losses.vocabulary import log_prob_of, log_softmax


@dataclasses.dataclass(frozen=True)
class NoTeacher(base.Method):
    """Pushes down what the student itself found least likely.

    Attributes:
      least_likely: the share of a completion's tokens that is pushed down, in (0, 1].
    """

    name = "no_teacher"
    source = "after arXiv:2608.31046 (R)"
    route = "policy gradient"
    views = ()
    ordered = True
    sampled_gradient = True
    why_not_zero = "it asks no teacher"
    least_likely: float = 0.2

    def __post_init__(self):
        if not 0 < self.least_likely <= 1:
            raise ValueError(f"least_likely={self.least_likely} must lie in (0, 1]: 0.2 is usual")

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        return {"student_logp": log_prob_of(log_softmax(student_logits), tokens)}

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        logp, on = terms["student_logp"], mask.astype(bool)
        order = jnp.argsort(jnp.where(on, jax.lax.stop_gradient(logp), jnp.inf), axis=1)
        rank = jnp.argsort(order, axis=1)
        tokens = on.sum(axis=1, keepdims=True, dtype=logp.dtype)
        chosen = on & (rank < jnp.ceil(self.least_likely * tokens).astype(rank.dtype))
        loss = base.token_mean(jnp.where(chosen, logp, 0), mask, inputs)
        return {"suppression": base.LossTerm(1.0, *loss)}, base.masked_totals(terms, mask)

    def variables(self) -> base.Variables:
        return base.Variables(
            state="student rollouts",
            support="sampled token",
            credit="immediate",
            routing="none",
            gates=f"the {self.least_likely:.0%} least likely tokens of a completion",
            regularisation="none",
        )
