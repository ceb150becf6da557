"""Evidence-guided self-distillation: learn the tokens that the privileged context makes likelier,
where it is heard.

    y is sampled from pi(. | x, r) with probability guided_share, else from pi(. | x); both are
    scored under x alone
    e_t  = log q(y_t | x, r, y_<t) - log q(y_t | x, y_<t)   evidence: one frozen model, two contexts
    g_t  = 1[ e_t in region ]                               such as e_t > threshold
    A_t  = sg( log q(y_t | x, r, y_<t) - log pi(y_t | x, y_<t) )
    loss = - sum_t g_t A_t log pi(y_t) / sum_t g_t
           + kl_coefficient token_mean( KL(pi || q(. | x)) )

A policy gradient sees only what is sampled. What the context alone makes likely (a name) is never
sampled without it, so without guided completions there is nothing to learn from, and the gate on
the evidence can only choose among what is there. Guided tokens are off-policy and not reweighted:
A_t is zero where student and privileged teacher agree, so that agreement is a fixed point under any
sampling, but the way there is no KL's gradient. guided_share 0 or 0.5 and region `all` or
`positive` are the four methods of the paper's two-by-two.

Deviation: the loss as printed, sum g (log pi - log q) over sampled tokens, has the gradient g grad
log pi(y_t): descent lowers exactly the tokens that the gate keeps and never looks at the teacher.
This policy gradient is what it must mean.

One model is the premise: at the start A_t is the evidence, so the gate keeps what is reinforced. A
teacher that is not the student's initial model breaks that, and a run with one is refused.

The evidence is a small difference of two log-probabilities, so its sign is noise for neutral tokens
unless both come from one batch shape and one precision: log-probabilities here are float32, hidden
states and heads are the model's. The paper's threshold is 0, and so is the default here, although a
token at zero evidence may fall on either side of it with another mesh or chunk: `near_threshold` is
the share of tokens so close that rounding decides.

Source: EDGE-OPD, arXiv:2605.23493. Grade S; the policy-gradient form, and that the KL holds on all
completions, guided
ones too, are reconstructions (R): the paper does not state them. Who samples guided completions it
leaves open.
"""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jopd.losses import base
from jopd.losses.credit import Estimate, PolicyGradient
from jopd.losses.divergences import reverse_kl
from jopd.losses.stabilisers import joined
from jopd.losses.vocabulary import log_prob_of, log_softmax

Region = Literal["positive", "negative", "near_zero", "all"]

# How much two float32 log-probabilities of a token may differ by the order of their sums, in nats.
ROUNDING = 1e-4


def evidence(
    privileged_logp: Float[Array, "*n"], plain_logp: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """How much likelier the context makes the sampled tokens, in nats and without gradient.

    >>> print(f"{evidence(jnp.log(0.5), jnp.log(0.25)):.3f}")
    0.693

    Args:
      privileged_logp: log q(y_t | x, r, y_<t) of the sampled tokens.
      plain_logp: log q(y_t | x, y_<t), of the same model.
    """
    # A token that neither allows (-inf twice) is no evidence.
    difference = jnp.where(privileged_logp == plain_logp, 0, privileged_logp - plain_logp)
    return jax.lax.stop_gradient(difference)


def evidence_mask(
    evidence: Float[Array, "*n"], *, region: str, threshold: float | int
) -> Bool[Array, "*n"]:
    """Which tokens lie in a region of the evidence.

    >>> print(evidence_mask(jnp.array([-0.5, 0.0, 0.5]), region="positive", threshold=0.1))
    [False False  True]

    Args:
      evidence: in nats.
      region: "positive" e > threshold, "negative" e < -threshold, "near_zero" |e| <= threshold,
        "all".
      threshold: at least 0, in nats; "all" has no use for it.

    Raises:
      ValueError: an unknown region, or a negative threshold.
    """
    _check_region(region, threshold)
    return {
        "positive": evidence > threshold,
        "negative": evidence < -threshold,
        "near_zero": jnp.abs(evidence) <= threshold,
        "all": jnp.ones(evidence.shape, bool),
    }[region]


def _check_region(region, threshold):
    base.check_known("region", [region], get_args(Region))
    if not threshold >= 0:
        raise ValueError(
            f"threshold={threshold} must not be negative, in nats: region='positive' is above it, "
            "'negative' below its negative, 'near_zero' between"
        )


def check_guidance(guided_share: float, guided_writer: str) -> None:
    """Raises ValueError unless completions can be guided in that way.

    >>> check_guidance(0.5, "student")
    """
    if not 0 <= guided_share <= 1:
        raise ValueError(
            f"guided_share={guided_share} must lie in [0, 1]: it is a probability; 0.5 is "
            "EDGE-OPD's"
        )
    base.check_known("guided_writer", [guided_writer], ("student", "teacher"))
    if guided_writer != "student" and not guided_share:
        raise ValueError(
            f"guided_writer={guided_writer!r} writes nothing with guided_share=0: set it, or leave "
            "this out"
        )


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The vocabulary stage of the scoring pass: the evidence decides how many tokens count."""

    second_pass = None
    temperature: float

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        of = lambda view: log_prob_of(log_softmax(teacher_logits[view], self.temperature), tokens)
        return {"evidence": evidence(of("privileged"), of("plain"))}

    @property
    def tiled(self) -> bool:
        return self.temperature == 1

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        teachers = moments.teachers
        return {"evidence": evidence(teachers["privileged"].logp, teachers["plain"].logp)}


@dataclasses.dataclass(frozen=True)
class EvidenceGuidedOPD(PolicyGradient):
    """A policy gradient to the privileged teacher, on the tokens that the context is evidence for.

    It logs, over all tokens, the share that is `kept`, the mean `evidence`, `rho_plus` = Pr[e >
    threshold], `rho_lev` = Pr[|exp(e) - 1| > .05], `rho_agree` = Pr[sign e = sign l], and
    `near_threshold`, the share that rounding may move to the other side of the gate.

    Attributes:
      guided_share: the probability that a completion is sampled with the privileged context in the
        prompt.
      guided_writer: who samples those: the student as it is now, or the teacher.
      region: the tokens that count, by their evidence: above the threshold (`positive`), below its
        negative (`negative`), between the two (`near_zero`), or `all`.
      threshold: in nats, at least 0; where left out, 0.1 for near_zero and 0 for the others.
      kl_coefficient: of KL(student || teacher without the context), at every token; 0 is off, 0.05
        the paper's.
    """

    name = "edge_opd"
    source = "EDGE-OPD, arXiv:2605.23493 (S; policy-gradient form R)"
    identity_settings = (("region", "all"),)
    shown = ("evidence", "kept")
    run_defaults = (("teacher.model", "self"),)
    views = ("privileged", "plain")
    one_model = True
    guided_share: float = 0.5
    guided_writer: Literal["student", "teacher"] = "student"
    region: Region = "positive"
    threshold: float | None = None
    kl_coefficient: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_guidance(self.guided_share, self.guided_writer)
        _check_region(self.region, self._threshold)
        if self.region == "all" and self.threshold is not None:
            raise ValueError(
                f"threshold={self.threshold} does nothing with region='all': leave it out"
            )
        if not 0 <= self.kl_coefficient < math.inf:
            raise ValueError(
                f"kl_coefficient={self.kl_coefficient} must not be negative; 0 is off, 0.05 the "
                "paper's"
            )

    @property
    def _threshold(self) -> float:
        return (
            (0.1 if self.region == "near_zero" else 0.0)
            if self.threshold is None
            else self.threshold
        )

    def scoring(self) -> base.Stage:
        return Evidence(self.temperature)

    def prepare(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> dict[str, Array]:
        of_token = terms["evidence"]
        let_through = evidence_mask(of_token, region=self.region, threshold=self._threshold)
        return {"evidence": of_token, "kept": let_through.astype(of_token.dtype)}

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        terms = self.sampled_terms(student_logits, teacher_logits["privileged"], tokens)
        if self.kl_coefficient:
            student, plain = (
                log_softmax(z, self.temperature) for z in (student_logits, teacher_logits["plain"])
            )
            terms["kl_plain"] = reverse_kl(student, plain)
        return terms

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        terms = self.tiled_sampled_terms(moments, "privileged")
        if self.kl_coefficient:
            terms["kl_plain"] = moments.teachers["plain"].reverse_kl
        return terms

    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        log_ratio, metrics = self.log_ratio(terms, mask)
        advantage = self.with_task_reward(log_ratio, mask, inputs)
        of_token = inputs["evidence"]
        measured = {
            "advantage": advantage,
            "evidence": of_token,
            "kept": inputs["kept"],
            "rho_plus": of_token > self._threshold,
            "rho_lev": jnp.abs(jnp.expm1(of_token)) > 0.05,
            "rho_agree": jnp.sign(of_token) == jnp.sign(log_ratio),
        }
        if self.region != "all":
            measured["near_threshold"] = self._distance(of_token) <= ROUNDING
        return Estimate(advantage, {}, metrics | base.masked_totals(measured, mask))

    def _distance(self, evidence: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """How far the evidence is from the region's nearest edge."""
        edge = {"positive": self._threshold, "negative": -self._threshold}
        if self.region in edge:
            return jnp.abs(evidence - edge[self.region])
        return jnp.abs(jnp.abs(evidence) - self._threshold)

    def aggregate(
        self, values: Float[Array, "B T"], mask: base.Mask, inputs: base.Inputs
    ) -> base.Total:
        return base.token_mean(values, mask & (inputs["kept"] > 0), inputs)

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        losses, metrics = super().reduce(terms, mask, inputs)
        if self.kl_coefficient:
            losses["kl_plain"] = base.LossTerm(
                self.kl_coefficient, *base.token_mean(terms["kl_plain"], mask, inputs)
            )
        return losses, metrics

    def variables(self) -> base.Variables:
        words = self.described("immediate")
        gates = (
            []
            if self.region == "all"
            else [f"{self.region} evidence, threshold {self._threshold:g}"]
        )
        pull = f"{self.kl_coefficient:g} x KL to the teacher without the context"
        return base.Variables(
            state=guided_rollouts(self.guided_share, self.guided_writer),
            support="sampled token",
            credit=words["credit"],
            routing="none",
            gates=joined(words["gates"], *gates),
            regularisation=pull if self.kl_coefficient else "none",
        )


def guided_rollouts(guided_share: float, guided_writer: str) -> str:
    """The survey's `state` of a method with such completions.

    >>> guided_rollouts(0.5, "student")
    'student rollouts, 0.5 of them written by the student with the context'
    """
    guided = f", {guided_share:g} of them written by the {guided_writer} with the context"
    return "student rollouts" + (guided if guided_share else "")
