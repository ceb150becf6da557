"""What is measured at every token of a completion, beside any loss: a vocabulary stage of its own."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jopd.losses.base import Inputs, Terms
from jopd.losses.divergences import reverse_kl
from jopd.losses.vocabulary import log_prob_of, log_softmax


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Student and teacher at each token, both at temperature 1.

    Attributes:
      view: the teacher's.

    Terms, each `[*n]`, nats or shares:
      kl: `KL(student || teacher)` over the whole vocabulary.
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
        student, teacher = log_softmax(student_logits), log_softmax(teacher_logits[self.view])
        return {
            "kl": reverse_kl(student, teacher),
            "student_entropy": -jnp.sum(jnp.exp(student) * student, axis=-1),
            "teacher_entropy": -jnp.sum(jnp.exp(teacher) * teacher, axis=-1),
            "top1_agreement": (jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)).astype(student.dtype),
            "log_ratio": log_prob_of(teacher, tokens) - log_prob_of(student, tokens),
        }
