"""Refusals that several methods share."""

import difflib
import math
from collections.abc import Iterable

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Shaped


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError at the first name in `given` that is not `known`, with the nearest one that
    is.

    >>> check_known("divergence", ["forward_k"], ["forward_kl", "k1"])
    Traceback (most recent call last):
    ValueError: unknown divergence 'forward_k': did you mean 'forward_kl'? known: forward_kl, k1
    """
    known = tuple(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown {what} {name!r}: {hint}known: {', '.join(known) or 'none'}")


def check_written(
    tokens: Shaped[Array, "B T"], mask: Shaped[Array, "B T"], vocabulary_size: int
) -> None:
    """Raises ValueError at a mask that is not bool or 0/1, and at a token inside it that is none of
    the vocabulary, unless they are traced and cannot be looked at.

    >>> import jax.numpy as jnp
    >>> check_written(jnp.array([[0, 7]]), jnp.array([[1, 0]]), vocabulary_size=4)
    """
    if not isinstance(mask, Tracer) and not np.isin(values := np.asarray(mask), (0, 1)).all():
        odd = values[~np.isin(values, (0, 1))][0]
        raise ValueError(
            f"the mask holds {odd}, but says only whether a token was written, 0 or 1: "
            "give weights as the input `weight`"
        )
    if isinstance(tokens, Tracer) or isinstance(mask, Tracer):
        return
    ids = np.asarray(tokens)[np.asarray(mask).astype(bool)]
    if (strange := ids[(ids < 0) | (ids >= vocabulary_size)]).size:
        raise ValueError(
            f"tokens hold the id {strange[0]} inside the mask, but the logits are of a vocabulary "
            f"of {vocabulary_size}: take it out of the mask, or give the logits of every id"
        )


def check_contiguous(mask: Shaped[Array, "B T"]) -> None:
    """Raises ValueError at a mask that is off before a token that is on, unless it is traced and
    cannot be looked at.

    >>> import jax.numpy as jnp
    >>> check_contiguous(jnp.array([[1, 1, 0]]))
    """
    if isinstance(mask, Tracer):
        return
    on = np.asarray(mask).astype(bool)
    holes = np.flatnonzero((on[:, 1:] & ~on[:, :-1]).any(axis=1))
    if holes.size:
        raise ValueError(
            f"the mask of row {holes[0]} is off before a token that is on, but here the order of "
            "tokens counts: start completions at column 0, and silence single tokens with the "
            "input `weight`"
        )


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless logits can be divided by it.

    >>> check_temperature(0.7)
    """
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} must be positive and finite: it divides the logits; 1 "
            "leaves them as they are"
        )
