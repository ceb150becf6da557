"""A batch as the jitted functions see it, and its rows: one context for each completion, split into
micro-batches and put together again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


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
