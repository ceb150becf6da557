"""Supervised fine-tuning: cross-entropy on reference completions.

    loss = token_mean( -log pi(y_t) )        y: the data's completion, not the student's

No teacher reads along. It is the off-policy baseline that every on-policy method is compared with,
and their cold start.

Source: textbook maximum likelihood; no paper's own.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jopd.losses import base
from jopd.losses.divergences import entropy
from jopd.losses.vocabulary import log_prob_of, log_softmax


@dataclasses.dataclass(frozen=True)
class SFT(base.Method):
    """Cross-entropy on reference completions."""

    name = "sft"
    source = "textbook maximum likelihood"
    route = "maximum likelihood"
    views = ()
    on_policy_share = 0.0

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        student = log_softmax(student_logits)
        first = log_prob_of(student_logits, tokens) == jnp.max(student_logits, axis=-1)
        return {
            "cross_entropy": -log_prob_of(student, tokens),
            "student_entropy": entropy(jax.lax.stop_gradient(student)),
            "top1_accuracy": first.astype(student.dtype),
        }

    tiled = True

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        student = moments.student
        return {
            "cross_entropy": -student.logp,
            "student_entropy": jax.lax.stop_gradient(student.entropy),
            "top1_accuracy": student.is_top,
        }

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        loss = base.token_mean(terms["cross_entropy"], mask, inputs)
        return {"cross_entropy": base.LossTerm(1.0, *loss)}, base.masked_totals(terms, mask)

    def variables(self) -> base.Variables:
        return base.Variables(
            "reference completions", "reference token", "immediate", "none", "none", "none"
        )
