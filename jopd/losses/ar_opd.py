"""Anchored-residual self-distillation: the teacher that saw half a solution, corrected by the one
that saw all of it.

    residual = clip( log q_full - log q_part, -c, c )
    q_lam    = softmax( log q_part + lam residual )     all of it without gradient
    loss     = token_mean( KL(q_lam || pi) )            a completion's first tokens are skipped

Both teachers are one model, which reads the worked solution and its first part. In the paper it has
the student's averaged weights; the target means the same with any other. The partial view is the
anchor, as it gives nothing away that was not derived; lam (`scale`) is how much of the full view's
correction is added. 0 is Partial OPD; 1 is Full OPD as far as no entry is clipped; above 1
extrapolates.

A token that the anchor rules out (log-probability -inf) stays ruled out, whatever the full view
says; one that the full view alone rules out loses lam c nats.

Deviation: the paper's table has lam .6 and its repository sweeps around .8; the default is the
table's.

Source: AR-OPD, arXiv:2606.10385. Grade P.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses import base
from jopd.losses.divergences import comparison, comparison_of, forward_kl, kl_entries
from jopd.losses.vocabulary import log_softmax


def anchored_residual_target(
    partial_logp: Float[Array, "*n V"],
    full_logp: Float[Array, "*n V"],
    *,
    scale: float | int,
    clip: float | int,
) -> Float[Array, "*n V"]:
    """Log-probabilities of q_lam, without gradient.

    >>> partial, full = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.2, 0.8]))
    >>> print(jnp.exp(anchored_residual_target(partial, full, scale=0.5, clip=5.0)).round(3))
    [0.333 0.667]

    Args:
      partial_logp: log q_part, the anchor. Its entries of -inf stay -inf.
      full_logp: log q_full; -inf is allowed.
      scale: lam, how much of the residual is added, at least 0.
      clip: c, the bound on the size of a residual, in nats.

    Raises:
      ValueError: a negative scale, or a clip that is not positive and finite.
    """
    _check(scale, clip)
    partial_logp, full_logp = jax.lax.stop_gradient((partial_logp, full_logp))
    return jax.nn.log_softmax(
        partial_logp + scale * jnp.clip(_residual(partial_logp, full_logp), -clip, clip)
    )


def _residual(partial_logp, full_logp):
    # -inf less -inf is NaN: a token that both rule out has no residual.
    return jnp.where(full_logp == partial_logp, 0, full_logp - partial_logp)


def _check(scale, clip):
    if not 0 <= scale < math.inf:
        raise ValueError(
            f"scale={scale} must not be negative: 0 is Partial OPD, 1 Full OPD, 0.6 the paper's"
        )
    if not 0 < clip < math.inf:
        raise ValueError(
            f"clip={clip} must be positive and finite, in nats; 5 is the paper's, 1000 never acts"
        )


# No weight of the target overflows before it is normalised where scale x clip is so small.
LARGEST_SCORE = 60.0


@dataclasses.dataclass(frozen=True)
class ToTarget:
    """KL(q_lam || pi) as a second pass over the vocabulary, and what else is logged.

    Of entries w = q_part exp(lam residual), whose sum is the target's normaliser.
    """

    scale: float
    clip: float
    views = ("full", "partial")

    def entries(self, student_logp: base.Logits, teacher_logp: base.Views) -> base.Terms:
        partial, full = teacher_logp["partial"], teacher_logp["full"]
        residual, under_full = _residual(partial, full), jnp.exp(full)
        weight, size = self._weight(teacher_logp), jnp.abs(residual)
        moved = self.scale * jnp.clip(residual, -self.clip, self.clip)
        to_student = jnp.where(weight > 0, weight * (partial + moved - student_logp), 0)
        return {
            "mass": weight,
            "to_student": to_student,
            "to_partial": weight * moved,
            "full_to_partial": kl_entries(full, partial),
            "size": under_full * jnp.minimum(size, self.clip),
            "clipped": jnp.where(size > self.clip, under_full, 0),
        }

    def value(self, sums: Mapping[str, Float[Array, "*n"]]) -> Float[Array, "*n"]:
        return sums["to_student"] / sums["mass"] - jnp.log(sums["mass"])

    def slope(
        self,
        student_logp: base.Logits,
        teacher_logp: base.Views,
        sums: Mapping[str, Float[Array, "*#n 1"]],
    ) -> base.Logits:
        return jnp.exp(student_logp) - self._weight(teacher_logp) / sums["mass"]

    def _weight(self, teacher_logp):
        partial, full = teacher_logp["partial"], teacher_logp["full"]
        residual = jnp.clip(_residual(partial, full), -self.clip, self.clip)
        return jnp.exp(partial + self.scale * residual)


@dataclasses.dataclass(frozen=True)
class AnchoredResidualOPD(base.Method):
    """Forward KL to the partial view's distribution, moved part of the way to the full view's.

    It logs, without gradient and at its own temperature, `kl_full_partial` = KL(q_full || q_part),
    `kl_target_partial` = KL(q_lam || q_part), `kl_full_student` = KL(q_full || pi), whose growth in
    late positions is the paper's drift, and the means under q_full of the clipped residual's size,
    `residual_size`, and of whether it was clipped, `residual_clipped` (a plain mean over the
    vocabulary would be about its tail). The skipped tokens are among them.

    Attributes:
      scale: how much of the full view's correction is added to the partial view: 0 is Partial OPD,
        1 Full OPD. The paper's table has 0.6, its repository's sweep 0.8.
      clip: bound on the size of that correction for each vocabulary entry, in nats.
      skip_tokens: so many tokens at the start of each completion have no loss; shorter ones have
        none at all.
      temperature: divides the logits of student and teacher alike.
      teacher_update: the teacher's weights: the initial ones (`frozen`), an average of the
        student's (`ema`), the student's (`live`).
    """

    name = "ar_opd"
    source = "AR-OPD, arXiv:2606.10385 (P)"
    run_defaults = (("teacher.model", "self"),)
    views = ("full", "partial")  # runs compare the student with the first
    scale: float = 0.6
    clip: float = 5.0
    skip_tokens: int = 3
    temperature: float = 1.0
    teacher_update: Literal["frozen", "ema", "live"] = "ema"

    def __post_init__(self):
        _check(self.scale, self.clip)
        base.check_temperature(self.temperature)
        base.check_known("teacher_update", [self.teacher_update], ("frozen", "ema", "live"))
        if self.skip_tokens < 0:
            raise ValueError(
                f"skip_tokens={self.skip_tokens} must not be negative; 3 is the paper's, 0 is off"
            )

    @property
    def ordered(self) -> bool:
        return self.skip_tokens > 0

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        of = lambda logits: log_softmax(logits, self.temperature)
        student, partial, full = (
            of(student_logits),
            of(teacher_logits["partial"]),
            of(teacher_logits["full"]),
        )
        target = anchored_residual_target(partial, full, scale=self.scale, clip=self.clip)
        size, under_full = jnp.abs(_residual(partial, full)), jnp.exp(full)
        return {
            "divergence": forward_kl(student, target),
            "kl_full_partial": forward_kl(partial, full),
            "kl_target_partial": forward_kl(partial, target),
            "kl_full_student": forward_kl(jax.lax.stop_gradient(student), full),
            "residual_size": jnp.sum(under_full * jnp.minimum(size, self.clip), axis=-1),
            "residual_clipped": jnp.sum(jnp.where(size > self.clip, under_full, 0), axis=-1),
            **comparison(student_logits, teacher_logits["full"]),
        }

    @property
    def tiled(self) -> bool:
        return self.temperature == 1 and self.scale * self.clip <= LARGEST_SCORE

    @property
    def second_pass(self) -> base.SecondPass:
        return ToTarget(self.scale, self.clip)

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        assert moments.further is not None
        sums = moments.further.sums
        return {
            "divergence": moments.further.value,
            "kl_full_partial": sums["full_to_partial"],
            "kl_target_partial": sums["to_partial"] / sums["mass"] - jnp.log(sums["mass"]),
            "kl_full_student": jax.lax.stop_gradient(moments.teachers["full"].forward_kl),
            "residual_size": sums["size"],
            "residual_clipped": sums["clipped"],
            **comparison_of(moments, "full"),
        }

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        late = mask & (jnp.cumsum(mask, axis=1) > self.skip_tokens)
        loss = base.token_mean(terms["divergence"], late, inputs)
        return {"divergence": base.LossTerm(1.0, *loss)}, base.masked_totals(terms, mask)

    def variables(self) -> base.Variables:
        gates = [f"residual clip {self.clip:g}"]
        gates += [f"first {self.skip_tokens} tokens skipped"] * bool(self.skip_tokens)
        return base.Variables(
            state="student rollouts",
            support="full vocabulary",
            credit="immediate",
            routing="none",
            gates=", ".join(gates),
            regularisation=f"anchored at the partial view, {self.scale:g} x residual",
        )
