"""Generalised on-policy distillation: the reward may count for more than the regulariser, past the
teacher.

    A_t  = sg( -[ log pi(y_t) - log base(y_t) - scale (log q(y_t) - log base(y_t)) ] )
    loss = token_mean( -A_t log pi(y_t) )
    base: the student as it was at the start, in the student's context

Reinforcement learning on the reward log(q / base) under a KL to base, whose optimum is base^(1 -
scale) q^scale: scale 1 is on-policy distillation and never looks at base; below 1 interpolates;
above 1 extrapolates, which the paper calls ExOPD. Value and gradient are 0 where student, teacher
and base agree, not where only student and teacher do.

Source: G-OPD / ExOPD, arXiv:2602.12125. Grade P: the objective is the paper's; its form for a
token, the 1.25 and the student's initial model as base are its official code's. For a teacher of
another size the paper also takes the teacher's model before reinforcement learning as base ("reward
correction"), which is not offered here. Ours: one optimiser step a batch, so without the code's
ratio to the behaviour policy.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses import base
from jopd.losses.credit import Estimate, PolicyGradient
from jopd.losses.vocabulary import log_prob_of, log_softmax


@dataclasses.dataclass(frozen=True)
class GOPD(PolicyGradient):
    """The log-ratio of the sampled token, extrapolated from the initial model past the teacher.

    Attributes:
      scale: the reward's weight against the KL to the initial model (the paper's lambda): 1 is
        on-policy distillation, 1.25 the paper's extrapolation.
    """

    name = "g_opd"
    source = "G-OPD / ExOPD, arXiv:2602.12125 (P)"
    scale: float = 1.25

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.scale < math.inf:
            raise ValueError(
                f"scale={self.scale} must be positive: 1 is on-policy distillation, 1.25 "
                "extrapolates; 0 would hold the student to its initial model"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return ("teacher",) if self.scale == 1 else ("teacher", base.INITIAL)

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        terms = self.sampled_terms(student_logits, teacher_logits["teacher"], tokens)
        if self.scale == 1:
            return terms
        initial = log_prob_of(log_softmax(teacher_logits[base.INITIAL], self.temperature), tokens)
        return {**terms, "reward": _reward(terms["teacher_logp"], initial)}

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        terms = self.tiled_sampled_terms(moments, "teacher")
        if self.scale == 1:
            return terms
        initial = moments.teachers[base.INITIAL].logp
        return {**terms, "reward": _reward(terms["teacher_logp"], initial)}

    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        target = terms["teacher_logp"] + (
            0 if self.scale == 1 else (self.scale - 1) * terms["reward"]
        )
        log_ratio, metrics = self.log_ratio({**terms, "teacher_logp": target}, mask)
        advantage = self.with_task_reward(log_ratio, mask, inputs)
        return Estimate(advantage, {}, metrics | {"advantage": base.masked_total(advantage, mask)})

    def variables(self) -> base.Variables:
        return base.Variables(
            state="student rollouts",
            support="sampled token",
            routing="none",
            regularisation="none"
            if self.scale == 1
            else f"KL to the initial model, against {self.scale:g} × reward",
            **self.described("immediate"),
        )


def _reward(teacher_logp: Float[Array, "*n"], initial_logp: Float[Array, "*n"]):
    """Their difference; a token that both rule out (-inf twice) has no reward."""
    return jnp.where(teacher_logp == initial_logp, 0, teacher_logp - initial_logp)
