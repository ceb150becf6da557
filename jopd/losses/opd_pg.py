"""On-policy distillation as a policy gradient: each sampled token is rewarded with how much more the teacher likes it.

    A_t  = sg( log q(y_t) - log pi(y_t) )                         that is -k1; its mean over pi is -KL(pi || q)
    loss = token_mean( -A_t log pi(y_t) )                                                       updates = 1
    loss = token_mean( -min(r_t A_t, clip(r_t, 1 - c, 1 + c) A_t) )                             updates > 1
    r_t  = pi(y_t) / behaviour(y_t)

The expected gradient is the reverse KL's at each state that the student reached, from one vocabulary entry a token.
With several updates on one batch pi leaves the policy that sampled it: the ratio keeps the gradient unbiased, its clip
keeps the step small. A_t then follows pi; implementations that fix it at the behaviour policy ascend E_pi[log q - log
behaviour] instead.

Source: Thinking Machines, "On-Policy Distillation" (2025). Grade P; the ratio clip is PPO's (arXiv:1707.06347).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jopd.losses.base import (
    Inputs,
    Logits,
    LossTerm,
    Mask,
    Method,
    Sums,
    Terms,
    Tokens,
    Variables,
    Views,
    check_temperature,
    masked_total,
    masked_totals,
)
from jopd.losses.divergences import comparison
from jopd.losses.vocabulary import log_prob_of, log_softmax


@dataclasses.dataclass(frozen=True)
class OPDPolicyGradient(Method):
    """The log-ratio of the sampled token as its reward.

    Attributes:
      updates: optimiser steps on one batch of completions.
      ratio_clip: how far the ratio to the behaviour policy counts, in (0, 1); off where left out. Needs updates > 1.
      log_ratio_clip: bound on the size of a token's reward, in nats; off where left out. 5 is common.
      temperature: divides the logits of student and teacher alike; with updates > 1 it should be the sampler's.
    """

    name = "opd_pg"
    source = "Thinking Machines 2025 (P); ratio clip arXiv:1707.06347 (P)"
    updates: int = 1
    ratio_clip: float | None = None
    log_ratio_clip: float | None = None
    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self.temperature)
        if self.updates < 1:
            raise ValueError(
                f"updates={self.updates} must be at least 1: the optimiser steps on one batch of completions"
            )
        if self.ratio_clip is not None and self.updates == 1:
            raise ValueError(
                f"ratio_clip={self.ratio_clip} can never act with updates=1, where the ratio is 1: "
                "leave it out, or set updates > 1"
            )
        if self.ratio_clip is not None and not 0 < self.ratio_clip < 1:
            raise ValueError(f"ratio_clip={self.ratio_clip} must lie in (0, 1); 0.2 is PPO's")
        if self.log_ratio_clip is not None and not self.log_ratio_clip > 0:
            raise ValueError(
                f"log_ratio_clip={self.log_ratio_clip} must be positive, in nats; 5 is common, None is off"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("behaviour_logp",) if self.updates > 1 else ()

    def token_terms(self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs) -> Terms:
        teacher = teacher_logits["teacher"]
        return {
            "student_logp": log_prob_of(log_softmax(student_logits, self.temperature), tokens),
            "teacher_logp": log_prob_of(log_softmax(teacher, self.temperature), tokens),
            **comparison(student_logits, teacher),
        }

    def reduce(self, terms: Terms, mask: Mask, inputs: Inputs) -> Sums:
        logp = terms["student_logp"]
        log_ratio = jax.lax.stop_gradient(terms["teacher_logp"] - logp)
        metrics = masked_totals(terms, mask) | {"log_ratio": masked_total(log_ratio, mask)}
        advantage = log_ratio
        if self.log_ratio_clip is not None:
            advantage = jnp.clip(log_ratio, -self.log_ratio_clip, self.log_ratio_clip)
            metrics["log_ratio_clipped"] = masked_total(advantage != log_ratio, mask)
        surrogate = advantage * logp
        if self.updates > 1:
            ratio = jnp.exp(logp - inputs["behaviour_logp"])
            metrics["ratio"] = masked_total(ratio, mask)
            surrogate = advantage * ratio
            if self.ratio_clip is not None:
                clipped = advantage * jnp.clip(ratio, 1 - self.ratio_clip, 1 + self.ratio_clip)
                metrics["ratio_clipped"] = masked_total(clipped < surrogate, mask)
                surrogate = jnp.minimum(surrogate, clipped)
        return {"policy_gradient": LossTerm(1.0, *masked_total(-surrogate, mask))}, metrics

    def variables(self) -> Variables:
        gates = [f"log-ratio clip {self.log_ratio_clip}"] * (self.log_ratio_clip is not None)
        gates += [f"ratio clip {self.ratio_clip}"] * (self.ratio_clip is not None)
        return Variables(
            state="student rollouts" + (f", up to {self.updates - 1} updates old" if self.updates > 1 else ""),
            support="sampled token",
            credit="immediate",
            routing="none",
            gates=", ".join(gates) or "none",
            regularisation="none",
        )
