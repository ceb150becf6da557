"""CR-OPD, counterfactual routing: where a token is suppressed, the freed probability is sent where
the teacher wants it.

    only where A_t < 0:
    C_t    = { v != y_t : (v in teacher's top 32, or q(v) >= teacher_reachable if that is set)
                          and (v in student's top 64, or pi(v) >= reachable) and q(v) > pi(v) }
    rho_t(v) ~ q(v)^a pi(v)^b  on C_t, else 0
    w_t    = eta 1[A_t < 0, C_t not empty] sg( min(|A_t|, c) )
    loss   = aggregate( -sg(A_t) log pi(y_t) + w_t CE(rho_t, pi) )
             CE = -sum_v rho_t(v) log pi(v), rho_t detached

A_t and aggregate are those of `opd_pg` or, with credit "gae", of `gae_opd`. On the logits, where
|A_t| <= c, the gradient of a routed token is |A_t| (e_y - (1 - eta) pi - eta rho): eta = 0 is the
plain policy gradient, which hands what y loses to all tokens in proportion to pi, wanted or not;
eta = 1 hands all of it to rho. An empty C_t leaves plain suppression, or the token is left alone
(`abstain`).

Not an unbiased estimate of any divergence's gradient, by design: the routed part does not vanish in
expectation. At the teacher no A_t is below 0 and no C_t has a member, so that loss and gradient are
0 (not so with "gae", see there).

Source: survey arXiv:2606.22793. Grade P for the idea; the equations and defaults are a
reconstruction (R): the paper does not state them. Tokens of no student probability are not
reachable, whatever their rank: ours, as CE is infinite there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jopd.losses import base
from jopd.losses.credit import Estimate, PolicyGradient, check_credit
from jopd.losses.gae_opd import GAEOPD
from jopd.losses.opd_pg import OPDPolicyGradient
from jopd.losses.vocabulary import in_top_k, log_softmax


def routing_distribution(
    student_logp: Float[Array, "*n V"],
    teacher_logp: Float[Array, "*n V"],
    sampled: Int[Array, "*n"],
    *,
    teacher_top_k: int = 32,
    student_top_k: int = 64,
    reachable: float = 1e-3,
    teacher_reachable: float | None = None,
    teacher_power: float = 1.0,
    student_power: float = 0.0,
) -> tuple[Float[Array, "*n V"], Bool[Array, "*n"]]:
    """The distribution rho that takes up what the sampled token loses, and where there is one.

    >>> pi, q = jnp.log(jnp.array([0.6, 0.3, 0.1])), jnp.log(jnp.array([0.1, 0.6, 0.3]))
    >>> rho, nonempty = routing_distribution(pi, q, jnp.array(0))
    >>> print((3 * rho).round(3), nonempty)
    [0. 2. 1.] True

    Args:
      student_logp: log pi.
      teacher_logp: log q.
      sampled: the tokens y, which never take up anything themselves.
      teacher_top_k: candidates are among so many likeliest tokens of the teacher,
      teacher_reachable: or, if set, have this much teacher probability;
      student_top_k: and they are among so many likeliest of the student,
      reachable: or have this much student probability.
      teacher_power: a in rho ~ q^a pi^b.
      student_power: b.

    Returns:
      Probabilities [*n, V], without gradient, that sum to 1, or are 0 where there is no candidate;
      and [*n] whether there is one.
    """
    student, teacher = jax.lax.stop_gradient((student_logp, teacher_logp))
    wanted = in_top_k(teacher, teacher_top_k)
    if teacher_reachable is not None:
        wanted |= teacher >= jnp.log(jnp.asarray(teacher_reachable, teacher.dtype))
    in_reach = in_top_k(student, student_top_k) | (
        student >= jnp.log(jnp.asarray(reachable, student.dtype))
    )
    not_sampled = (
        jax.lax.broadcasted_iota(sampled.dtype, student.shape, student.ndim - 1)
        != sampled[..., None]
    )
    candidates = not_sampled & wanted & in_reach & (teacher > student) & (student > -jnp.inf)
    # Both are finite among the candidates; elsewhere 0 * -inf would be NaN.
    safe = lambda logp: jnp.where(candidates, logp, 0)
    scores = jnp.where(
        candidates, teacher_power * safe(teacher) + student_power * safe(student), -jnp.inf
    )
    nonempty = jnp.any(candidates, axis=-1)
    rho = jax.nn.softmax(jnp.where(nonempty[..., None], scores, 0), axis=-1)
    return jnp.where(candidates, rho, 0), nonempty


@dataclasses.dataclass(frozen=True)
class CROPD(PolicyGradient):
    """A policy gradient that routes the probability it takes away.

    Attributes:
      credit: the advantage's: `immediate`, `return_to_go`, `discounted` (as in opd_pg) or `gae`
        (with gae_opd's critic).
      discount: for `discounted`, in (0, 1); for `gae`, in [0, 1] and 1 where left out.
      baseline: what opd_pg subtracts: nothing, or the exact -KL(pi || q) of the state (`kl`).
      gae_lambda: for `gae`, in [0, 1]; 0.95 where left out.
      routing_weight: eta, the share of the freed probability that is routed; 0 is none.
      routing_clip: c, bound on the advantage that the routed part is weighted with, in nats.
      teacher_top_k: a candidate is among so many likeliest tokens of the teacher,
      teacher_reachable: or has at least this teacher probability, where this is set;
      student_top_k: and is among so many likeliest tokens of the student,
      reachable: or has at least this student probability.
      teacher_power: a in rho ~ q^a pi^b over the candidates.
      student_power: b.
      empty_route: what becomes of a suppressed token without candidates: suppressed as ever
        (`suppress`) or left alone (`abstain`).
    """

    name = "cr_opd"
    source = "arXiv:2606.22793 (idea P, equations R)"
    credit: Literal["immediate", "return_to_go", "discounted", "gae"] = "immediate"
    discount: float | None = None
    baseline: Literal["none", "kl"] = "none"
    gae_lambda: float | None = None
    routing_weight: float = 1.0
    routing_clip: float = 5.0
    teacher_top_k: int = 32
    teacher_reachable: float | None = None
    student_top_k: int = 64
    reachable: float = 1e-3
    teacher_power: float = 1.0
    student_power: float = 0.0
    empty_route: Literal["suppress", "abstain"] = "suppress"

    def __post_init__(self):
        check_credit(self.credit, ("immediate", "return_to_go", "discounted", "gae"))
        self._estimator()
        base.check_known("empty_route", [self.empty_route], ("suppress", "abstain"))
        for name in ("teacher_top_k", "student_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1, or nothing is ever routed"
                )
        for name in ("routing_weight", "teacher_power", "student_power"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
        if not self.routing_clip > 0:
            raise ValueError(
                f"routing_clip={self.routing_clip} must be positive, in nats; for no routing set "
                "routing_weight to 0"
            )
        for name in ("reachable", "teacher_reachable"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value} must lie in (0, 1]: it is a probability")

    def _estimator(self) -> PolicyGradient:
        """The method whose advantages are routed."""
        shared = {
            name: getattr(self, name) for name in ("log_ratio_clip", "reward_weight", "temperature")
        }
        if self.credit != "gae":
            if self.gae_lambda is not None:
                raise ValueError(
                    f"gae_lambda={self.gae_lambda} has nothing to act on with "
                    f"credit={self.credit!r}: set credit to 'gae', or leave it out"
                )
            return OPDPolicyGradient(
                credit=self.credit, discount=self.discount, baseline=self.baseline, **shared
            )
        if self.baseline != "none":
            raise ValueError(
                f"baseline={self.baseline!r} with credit='gae', whose critic is the baseline: "
                "leave it out"
            )
        settings = {"discount": self.discount, "gae_lambda": self.gae_lambda}
        return GAEOPD(
            **{name: value for name, value in settings.items() if value is not None}, **shared
        )

    @property
    def ordered(self) -> bool:
        return self._estimator().ordered

    @property
    def alerts(self) -> tuple[base.Alert, ...]:
        return self._estimator().alerts

    @property
    def inputs(self) -> tuple[str, ...]:
        return self._estimator().inputs

    @property
    def module_inputs(self) -> tuple[str, ...]:
        return self._estimator().module_inputs

    @property
    def why_not_zero(self) -> str:
        return self._estimator().why_not_zero

    def init_modules(self, width: int, key: PRNGKeyArray) -> dict[str, Array]:
        return self._estimator().init_modules(width, key)

    def apply_modules(
        self, modules: Mapping[str, Array], hidden: Float[Array, "B S d"], mask: base.Mask
    ) -> dict[str, Float[Array, "B _"]]:
        return self._estimator().apply_modules(modules, hidden, mask)

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        student, teacher = (
            log_softmax(logits, self.temperature)
            for logits in (student_logits, teacher_logits["teacher"])
        )
        names = (
            "teacher_top_k",
            "student_top_k",
            "reachable",
            "teacher_reachable",
            "teacher_power",
            "student_power",
        )
        rho, nonempty = routing_distribution(
            student, teacher, tokens, **{name: getattr(self, name) for name in names}
        )
        routed = rho > 0
        total = lambda values: jnp.sum(jnp.where(routed, values, 0), axis=-1)
        return self._estimator().token_terms(student_logits, teacher_logits, tokens, extras) | {
            "route_cross_entropy": -total(rho * jnp.where(routed, student, 0)),
            "route_nonempty": nonempty.astype(student.dtype),
            "route_candidates": jnp.sum(routed, axis=-1, dtype=student.dtype),
            "route_teacher_mass": total(jnp.exp(teacher)),
        }

    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        return self._estimator().estimate(terms, mask, inputs)

    def aggregate(
        self, values: Float[Array, "B T"], mask: base.Mask, inputs: base.Inputs
    ) -> base.Total:
        return self._estimator().aggregate(values, mask, inputs)

    @property
    def aggregation(self) -> Literal["token mean", "row sum"]:
        return self._estimator().aggregation

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        advantage, losses, metrics = self.estimate(terms, mask, inputs)
        suppressed, nonempty = mask & (advantage < 0), terms["route_nonempty"] > 0
        weight = jnp.where(suppressed & nonempty, jnp.minimum(-advantage, self.routing_clip), 0)
        if self.empty_route == "abstain":
            advantage = jnp.where(suppressed & ~nonempty, 0, advantage)
        policy_gradient = self.aggregate(-advantage * terms["student_logp"], mask, inputs)
        routing = self.aggregate(weight * terms["route_cross_entropy"], mask, inputs)
        losses = losses | {"routing": base.LossTerm(self.routing_weight, *routing)}
        return {
            "policy_gradient": base.LossTerm(1.0, *policy_gradient),
            **losses,
        }, metrics | self.logged(terms, mask, inputs)

    def profiled(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Profiles:
        profiles = super().profiled(terms, mask, inputs)
        suppressed, _ = profiles["suppressed"]
        # Routes are made everywhere, but taken where the token is suppressed: there they are
        # counted.
        routes = {
            name: (terms[name], mask & suppressed) for name in terms if name.startswith("route_")
        }
        return profiles | routes

    def variables(self) -> base.Variables:
        return (
            self._estimator()
            .variables()
            ._replace(
                routing=f"counterfactual, weight {self.routing_weight:g}, clip "
                f"{self.routing_clip:g}"
                + (", else abstain" if self.empty_route == "abstain" else "")
            )
        )
