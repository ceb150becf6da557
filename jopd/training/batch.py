"""A batch as the jitted functions see it, and its rows: one context for each completion, split into
micro-batches and put together again.

Every micro-batch is as wide as the longest row of its own, to a half or a quarter of the batch's;
`by_length` puts rows of like lengths into one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jopd.models.sharding import constrain, of_shards, ways


class Context(NamedTuple):
    """One view of the prompts, left-padded.

    Attributes:
      tokens: `[N, P]` int32.
      valid: `[N, P]`, false on padding.
    """

    tokens: Int[Array, "n p"]
    valid: Bool[Array, "n p"]


class Batch(NamedTuple):
    """What the teacher grades.

    Attributes:
      contexts: by view, "student" among them; `[N, P_view]`, or one row for each completion `[B,
        P_view]`.
      tokens: `[B, T]` completions, right-padded; `B` is `N` times the samples a prompt, a prompt's
        samples side by side.
      mask: `[B, T]`, true on the tokens that count.
      inputs: arrays `[B, T]` or `[B, 1]` by name, for the method's time stage.
      hidden: the teachers' final hidden states by view, `[B, T, d_teacher]`; filled in by `score`.
      extras: per-token arrays `[B, T, ...]` by name, for the method's vocabulary stage.
      streams: by name, batches of further sequences that grew out of these: `[B * M, K]` of them,
        side by side those of a completion.
      starts: of a stream, `[B, M]`, how many of the completion's tokens each sequence goes on from;
        it has no contexts of its own.
    """

    contexts: dict[str, Context]
    tokens: Int[Array, "b t"]
    mask: Bool[Array, "b t"]
    inputs: dict[str, Float[Array, "b _"]] = {}
    hidden: dict[str, Float[Array, "b t _"]] = {}
    extras: dict[str, Array] = {}
    streams: "dict[str, Batch]" = {}
    starts: Int[Array, "b m"] | None = None


def widen(x: Shaped[Array, "n p"], width: int) -> Shaped[Array, "n width"]:
    """More padding on the left of a context's tokens (any id will do) or of its `valid` (false)."""
    return jnp.pad(x, [(0, 0), (width - x.shape[1], 0)])


def stream_of(batch: Batch, name: str) -> Batch:
    """A further stream of a batch, or under the empty name the batch itself."""
    return batch.streams[name] if name else batch


def batch_rows(batch: Batch) -> Batch:
    """One context row for each completion."""
    rows = batch.tokens.shape[0]
    repeat = lambda x: jnp.repeat(x, rows // x.shape[0], axis=0)
    return batch._replace(contexts=jax.tree.map(repeat, batch.contexts))


with_context_rows = jax.jit(batch_rows)


def parts(tree, count: int, rows: int | None = None):
    """`[B, ...]` to `[count, B / count, ...]`; a part takes every count-th row, so each device has
    its share of every part.

    Given the number of completions, `rows`, the leaves of further streams are split by the
    completion that they grew out of.
    """

    def split(x):
        group = x.shape[0] // (rows or x.shape[0])
        x = x.reshape(-1, count, group, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(count, -1, *x.shape[3:])

    return jax.tree.map(split, tree)


def whole(tree, group: int = 1):
    """The inverse of `parts`, for leaves that have `group` rows a completion."""

    def join(x):
        x = x.reshape(x.shape[0], -1, group, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(-1, *x.shape[3:])

    return jax.tree.map(join, tree)


@functools.partial(jax.jit, static_argnames="count")
def by_length(mask: Bool[Array, "b t"], count: int) -> Int[Array, "s r"]:
    """An order of each device's rows in which `parts` puts rows of like lengths together: for every
    row its place among those of the device.
    """
    lengths = mask.sum(axis=1).reshape(ways(len(mask), "batch"), -1)
    order = jnp.argsort(lengths, axis=1, stable=True)
    # A part takes every count-th row.
    split = order.reshape(len(lengths), count, -1)
    # Whole on every host, whatever else is being computed when it is read.
    return constrain(split.swapaxes(1, 2).reshape(lengths.shape), None, None)


@jax.jit
def rearranged(tree, places: Int[Array, "s r"] | None):
    """Arrays `[B, ...]` in that order."""
    if places is None:
        return tree
    take = lambda x: of_shards(x, len(places), 0, lambda rows, i: rows[i], places)
    return jax.tree.map(take, tree)


def in_rollout(places: np.ndarray) -> np.ndarray:
    """`[B]`: the rows' places in the whole batch."""
    devices, rows = places.shape
    return (places + np.arange(devices)[:, None] * rows).reshape(-1)


def widths(length: int) -> tuple[int, ...]:
    """The widths that a part of a batch of this length may have; each is a program to compile, so
    there are few, and short batches have one.

    At answers of lognormal length (median 200, sigma .7, limit 1,024) four parts of 64 rows on one
    device have half the columns that one part would have, eight parts on eight devices 54 %.
    """
    return tuple(dict.fromkeys(-(-length // n) for n in (1, 2, 4) if length >= 128 * n))


def in_width(
    function: Callable[[Batch], tuple[Any, Any]], part: Batch, *, count: int
) -> tuple[Any, Any]:
    """`function` of a micro-batch, one of `count`, without the columns that all its rows leave
    empty; a whole batch has none.

    Args:
      function: to what it makes of each token, arrays `[b, T, ...]`, which comes back as long as
        the batch with zeros at the end, and other things.
    """
    length = part.tokens.shape[1]
    choices = widths(length) if count > 1 else ()
    if not choices[1:]:
        return function(part)
    columns = jnp.max(jnp.where(part.mask.any(axis=0), jnp.arange(1, length + 1), 0))

    def at(width: int, part: Batch):
        of_tokens, rest = function(cut(part, width))
        fill = lambda x: jnp.pad(x, [(0, 0), (0, length - width), *[(0, 0)] * (x.ndim - 2)])
        return jax.tree.map(fill, of_tokens), rest

    narrowest = sum((columns <= width).astype(jnp.int32) for width in choices[1:])
    branches = [functools.partial(at, width) for width in choices]
    return jax.lax.switch(narrowest, branches, part)


def cut(batch: Batch, width: int) -> Batch:
    """The first columns; of arrays `[B, 1]` the one that they have."""
    first = lambda tree: jax.tree.map(lambda x: x[:, :width], tree)
    return batch._replace(
        tokens=first(batch.tokens),
        mask=first(batch.mask),
        inputs=first(batch.inputs),
        hidden=first(batch.hidden),
        extras=first(batch.extras),
    )
