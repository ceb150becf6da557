"""On-policy distillation, direct: a divergence between student and teacher at every token that the
student wrote.

    loss = token_mean( D(pi_t, q_t) )        gradient through pi_t alone, none through the sampling

With probability 1 - on_policy_share a completion is a reference instead of the student's own (GKD's
lambda is on_policy_share).

Source: Agarwal et al., GKD, arXiv:2306.13649. Grade P. The reverse KL as the default is that of
Thinking Machines, "On-Policy Distillation" (2025), which samples it; here it is exact. Top-k
supports are no one paper's.
"""

import dataclasses
from typing import Literal

from jopd.losses import base
from jopd.losses.divergences import (
    Name,
    choose,
    chosen_of,
    comparison,
    comparison_of,
    second_pass_of,
)
from jopd.losses.vocabulary import log_softmax


@dataclasses.dataclass(frozen=True)
class OPD(base.Method):
    """A divergence to the teacher on the student's own completions.

    Attributes:
      divergence: `reverse_kl` and `forward_kl`, in full or on a top-k; `jensen_shannon`;
        `total_variation`; `k2` and `k3` look at the sampled token only and have the expected
        gradient of the reverse and the forward KL.
      beta: the teacher's share of jensen_shannon's blend, in (0, 1); 0.5 where left out.
      top_k: compare only so many tokens, the likeliest of the support; the whole vocabulary where
        left out.
      support: whose likeliest tokens a top-k takes.
      tail: what becomes of the other tokens: one more outcome (`bucket`), or left out of both
        distributions (`renormalise`).
      temperature: divides the logits of student and teacher alike.
      on_policy_share: the probability that a completion is the student's own; the others are
        references.
    """

    name = "opd"
    source = "arXiv:2306.13649 (P)"
    divergence: Name = "reverse_kl"
    beta: float | None = None
    top_k: int | None = None
    support: Literal["teacher", "student"] = "teacher"
    tail: Literal["bucket", "renormalise"] = "bucket"
    temperature: float = 1.0
    on_policy_share: float = 1.0

    def __post_init__(self):
        self._chosen()
        base.check_temperature(self.temperature)
        if not 0 <= self.on_policy_share <= 1:
            raise ValueError(
                f"on_policy_share={self.on_policy_share} must lie in [0, 1]: it is a probability"
            )
        if self.divergence in ("k2", "k3") and self.on_policy_share < 1:
            raise ValueError(
                f"divergence={self.divergence!r} with on_policy_share={self.on_policy_share} "
                "estimates nothing where the student did not sample: use reverse_kl or forward_kl"
            )

    @property
    def sampled_gradient(self) -> bool:
        return self.divergence in ("k2", "k3")

    def _chosen(self):
        return choose(
            self.divergence, beta=self.beta, k=self.top_k, support=self.support, tail=self.tail
        )

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        teacher = teacher_logits["teacher"]
        divergence = self._chosen()(
            log_softmax(student_logits, self.temperature),
            log_softmax(teacher, self.temperature),
            tokens,
        )
        return {"divergence": divergence, **comparison(student_logits, teacher)}

    @property
    def tiled(self) -> bool:
        return self.top_k is None and self.temperature == 1

    @property
    def second_pass(self) -> base.SecondPass | None:
        return second_pass_of(self.divergence, self.beta, "teacher")

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        divergence = chosen_of(self.divergence, moments, "teacher")
        return {"divergence": divergence, **comparison_of(moments, "teacher")}

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        loss = base.token_mean(terms["divergence"], mask, inputs)
        return {"divergence": base.LossTerm(1.0, *loss)}, base.masked_totals(terms, mask)

    def variables(self) -> base.Variables:
        share = f"student rollouts ({self.on_policy_share:g}), else references"
        support = (
            f"{self.support}'s top {self.top_k}, {self.tail}" if self.top_k else "full vocabulary"
        )
        return base.Variables(
            state="student rollouts" if self.on_policy_share == 1 else share,
            support="sampled token" if self.divergence in ("k2", "k3") else support,
            credit="immediate",
            routing="none",
            gates="none",
            regularisation="none",
        )
