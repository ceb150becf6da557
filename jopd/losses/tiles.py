"""Sums over a vocabulary that is cut into tiles: what a tile is, what is summed of it, and how the
sums of two parts become those of both.

A sum under an exponential is kept relative to the largest logit so far, as in Milakov and
Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867. Where the vocabulary lies
on several devices every shard has sums of its own, on an axis beside the tokens', so that nothing
travels from tile to tile.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jopd.losses.chunked import Scored
from jopd.losses.vocabulary import product

# The student among the readers; a view has a name.
OWN = ""


class Tiling(NamedTuple):
    """How the vocabulary is cut.

    Attributes:
      vocabulary: the first so many columns of every head count; the rest only pad it.
      size: entries of a tile, in each shard.
      shards: parts of equal size that the vocabulary lies in, each on devices of its own.
      block: positions a row at a time; 0 takes all at once.
      constrain: places an array by its logical axes: "stage_rows" for the batch, "stage_entries"
        for the shards.
    """

    vocabulary: int
    size: int
    shards: int = 1
    block: int = 0
    constrain: Callable[..., Array] = lambda x, *axes: x

    @property
    def width(self) -> int:
        """Entries of a shard."""
        return self.vocabulary // self.shards


class Tile(NamedTuple):
    """Some entries of every shard.

    Attributes:
      logits: by reader, [B, T, shards, size].
      own: which of them no other tile has, [1, 1, 1, size].
      sampled: which are their position's token, [B, T, shards, size].
      head: the student's columns [d, shards, size], in the type of its hidden states.
      start: where the columns begin in each shard.
    """

    logits: dict[str, Array]
    own: Array
    sampled: Array
    head: Array
    start: Array


class OfReader(NamedTuple):
    """Of some entries z of a reader's logits, arrays [B, T, shards].

    Attributes:
      top: the largest.
      mass: sum of w = exp(z - top).
      excess: sum of w (z - top).
      token: the logit of the sampled token, 0 where it is not among them.
    """

    top: Array
    mass: Array
    excess: Array
    token: Array


class OfView(NamedTuple):
    """Of the same entries of student and view, arrays [B, T, shards].

    Attributes:
      student: sum of w_s d.
      teacher: sum of w_t d.
      agree: whether an entry is the largest of both, or one of the largest where some are equal.
    """

    student: Array
    teacher: Array
    agree: Array


Sums = tuple[dict[str, OfReader], dict[str, OfView]]


def sums_of(tile: Tile) -> Sums:
    """The sums over one tile.

    >>> scored = Scored(jnp.ones((1, 1, 1)), jnp.array([[3.0, 3.0]]))
    >>> tile = tiles(Tiling(2, size=2), {OWN: scored}, jnp.zeros((1, 1), int))(jnp.array(0))
    >>> print(sums_of(tile)[0][OWN].mass)
    [[[2.]]]
    """
    total = lambda values: jnp.sum(values, axis=-1)
    tops, weights, sums = {}, {}, {}
    for name, z in tile.logits.items():
        tops[name] = jnp.max(jnp.where(tile.own, z, -jnp.inf), axis=-1)
        below = z - tops[name][..., None]
        weights[name] = jnp.where(tile.own, jnp.exp(below), 0)
        token = total(jnp.where(tile.sampled, z, 0))
        weight = weights[name]
        sums[name] = OfReader(tops[name], total(weight), total(weight * below), token)
    largest = lambda name: tile.logits[name] == tops[name][..., None]
    gaps = {}
    for view in (name for name in tile.logits if name != OWN):
        gap = tile.logits[OWN] - tile.logits[view]
        agree = jnp.any(tile.own & largest(OWN) & largest(view), axis=-1)
        gaps[view] = OfView(total(weights[OWN] * gap), total(weights[view] * gap), agree)
    return sums, gaps


def combined(parts: Sums, axis: int) -> Sums:
    """The sums of several parts of the vocabulary, which lie along an axis, under the largest logit
    of all.

    >>> top, mass, none = jnp.array([0.0, -jnp.log(2.0)]), jnp.ones(2), jnp.zeros(2)
    >>> two = OfReader(top, mass, none, none)
    >>> print(combined(({OWN: two}, {}), axis=0)[0][OWN].mass)
    1.5
    """
    total = lambda values: jnp.sum(values, axis=axis)
    sums, gaps = parts
    tops = {name: jnp.max(of.top, axis=axis, keepdims=True) for name, of in sums.items()}
    below = {name: of.top - tops[name] for name, of in sums.items()}
    scale = {name: jnp.exp(of) for name, of in below.items()}
    joined = {
        name: OfReader(
            jnp.squeeze(tops[name], axis),
            total(scale[name] * of.mass),
            total(scale[name] * (of.excess + below[name] * of.mass)),
            total(of.token),
        )
        for name, of in sums.items()
    }
    kept = {name: of == 0 for name, of in below.items()}
    return joined, {
        view: OfView(
            total(scale[OWN] * of.student),
            total(scale[view] * of.teacher),
            jnp.any(of.agree & kept[OWN] & kept[view], axis=axis),
        )
        for view, of in gaps.items()
    }


def starts(tiling: Tiling, tokens: Int[Array, "B T"]) -> Int[Array, " tiles"]:
    """The first entry, within a shard, that is each tile's own.

    >>> print(starts(Tiling(10, size=4), jnp.zeros((1, 1), int)))
    [0 4 8]
    """
    return jnp.arange(0, tiling.width, tiling.size, dtype=tokens.dtype)


def by_shard(tiling: Tiling, head: Float[Array, "d C"]) -> Float[Array, "d shards _"]:
    """A head's columns, by the shard that they lie in; no copy.

    >>> print(by_shard(Tiling(4, size=1, shards=2), jnp.arange(4.0)[None]))
    [[[0. 1.] [2. 3.]]]
    """
    head = head.reshape(head.shape[0], tiling.shards, -1)
    return tiling.constrain(head, None, "stage_entries", None)


def gathered(tiling: Tiling, hidden: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """Hidden states where the heads are, as rows and vocabulary may be split over the same devices.

    >>> gathered(Tiling(2, size=1), jnp.ones((1, 4, 2))).shape
    (1, 4, 2)
    """
    return tiling.constrain(hidden, "stage_rows", None, None)


def tiles(
    tiling: Tiling, readers: Mapping[str, Scored], tokens: Int[Array, "B T"]
) -> Callable[[Array], Tile]:
    """The tile by the first entry that is its own.

    >>> scored = Scored(jnp.ones((1, 1, 1)), jnp.array([[3.0, 4.0, 5.0]]))
    >>> tile = tiles(Tiling(3, size=2), {OWN: scored}, jnp.zeros((1, 1), int))(jnp.array(2))
    >>> print(tile.logits[OWN][0, 0, 0], tile.own[0, 0, 0])
    [4. 5.] [False True]
    """
    hidden = {name: gathered(tiling, of.hidden) for name, of in readers.items()}
    heads = {name: by_shard(tiling, of.head) for name, of in readers.items()}

    def logits(name, head):
        z = product("btd,dsv->btsv", hidden[name], head)
        return tiling.constrain(z, "stage_rows", None, "stage_entries", None)

    def tile(first) -> Tile:
        # The last one of an uneven cut reaches back to entries of the one before.
        start = jnp.minimum(first, tiling.width - tiling.size)
        columns = start + jnp.arange(tiling.size, dtype=start.dtype)[None, None, None, :]
        before = tiling.width * jnp.arange(tiling.shards, dtype=start.dtype)[None, None, :, None]
        own = columns >= first
        sampled = own & (before + columns == tokens[..., None, None])
        cut = {
            name: jax.lax.dynamic_slice_in_dim(head, start, tiling.size, axis=2).astype(
                hidden[name].dtype
            )
            for name, head in heads.items()
        }
        # The barrier gives every use the very same floats: fused into one of them, a product could
        # differ in the last bit, and so could the logits of equal models.
        z = jax.lax.optimization_barrier({name: logits(name, head) for name, head in cut.items()})
        return Tile(z, own, sampled, cut[OWN], start)

    return tile
