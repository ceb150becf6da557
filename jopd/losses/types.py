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
