"""vOPD: the policy gradient of on-policy distillation with its exact baseline.

    l_t  = sg( log q(y_t) - log pi(y_t) )
    A_t  = l_t + sg( KL(pi || q) )              E_pi[l_t] = -KL(pi || q), so that E_pi[A_t] = 0
    loss = token_mean( -A_t log pi(y_t) )

Where the log-ratio is clipped, the mean of the clipped ones stands for -KL, so that E_pi[A_t] stays
0.

The expected gradient is that of `opd_pg` with immediate credit, of which this is the baseline `kl`;
the variance is not always lower, and exactly enumerated worlds show no reliable gain
(`experiments/credit.md`). Deviation: the paper also offers the KL on a top-k; here it costs nothing
to have it in full.

Source: vOPD, arXiv:2605.07865. Grade S: the baseline is as its abstract and other readings of it
say; the aggregation is a reconstruction (R).
"""

import dataclasses

from jopd.losses import base
from jopd.losses.credit import Estimate, PolicyGradient, immediate


@dataclasses.dataclass(frozen=True)
class VOPD(PolicyGradient):
    """The log-ratio of the sampled token, less its mean over the vocabulary."""

    name = "vopd"
    source = "arXiv:2605.07865 (S)"

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        return self.sampled_terms(student_logits, teacher_logits["teacher"], tokens, expected=True)

    @property
    def tiled(self) -> bool:
        return super().tiled and self.log_ratio_clip is None

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        return self.tiled_sampled_terms(moments, "teacher", expected=True)

    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        reward, metrics = self.log_ratio(terms, mask)
        advantage = immediate(reward - terms["expected_reward"], mask)
        advantage = self.with_task_reward(advantage, mask, inputs)
        return Estimate(advantage, {}, metrics | {"advantage": base.masked_total(advantage, mask)})

    def variables(self) -> base.Variables:
        return base.Variables(
            state="student rollouts",
            support="sampled token",
            routing="none",
            regularisation="none",
            **self.described("immediate, baseline -KL"),
        )
