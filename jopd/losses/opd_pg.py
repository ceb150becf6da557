"""On-policy distillation as a policy gradient: each sampled token is rewarded with how much more
the teacher likes it.

    l_t  = sg( log q(y_t) - log pi(y_t) )     that is -k1; its mean over pi is -KL(pi || q)
    A_t  = l_t                                immediate
           sum_{k>=t} l_k                     return_to_go
           sum_{k>=t} g^(k-t) l_k             discounted, g the discount
    A_t  = A_t + KL(pi || q)                  with the baseline -KL, detached; of clipped rewards,
                                              their own mean
    loss = aggregate( -A_t log pi(y_t) )                                            updates = 1
    loss = aggregate( -min(r_t A_t, clip(r_t, 1 - c, 1 + c) A_t) )                  updates > 1
    r_t  = pi(y_t) / behaviour(y_t)

aggregate: a mean over tokens for immediate credit, a sum over each row and a mean over rows for the
others, under which alone a return is unbiased when lengths vary. Immediate credit has the expected
gradient of the reverse KL at each state that the student reached, from one vocabulary entry a
token; return_to_go that of the reverse KL between whole rows; a discount lies between and is biased
for both. The baseline changes none of these: it is the mean of an immediate A_t (so that method is
`vopd`), for a return only the part of the mean that this token is about. More in `credit.py`.

With several updates on one batch pi leaves the policy that sampled it: the ratio keeps the
immediate gradient unbiased, its clip keeps the step small. For a return it corrects one token of
the row, as PPO does. A_t follows pi; implementations that fix it at the behaviour policy ascend
E_pi[log q - log behaviour] instead.

Source: Thinking Machines, "On-Policy Distillation" (2025), immediate. Grade P; the ratio clip is
PPO's (arXiv:1707.06347). Returns and baseline: the survey arXiv:2606.22793 names them (P), the
formulas are reconstructions
(R): the paper does not state them.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jopd.losses import base
from jopd.losses.credit import Estimate, PolicyGradient, check_credit, immediate, return_to_go
from jopd.losses.stabilisers import joined


@dataclasses.dataclass(frozen=True)
class OPDPolicyGradient(PolicyGradient):
    """The log-ratio of the sampled token as its reward.

    Attributes:
      credit: which rewards a token answers for: its own (`immediate`), its own and all later ones
        (`return_to_go`), or the later ones less and less (`discounted`).
      discount: the share of the next token's reward that counts, in (0, 1), for `discounted`.
      baseline: what is subtracted from the advantage: nothing, or the exact -KL(pi || q) of the
        state (`kl`), which lowers the variance of returns in most exactly enumerated worlds, and
        not reliably that of immediate credit.
      updates: optimiser steps on one batch of completions; with more than one the temperature
        should be the sampler's.
      ratio_clip: how far the ratio to the behaviour policy counts, in (0, 1); off where left out.
        Needs updates > 1.
    """

    name = "opd_pg"
    source = (
        "Thinking Machines 2025 (P); ratio clip arXiv:1707.06347 (P); credit arXiv:2606.22793 "
        "(names P, formulas R)"
    )
    credit: Literal["immediate", "return_to_go", "discounted"] = "immediate"
    discount: float | None = None
    baseline: Literal["none", "kl"] = "none"
    updates: int = 1
    ratio_clip: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_credit(self.credit, ("immediate", "return_to_go", "discounted"))
        base.check_known("baseline", [self.baseline], ("none", "kl"))
        if self.credit != "discounted" and self.discount is not None:
            raise ValueError(
                f"discount={self.discount} has nothing to act on with credit={self.credit!r}, "
                "where later rewards count "
                f"{'not at all' if self.credit == 'immediate' else 'in full'}: set credit to "
                "'discounted', or leave it out"
            )
        if self.credit == "discounted" and (self.discount is None or not 0 < self.discount < 1):
            raise ValueError(
                f"discount={self.discount} must lie in (0, 1) with credit='discounted': 0 is "
                "'immediate', 1 is 'return_to_go'"
            )
        if self.updates < 1:
            raise ValueError(
                f"updates={self.updates} must be at least 1: the optimiser steps on one batch of "
                "completions"
            )
        if self.ratio_clip is not None and self.updates == 1:
            raise ValueError(
                f"ratio_clip={self.ratio_clip} can never act with updates=1, where the ratio is 1: "
                "leave it out, or set updates > 1"
            )
        if self.ratio_clip is not None and not 0 < self.ratio_clip < 1:
            raise ValueError(f"ratio_clip={self.ratio_clip} must lie in (0, 1); 0.2 is PPO's")

    @property
    def alerts(self) -> tuple[base.Alert, ...]:
        if self.credit == "immediate":
            return ()
        message = (
            f"method.credit={self.credit} counts what a cut row would still have earned as 0, "
            "which biases it: raise rollout.max_new_tokens, or use --method gae_opd, whose critic "
            "stands in"
        )
        return (base.Alert("truncation_rate", 0.05, message),)

    @property
    def ordered(self) -> bool:
        return self.credit != "immediate"

    @property
    def inputs(self) -> tuple[str, ...]:
        return super().inputs + (("behaviour_logp",) if self.updates > 1 else ())

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        return self.sampled_terms(
            student_logits, teacher_logits["teacher"], tokens, expected=self.baseline == "kl"
        )

    @property
    def tiled(self) -> bool:
        return super().tiled and (self.baseline == "none" or self.log_ratio_clip is None)

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        return self.tiled_sampled_terms(moments, "teacher", expected=self.baseline == "kl")

    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        reward, metrics = self.log_ratio(terms, mask)
        if self.credit == "immediate":
            advantage = immediate(reward, mask)
        else:
            advantage = return_to_go(
                reward, mask, discount=1.0 if self.discount is None else self.discount
            )
        if self.baseline == "kl":
            advantage = advantage - terms["expected_reward"]
        advantage = self.with_task_reward(advantage, mask, inputs)
        return Estimate(advantage, {}, metrics | {"advantage": base.masked_total(advantage, mask)})

    @property
    def aggregation(self) -> Literal["token mean", "row sum"]:
        return "token mean" if self.credit == "immediate" else "row sum"

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        logp = terms["student_logp"]
        advantage, _, metrics = self.estimate(terms, mask, inputs)
        metrics = metrics | self.logged(terms, mask, inputs)
        surrogate = advantage * logp
        if self.updates > 1:
            ratio = jnp.exp(logp - inputs["behaviour_logp"])
            metrics["ratio"] = base.masked_total(ratio, mask)
            surrogate = advantage * ratio
            if self.ratio_clip is not None:
                clipped = advantage * jnp.clip(ratio, 1 - self.ratio_clip, 1 + self.ratio_clip)
                metrics["ratio_clipped"] = base.masked_total(clipped < surrogate, mask)
                surrogate = jnp.minimum(surrogate, clipped)
        return {
            "policy_gradient": base.LossTerm(1.0, *self.aggregate(-surrogate, mask, inputs))
        }, metrics

    def variables(self) -> base.Variables:
        credit = {
            "immediate": "immediate",
            "return_to_go": "return-to-go",
            "discounted": f"discounted {self.discount}",
        }
        words = self.described(
            credit[self.credit] + (", baseline -KL" if self.baseline == "kl" else "")
        )
        if self.ratio_clip is not None:
            words["gates"] = joined(words["gates"], f"ratio clip {self.ratio_clip:g}")
        return base.Variables(
            state="student rollouts"
            + (f", up to {self.updates - 1} updates old" if self.updates > 1 else ""),
            support="sampled token",
            routing="none",
            regularisation="none",
            **words,
        )
