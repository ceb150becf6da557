"""Importance-weighted on-policy distillation: a token counts less the further its row has already
left the teacher.

    l_t  = sg( log q(y_t) - log pi(y_t) )
    w_t  = 1 + strength (1 - sum_{k<t} |l_k| / sum_k |l_k|)       from 1 + strength down towards 1
    loss = token_mean( -w_t l_t log pi(y_t) )

Late tokens continue prefixes that the teacher would not have written, and its judgement of them is
worth less. The weight multiplies the advantage and not the count, so it also lengthens the step. A
row without any disagreement has w = 1 + strength, which multiplies zeros. Tokens that the input
`weight` silences still count as disagreement.

Source: IW-OPD, "On the Position Bias of On-Policy Distillation", arXiv:2606.22600. Grade P: the
weight, without gradient and with strength 1/2, is read in its official code (there its largest
value, 1 + strength, is the setting). Ours: one optimiser step a batch, so without the code's ratio
to the behaviour policy; where a log-ratio clip is set, |l_k| is that of the clipped one; a task
reward is weighted as well.
"""

import dataclasses
import math

import jax.numpy as jnp

from jopd.losses import base
from jopd.losses.credit import Estimate, PolicyGradient
from jopd.losses.stabilisers import joined


@dataclasses.dataclass(frozen=True)
class IWOPD(PolicyGradient):
    """The log-ratio of the sampled token, weighted by how much of its row's disagreement is still
    to come.

    Attributes:
      strength: how much more a row's first token counts than one after all the disagreement; 0 is
        opd_pg.
    """

    name = "iw_opd"
    source = "IW-OPD, arXiv:2606.22600 (P)"
    ordered = True
    strength: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.strength < math.inf:
            raise ValueError(
                f"strength={self.strength} must not be negative; 0.5 is the paper's, 0 is opd_pg"
            )

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        return self.sampled_terms(student_logits, teacher_logits["teacher"], tokens)

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        return self.tiled_sampled_terms(moments, "teacher")

    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        log_ratio, metrics = self.log_ratio(terms, mask)
        size = jnp.abs(log_ratio)
        before, total = jnp.cumsum(size, axis=1) - size, jnp.sum(size, axis=1, keepdims=True)
        weight = 1 + self.strength * (1 - before / jnp.where(total > 0, total, 1))
        advantage = weight * self.with_task_reward(log_ratio, mask, inputs)
        metrics |= {
            "importance_weight": base.masked_total(weight, mask),
            "advantage": base.masked_total(advantage, mask),
        }
        return Estimate(advantage, {}, metrics)

    def variables(self) -> base.Variables:
        words = self.described("immediate")
        weight = f"weight 1 to {1 + self.strength:g} by the row's disagreement still to come"
        return base.Variables(
            state="student rollouts",
            support="sampled token",
            routing="none",
            regularisation="none",
            **words | {"gates": joined(words["gates"], weight)},
        )
