"""Self-distilled reinforcement learning: a verifier says which way, a teacher with the solution
says which tokens.

    D_t  = sg( log q(y_t | x, r, y_<t) - log pi(y_t | x, y_<t) )
    w_t  = exp( sign(A) D_t )
    A_t  = A [ (1 - mix) + mix clip(w_t, 1 - clip, 1 + clip) ]     A: the row's, in its group (GRPO)
    loss = token_mean( -A_t log pi(y_t) )                          mix falls to 0 over mix_steps

The teacher never turns a token's sign; where a prompt's samples are all rewarded alike A is 0 and
nothing is learnt, whatever the teacher says. That is so of every prompt whose answers the verifier
never accepts, such as a persona's. With mix 0, or a teacher that says what the student says (w_t =
1), this is GRPO: loss and gradient are the reward's.

Without a verifier the teacher gives the sign too, and its evidence for the context the weight:

    a_t  = sg( log q(y_t | x, r, y_<t) - log pi(y_t | x, y_<t) )
    e_t  = log q(y_t | x, r, y_<t) - log q(y_t | x, y_<t)
    loss = token_mean( -a_t clip( exp(sign(a_t) e_t), 1 - clip, 1 + clip ) log pi(y_t) )

With a verifier any privileged teacher can weigh tokens. Without one the evidence is EDGE-OPD's,
whose premise is one model: a teacher that is not the student's initial model is refused.

Deviations: one optimiser step a batch, so no ratio to the behaviour policy; a mean over the batch's
tokens where GRPO takes one over each row first.

Source: RLSD, arXiv:2604.03128. Grade P; the schedule of mix S, from a port. Without a verifier it
is a baseline of EDGE-OPD (arXiv:2605.23493), a reconstruction (R): the paper does not state its
formula.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses import base
from jopd.losses.divergences import comparison, comparison_of
from jopd.losses.edge_opd import check_guidance, evidence, guided_rollouts
from jopd.losses.vocabulary import log_prob_of, log_softmax


def reweighted_advantage(
    advantage: Float[Array, "B #T"],
    log_ratio: Float[Array, "B T"],
    *,
    mix: float | int | Float[Array, "#B #T"],
    clip: float | int,
) -> Float[Array, "B T"]:
    """A [(1 - mix) + mix clip(exp(sign(A) D), 1 - clip, 1 + clip)], of A's sign everywhere and
    without gradient.

    >>> advantage, log_ratio = jnp.array([[1.0], [-1.0]]), jnp.log(jnp.array([[1.1], [1.1]]))
    >>> print(reweighted_advantage(advantage, log_ratio, mix=1.0, clip=0.2).round(3)[:, 0])
    [ 1.1   -0.909]

    Args:
      advantage: A, [B, 1] or [B, T].
      log_ratio: D, [B, T], in nats; infinite is allowed.
      mix: in [0, 1], how much the weight counts: a number, or an array whose values are not
        checked.
      clip: in (0, 1).

    Raises:
      ValueError: a mix or clip outside its range.
    """
    _check(mix, clip)
    advantage, log_ratio = jax.lax.stop_gradient((advantage, log_ratio))
    # Not sign(A) D: that is NaN for an advantage of 0 and an infinite log-ratio, where the weight
    # does not matter.
    weight = jnp.clip(jnp.exp(jnp.where(advantage > 0, log_ratio, -log_ratio)), 1 - clip, 1 + clip)
    return advantage * ((1 - mix) + mix * weight)


def _check(mix, clip):
    if isinstance(mix, float | int) and not 0 <= mix <= 1:
        raise ValueError(f"mix={mix} must lie in [0, 1]: 0 is the advantage alone")
    if not 0 < clip < 1:
        raise ValueError(
            f"clip={clip} must lie in (0, 1), or a weight could take or turn the advantage's sign; "
            "try 0.2"
        )


@dataclasses.dataclass(frozen=True)
class RLSD(base.Method):
    """Sampled tokens, rewarded by a verifier and weighted by a privileged teacher, or rewarded by
    that teacher too.

    Attributes:
      verifier: whether the task's reward, compared within the samples of a prompt, gives the sign;
        otherwise the teacher does.
      mix: how much the teacher's weight counts at first, in [0, 1]. For a verifier.
      mix_steps: optimiser steps over which that falls to 0. For a verifier.
      clip: a weight lies within this of 1, in (0, 1).
      guided_share: the probability that a completion is sampled with the privileged context in the
        prompt.
      guided_writer: who samples those: the student as it is now, or the teacher.
      temperature: divides the logits of student and teacher alike.
    """

    name = "rlsd"
    source = "RLSD, arXiv:2604.03128 (P; schedule S); without a verifier arXiv:2605.23493 (R)"
    route = "policy gradient of the sampled token"
    sampled_gradient = True
    run_defaults = (("teacher.model", "self"), ("rollout.samples", 4))
    verifier: bool = True
    mix: float = 0.5
    mix_steps: int = 50
    clip: float = 0.2
    guided_share: float = 0.0
    guided_writer: Literal["student", "teacher"] = "student"
    temperature: float = 1.0

    def __post_init__(self):
        check_guidance(self.guided_share, self.guided_writer)
        base.check_temperature(self.temperature)
        _check(self.mix, self.clip)
        if self.mix_steps < 1:
            raise ValueError(
                f"mix_steps={self.mix_steps} must be at least 1; for no weight at all set mix to 0"
            )
        for name in ("mix", "mix_steps"):
            if not self.verifier and getattr(self, name) != getattr(RLSD, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} does nothing with verifier=False: leave it out"
                )

    @property
    def views(self) -> tuple[str, ...]:
        return ("privileged",) if self.verifier else ("privileged", "plain")

    @property
    def one_model(self) -> bool:
        return not self.verifier

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("group_advantage", "step") if self.verifier else ()

    @property
    def why_not_zero(self) -> str:
        return (
            "it is GRPO there: right answers are reinforced whatever the teacher says"
            if self.verifier
            else ""
        )

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        of = lambda logits: log_prob_of(log_softmax(logits, self.temperature), tokens)
        terms = {f"{view}_logp": of(logits) for view, logits in teacher_logits.items()}
        return {
            "student_logp": of(student_logits),
            **terms,
            **comparison(student_logits, teacher_logits["privileged"]),
        }

    @property
    def tiled(self) -> bool:
        return self.temperature == 1

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        terms = {f"{view}_logp": of.logp for view, of in moments.teachers.items()}
        return {
            "student_logp": moments.student.logp,
            **terms,
            **comparison_of(moments, "privileged"),
        }

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        logp, privileged = terms["student_logp"], terms["privileged_logp"]
        log_ratio = jax.lax.stop_gradient(privileged - logp)
        measured = {"log_ratio": log_ratio}
        if self.verifier:
            mix = self.mix * jnp.maximum(1 - inputs["step"].astype(logp.dtype) / self.mix_steps, 0)
            of_group = inputs["group_advantage"].astype(logp.dtype)
            advantage = reweighted_advantage(of_group, log_ratio, mix=mix, clip=self.clip)
        else:
            measured["evidence"] = evidence(privileged, terms["plain_logp"])
            advantage = reweighted_advantage(log_ratio, measured["evidence"], mix=1, clip=self.clip)
        measured["advantage"] = advantage
        loss = base.token_mean(-advantage * logp, mask, inputs)
        return {"policy_gradient": base.LossTerm(1.0, *loss)}, base.masked_totals(
            terms | measured, mask
        )

    def variables(self) -> base.Variables:
        weight = (
            f"log-ratio weight ±{self.clip:g}, {self.mix:g} of it, to 0 in {self.mix_steps} steps"
        )
        return base.Variables(
            state=guided_rollouts(self.guided_share, self.guided_writer),
            support="sampled token",
            credit="group advantage of the verifier's reward" if self.verifier else "immediate",
            routing="none",
            gates=weight if self.verifier else f"evidence weight ±{self.clip:g}",
            regularisation="none",
        )
