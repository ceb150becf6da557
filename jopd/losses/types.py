"""The words that every loss is written in: arrays by their axes, sums kept apart from their counts,
and a method's six variables.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

Logits = Float[Array, "*n V"]
Views = Mapping[str, Logits]
Tokens = Int[Array, "*n"]
Mask = Bool[Array, "B T"]
Inputs = Mapping[str, Shaped[Array, "..."]]
Terms = dict[str, Float[Array, "..."]]
# Per-token values, and where they count.
Profiles = dict[str, tuple[Shaped[Array, "B T"], Mask]]


class Total(NamedTuple):
    """A sum and the count that divides it, kept apart until every micro-batch and device has added
    its own.
    """

    sum: Float[Array, ""]
    count: Float[Array, ""]

    def mean(self) -> Float[Array, "*shape"]:
        return share(self.sum, self.count)


def share(
    sum: Float[Array | np.ndarray, "*shape"], count: Float[Array | np.ndarray, "*shape"]
) -> Float[Array, "*shape"]:
    """sum / count, and 0 where nothing was counted; a count of weights may be less than 1.

    >>> print(share(jnp.array(3.0), jnp.array(4.0)), share(jnp.array(3.0), jnp.array(0.0)))
    0.75 3.0
    """
    return jnp.asarray(sum) / jnp.where(count > 0, count, 1)


class LossTerm(NamedTuple):
    """One summand of a loss, coefficient * sum / count."""

    coefficient: float
    sum: Float[Array, ""]
    count: Float[Array, ""]


Sums = tuple[dict[str, LossTerm], dict[str, Total]]


class Variables(NamedTuple):
    """A method in the six words of the survey (arXiv:2606.22793)."""

    state: str
    support: str
    credit: str
    routing: str
    gates: str
    regularisation: str


@runtime_checkable
class Stage(Protocol):
    """A vocabulary stage: every method has one, and whoever only measures may bring their own."""

    def token_terms(
        self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs
    ) -> Terms:
        """Per-token terms, [*n] or [*n, k] each, of logits on any leading axes."""
        ...


class Reading(NamedTuple):
    """What the student's distribution says at every token, in nats or shares.

    Attributes:
      logp: log-probability of the sampled token.
      entropy: of the distribution.
      is_top: 1 where no token is likelier than the sampled one.
    """

    logp: Float[Array, "*n"]
    entropy: Float[Array, "*n"]
    is_top: Float[Array, "*n"]


@runtime_checkable
class SecondPass(Protocol):
    """A value that takes sums over the vocabulary of normalised log-probabilities, and so a pass of
    its own once the normalisers are known.
    """

    @property
    def views(self) -> tuple[str, ...]:
        """The teacher views that it reads."""
        ...

    def entries(self, student_logp: Logits, teacher_logp: Views) -> dict[str, Logits]:
        """What is summed, by name, of any entries of the vocabulary."""
        ...

    def value(self, sums: Mapping[str, Float[Array, "*n"]]) -> Float[Array, "*n"]:
        """Of the sums over the whole vocabulary."""
        ...

    def slope(
        self,
        student_logp: Logits,
        teacher_logp: Views,
        sums: Mapping[str, Float[Array, "*#n 1"]],
    ) -> Logits:
        """The derivative of the value in the student's logit of each entry."""
        ...


class Compared(NamedTuple):
    """What a teacher view's distribution q says, alone and against the student's p.

    Attributes:
      logp: log-probability of the sampled token.
      entropy: of the distribution.
      reverse_kl: KL(p || q) over the whole vocabulary.
      forward_kl: KL(q || p).
      top1_agreement: 1 where a token is the likeliest of both.
    """

    logp: Float[Array, "*n"]
    entropy: Float[Array, "*n"]
    reverse_kl: Float[Array, "*n"]
    forward_kl: Float[Array, "*n"]
    top1_agreement: Float[Array, "*n"]


class Further(NamedTuple):
    """What a stage's second pass has found.

    Attributes:
      value: its own; the student's gradient flows through it.
      sums: by name, without gradient.
    """

    value: Float[Array, "*n"]
    sums: dict[str, Float[Array, "*n"]]


class Moments(NamedTuple):
    """What sums over the vocabulary tell of every token, at temperature 1; the student's gradient
    flows through log-probability, entropy, KLs and `further.value`, and none into a teacher.
    """

    student: Reading
    teachers: dict[str, Compared]
    further: Further | None = None


@runtime_checkable
class TiledStage(Stage, Protocol):
    """A vocabulary stage that, where its settings allow it, needs no whole row of logits."""

    @property
    def tiled(self) -> bool:
        """Whether `tiled_terms` is the same as `token_terms` under these settings."""
        ...

    @property
    def second_pass(self) -> SecondPass | None:
        """What the tiled form needs besides log-probabilities, entropies and KLs."""
        ...

    def tiled_terms(self, moments: Moments) -> Terms:
        """The terms of `token_terms`, by the same names, of what `Moments` has."""
        ...
