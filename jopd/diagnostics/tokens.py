"""What is measured at every token of a completion, beside any loss: vocabulary stages apart."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jopd.losses.divergences import comparison, forward_kl
from jopd.losses.types import Inputs, Terms
from jopd.losses.vocabulary import in_top_k, log_prob_of, log_softmax, top_k


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Student and teacher at each token, both at temperature 1, in a few sums over the vocabulary.

    Attributes:
      view: the teacher's.

    Terms, each `[*n]`, nats or shares, without gradient:
      kl: `KL(student || teacher)` over the whole vocabulary.
      forward_kl: `KL(teacher || student)`.
      student_entropy, teacher_entropy: of the next-token distributions.
      top1_agreement: 1 where both have the same best token.
      log_ratio: `log q(y) - log pi(y)` of the sampled token.
    """

    view: str

    def token_terms(
        self,
        student_logits: Float[Array, "*n V"],
        teacher_logits: Mapping[str, Float[Array, "*n V"]],
        tokens: Int[Array, "*n"],
        extras: Inputs,
    ) -> Terms:
        del extras
        student_logits, teacher = jax.lax.stop_gradient((student_logits, teacher_logits[self.view]))
        log_ratio = log_prob_of(log_softmax(teacher), tokens) - log_prob_of(
            log_softmax(student_logits), tokens
        )
        further = forward_kl(log_softmax(student_logits), log_softmax(teacher))
        return {
            **comparison(student_logits, teacher),
            "forward_kl": further,
            "log_ratio": log_ratio,
        }


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Everything of `Comparison`, and how far the two distributions share a support, for one top-k
    search each.

    With `pi` the student's distribution, `q` the teacher's, `top(.)` the ids of the k likeliest
    tokens (ties to the lowest id) and `y` the sampled token; both at temperature 1.

    Attributes:
      view: the teacher's.
      stop_tokens: those that end a completion.
      k: of the top-k; the vocabulary where that is smaller.
      support_threshold: below this probability a token is outside the student's support.
        Reconstruction: no paper states it.
      reachable: from this probability on the student can be expected to sample a token.

    Terms besides those of `Comparison`, each `[*n]` and without gradient; all but the first in [0,
    1]:
      entropy_gap: `|H(q) - H(pi)|`, nats.
      top_k_overlap: `|top(q) & top(pi)| / k`.
      overlap_mass: `q` on `top(q) & top(pi)`.
      non_overlap_mass: `q` on `top(q) - top(pi)`.
      teacher_mass_on_student_top_k: `q` on `top(pi)`.
      student_mass_on_teacher_top_k: `pi` on `top(q)`.
      out_of_support_mass: `q` where `pi < support_threshold`.
      reachable_teacher_mass: `q` on `top(q)` where `pi >= reachable`.
      sampled_outside_share: 1 where `y` is not in `top(q)`.
      stop_gap: `|q(stop) - pi(stop)|`, the probabilities of any stop token.

    Raises:
      ValueError: k < 1, or a threshold outside (0, 1).

    Source: the support gap is AR-OPD's (arXiv:2606.10385, grade P), the others the survey's
      (arXiv:2606.22793, P).
    """

    view: str
    stop_tokens: tuple[int, ...]
    k: int = 16
    support_threshold: float = 1e-4
    reachable: float = 1e-3

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1: 16 is AR-OPD's")
        for name in ("support_threshold", "reachable"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must lie in (0, 1): it is a token's probability"
                )

    def token_terms(
        self,
        student_logits: Float[Array, "*n V"],
        teacher_logits: Mapping[str, Float[Array, "*n V"]],
        tokens: Int[Array, "*n"],
        extras: Inputs,
    ) -> Terms:
        terms = Comparison(self.view).token_terms(student_logits, teacher_logits, tokens, extras)
        logits = jax.lax.stop_gradient((student_logits, teacher_logits[self.view]))
        # Like what a loss makes of the same logits, so that XLA computes it once.
        student, teacher = (log_softmax(x) for x in logits)
        pi, q = jnp.exp(student), jnp.exp(teacher)
        of_student, of_teacher = in_top_k(student, self.k), in_top_k(teacher, self.k)
        both = of_student & of_teacher
        ids = jax.lax.broadcasted_iota(tokens.dtype, student.shape, student.ndim - 1)
        stops = jnp.zeros(student.shape, bool)
        for stop in self.stop_tokens:
            stops |= ids == stop
        return terms | {
            "entropy_gap": jnp.abs(terms["teacher_entropy"] - terms["student_entropy"]),
            "top_k_overlap": jnp.sum(both, axis=-1, dtype=q.dtype) / min(self.k, q.shape[-1]),
            "overlap_mass": _mass(q, both),
            "non_overlap_mass": _mass(q, of_teacher & ~of_student),
            "teacher_mass_on_student_top_k": _mass(q, of_student),
            "student_mass_on_teacher_top_k": _mass(pi, of_teacher),
            "out_of_support_mass": _mass(q, pi < self.support_threshold),
            "reachable_teacher_mass": _mass(q, of_teacher & (pi >= self.reachable)),
            "sampled_outside_share": 1
            - _mass(jnp.ones_like(q), of_teacher & (ids == tokens[..., None])),
            "stop_gap": jnp.abs(_mass(q, stops) - _mass(pi, stops)),
        }


@dataclasses.dataclass(frozen=True)
class Likeliest:
    """The tokens that each reader expected most, at temperature 1.

    Attributes:
      k: how many of them; the vocabulary where that is smaller.

    Terms, each `[*n, k]`, the likeliest first, ties to the lowest id, without gradient; READER is
    `student` or a teacher's view:
      READER_ids: the tokens, int32.
      READER_probabilities: theirs.
    """

    k: int = 5

    def token_terms(
        self,
        student_logits: Float[Array, "*n V"],
        teacher_logits: Mapping[str, Float[Array, "*n V"]],
        tokens: Int[Array, "*n"],
        extras: Inputs,
    ) -> dict[str, Shaped[Array, "*n k"]]:
        del tokens, extras
        expected = {}
        for reader, logits in {"student": student_logits, **teacher_logits}.items():
            logp, ids = top_k(jax.lax.stop_gradient(log_softmax(logits)), self.k)
            expected |= {f"{reader}_ids": ids, f"{reader}_probabilities": jnp.exp(logp)}
        return expected


def _mass(probabilities: Float[Array, "*n V"], where: Bool[Array, "*n V"]) -> Float[Array, "*n"]:
    return jnp.sum(jnp.where(where, probabilities, 0), axis=-1)
