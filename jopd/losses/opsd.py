"""On-policy self-distillation: the teacher is the student's own model with a privileged context.

    q_t  = p(. | r, x, y_<t)     pi_t = p_theta(. | x, y_<t)       y sampled from pi
    loss = token_mean( KL(q || pi) )                               forward KL, or another divergence
    loss = token_mean( sum_v min( q (log q - log pi), clamp ) )    the paper's, with `entry_clamp`

The clamp bounds each vocabulary entry from above. An entry at the clamp has no gradient of its own,
and the softmax that the other entries share still pushes it down: its logit's gradient is pi_v Q,
where Q is the teacher's probability on the entries below the clamp. So what the context makes much
likelier is unlearnt, further the longer one trains, and the clamped loss is negative, below its
value at the teacher, where that token is gone. No entry is clamped, and the loss is the forward
KL, where log q - log pi <= clamp / q at every entry: for a token that the teacher is sure of, a gap
of `clamp` nats. The metric `clamped_mass` is the teacher's probability on the clamped entries.

One model is the paper's premise, not the loss's: any privileged teacher can be learnt from.

Deviation: no clamp unless it is asked for; the paper's is .05.

Source: OPSD, arXiv:2601.18734. Grade P: forward KL with the clamp at .05 is its final form, its
older scripts use Jensen-Shannon at beta .5 without one; it recommends the frozen initial model as
the teacher.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jopd.losses import base
from jopd.losses.divergences import (
    choose,
    chosen_of,
    comparison,
    comparison_of,
    kl_entries,
    second_pass_of,
)
from jopd.losses.vocabulary import log_softmax


@dataclasses.dataclass(frozen=True)
class OPSD(base.Method):
    """A divergence to the same model under a privileged context.

    Attributes:
      divergence: `forward_kl`, `reverse_kl`, `jensen_shannon` or `total_variation`, over the whole
        vocabulary.
      beta: the teacher's share of jensen_shannon's blend, in (0, 1); 0.5 where left out.
      entry_clamp: upper bound on each vocabulary entry of the forward KL, in nats; off where left
        out. The entries that it acts on move away from the teacher: see above.
      temperature: divides the logits of student and teacher alike.
      teacher_update: the teacher's weights: the initial ones (`frozen`), an average of the
        student's (`ema`), the student's (`live`).
    """

    name = "opsd"
    source = "arXiv:2601.18734 (P)"
    run_defaults = (("teacher.model", "self"),)
    views = ("privileged",)
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"] = (
        "forward_kl"
    )
    beta: float | None = None
    entry_clamp: float | None = None
    temperature: float = 1.0
    teacher_update: Literal["frozen", "ema", "live"] = "frozen"

    def __post_init__(self):
        base.check_known(
            "divergence",
            [self.divergence],
            ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation"),
        )
        choose(self.divergence, beta=self.beta)
        base.check_temperature(self.temperature)
        base.check_known("teacher_update", [self.teacher_update], ("frozen", "ema", "live"))
        if self.entry_clamp is not None and self.divergence != "forward_kl":
            raise ValueError(
                f"entry_clamp={self.entry_clamp} bounds the entries of forward_kl, not of "
                f"{self.divergence}: set entry_clamp to None"
            )
        if self.entry_clamp is not None and not self.entry_clamp > 0:
            raise ValueError(
                f"entry_clamp={self.entry_clamp} must be positive, in nats; 0.05 is the paper's, "
                "None is off"
            )

    @property
    def alerts(self) -> tuple[base.Alert, ...]:
        if self.entry_clamp is None:
            return ()
        message = (
            "method.entry_clamp acts on tokens that the teacher makes likely, and teaches away "
            "from them: leave it out, or raise it"
        )
        return (base.Alert("clamped_mass", 0.01, message),)

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        privileged = teacher_logits["privileged"]
        student, teacher = (
            log_softmax(student_logits, self.temperature),
            log_softmax(privileged, self.temperature),
        )
        terms = comparison(student_logits, privileged)
        if self.entry_clamp is None:
            return {
                "divergence": choose(self.divergence, beta=self.beta)(student, teacher, tokens),
                **terms,
            }
        entries = kl_entries(teacher, student)
        clamped = entries > self.entry_clamp
        terms["clamped_entries"] = jnp.sum(clamped, axis=-1, dtype=entries.dtype)
        terms["clamped_mass"] = jnp.sum(jnp.where(clamped, jnp.exp(teacher), 0), axis=-1)
        return {"divergence": jnp.sum(jnp.minimum(entries, self.entry_clamp), axis=-1), **terms}

    @property
    def tiled(self) -> bool:
        return self.entry_clamp is None and self.temperature == 1

    @property
    def second_pass(self) -> base.SecondPass | None:
        return second_pass_of(self.divergence, self.beta, "privileged")

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        divergence = chosen_of(self.divergence, moments, "privileged")
        return {"divergence": divergence, **comparison_of(moments, "privileged")}

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        loss = base.token_mean(terms["divergence"], mask, inputs)
        return {"divergence": base.LossTerm(1.0, *loss)}, base.masked_totals(terms, mask)

    def variables(self) -> base.Variables:
        return base.Variables(
            state="student rollouts",
            support="full vocabulary",
            credit="immediate",
            routing="none",
            gates="none" if self.entry_clamp is None else f"entry clamp {self.entry_clamp}",
            regularisation="none",
        )
