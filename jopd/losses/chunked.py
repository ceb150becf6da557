"""The vocabulary stage from hidden states, a few positions at a time.

Logits are what fills the memory: [B, T, V] three times over, in float32. Here the time axis is cut
into chunks [B, c, d]; each chunk's logits are made from hidden states and output heads, reduced to
per-token terms, dropped, and made again for the backward pass. A chunk holds all rows, so it is
sharded as the batch is. It is the way that every stage can go; many have a shorter one, in `tiled`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jopd.losses.stages import silence, vocabulary_stage
from jopd.losses.types import Inputs, Stage, Terms
from jopd.losses.vocabulary import accumulator


class Scored(NamedTuple):
    """What a model says at every completion token, before the vocabulary is unfolded.

    Attributes:
      hidden: [B, T, d], the final hidden states that predict the tokens.
      head: [d, V], the output head, in the type its gradient is to be summed in; it is multiplied
        in the type of `hidden`.
    """

    hidden: Float[Array, "B T d"]
    head: Float[Array, "d V"]


def chunked_terms(
    stage: Stage,
    student: Scored,
    teachers: Mapping[str, Scored],
    tokens: Int[Array, "B T"],
    mask: Shaped[Array, "B T"],
    extras: Inputs,
    *,
    chunk: int,
    vocabulary: int,
    gather: Callable[[Array], Array] = lambda hidden: hidden,
) -> Terms:
    """Per-token terms [B, T, ...] of a stage, with the logits of no more than `chunk` positions a
    row alive at once.

    >>> from jopd import losses
    >>> scored = Scored(jnp.ones((1, 4, 2)), jnp.eye(2))
    >>> tokens, mask = jnp.zeros((1, 4), int), jnp.ones((1, 4), bool)
    >>> terms = chunked_terms(
    ...     losses.get("opd"), scored, {"teacher": scored}, tokens, mask, {}, chunk=2, vocabulary=2)
    >>> print(terms["divergence"])
    [[0. 0. 0. 0.]]

    Args:
      stage: a method, or anything with its `token_terms`.
      student: carries the gradient.
      teachers: by view; no gradient flows into them.
      tokens: [B, T].
      mask: [B, T] bool or 0/1; positions outside it give finite terms and no gradient, whatever
        stands there.
      extras: {name: [B, T, ...]}, the per-token arrays that the stage asked for.
      chunk: positions at a time; T need not be a multiple. 0 takes all at once.
      vocabulary: the first so many columns of every head count; the rest only pad it.
      gather: brings a chunk's hidden states [B, c, d] to the devices that hold the heads, where
        rows and vocabulary are split over the same ones.

    Raises:
      ValueError: a negative chunk, or a head with fewer columns than the vocabulary.
    """
    chunk = in_range(chunk, tokens.shape[1])
    check_heads(student, teachers, vocabulary)
    heads = {"student": student.head, **{view: scored.head for view, scored in teachers.items()}}
    heads = {reader: head[:, :vocabulary] for reader, head in heads.items()}

    def logits(hidden, head):
        return jnp.matmul(
            hidden, head.astype(hidden.dtype), preferred_element_type=accumulator(hidden.dtype)
        )

    def body(_, part):
        hidden, teacher_hidden, tokens, mask, extras = part
        hidden, teacher_hidden = jax.tree.map(gather, (hidden, teacher_hidden))
        teacher_logits = {
            view: logits(value, heads[view]) for view, value in teacher_hidden.items()
        }
        # Here and not only on the logits: the head's gradient is a sum over hidden states, where 0
        # * NaN would be NaN.
        student_logits = logits(silence(hidden, mask), heads["student"])
        return None, vocabulary_stage(stage, student_logits, teacher_logits, tokens, mask, extras)

    hidden = {view: scored.hidden for view, scored in teachers.items()}
    columns = (student.hidden, hidden, tokens, mask.astype(bool), dict(extras))
    # Inside a scan nothing can be merged across the two passes anyway, so XLA is left free to
    # optimise.
    return over_time(jax.checkpoint(body, prevent_cse=False), columns, chunk)[1]


def over_time(body: Callable, columns, size: int, carry: Any = None):
    """`body` of a carry and `size` columns at a time of arrays [B, T, ...], one after another: its
    last carry, and what it makes of the columns, [B, size, ...], side by side.

    >>> total, doubled = over_time(
    ...     lambda total, x: (total + x.sum(), 2 * x), jnp.arange(5)[None], 2, jnp.array(0))
    >>> print(total, doubled)
    10 [[0 2 4 6 8]]
    """
    length = jax.tree.leaves(columns)[0].shape[1]
    padding = -length % size

    def split(a):
        a = jnp.pad(a, [(0, 0), (0, padding)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)

    def join(a):
        a = jnp.moveaxis(a, 0, 1)
        return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :length]

    carry, made = jax.lax.scan(body, carry, jax.tree.map(split, columns))
    return carry, jax.tree.map(join, made)


def in_range(chunk: int, length: int) -> int:
    """So many positions as there can be at once of that many; all for a chunk of 0.

    >>> in_range(4, 9), in_range(16, 9), in_range(0, 9)
    (4, 9, 9)
    """
    if chunk < 0:
        raise ValueError(
            f"chunk={chunk} must be a number of positions, or 0 for all of them at once"
        )
    return min(chunk, length) or length


def check_heads(student: Scored, teachers: Mapping[str, Scored], vocabulary: int) -> None:
    """Raises ValueError where a head has fewer columns than the vocabulary.

    >>> check_heads(Scored(jnp.ones((1, 4, 2)), jnp.eye(2)), {}, vocabulary=2)
    """
    for reader, scored in {"student": student, **teachers}.items():
        if scored.head.shape[1] < vocabulary:
            raise ValueError(
                f"vocabulary={vocabulary}, but the head of {reader!r} has {scored.head.shape[1]} "
                "columns: use what student and teacher share"
            )
