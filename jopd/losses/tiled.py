"""The vocabulary stage in tiles of the vocabulary: many positions at once, a few entries at a time.

`chunked` makes a few positions' whole logits and lets autodiff find its way back through everything
that a method does with them. Most methods need no more than a few sums over the vocabulary, and for
these `moments` knows a shorter way, forward and back.
"""

import math
from collections.abc import Callable, Mapping

from jaxtyping import Array, Int, Shaped

from jopd.losses.chunked import Scored, check_heads, in_range
from jopd.losses.moments import moments
from jopd.losses.stages import silence
from jopd.losses.tiles import Tiling
from jopd.losses.types import Terms, TiledStage

# Of a tile: enough for products that keep a device busy, few enough that a tile is small beside the
# heads whatever the vocabulary; and a multiple of what vector registers and matmul tiles are wide.
_ENTRIES, _LANES = 4096, 128


def tiled_terms(
    stage: TiledStage,
    student: Scored,
    teachers: Mapping[str, Scored],
    tokens: Int[Array, "B T"],
    mask: Shaped[Array, "B T"],
    *,
    chunk: int,
    vocabulary: int,
    shards: int = 1,
    constrain: Callable[..., Array] = lambda x, *axes: x,
) -> Terms:
    """The terms [B, T] that `chunked_terms` makes, for a stage whose settings have a tiled form.

    >>> import jax.numpy as jnp
    >>> from jopd import losses
    >>> scored = Scored(jnp.ones((1, 4, 2)), jnp.eye(2))
    >>> tokens, mask = jnp.zeros((1, 4), int), jnp.ones((1, 4), bool)
    >>> terms = tiled_terms(
    ...     losses.get("opd"), scored, {"teacher": scored}, tokens, mask, chunk=2, vocabulary=2)
    >>> print(terms["divergence"])
    [[0. 0. 0. 0.]]

    Args:
      stage, student, teachers, tokens, mask, vocabulary: as `chunked_terms` has them.
      chunk: positions a row that a tile is made of at once; 0 takes all.
      shards, constrain: as in `Tiling`.

    Raises:
      ValueError: as `chunked_terms`, or shards that are no divisor of the vocabulary.
    """
    chunk = in_range(chunk, tokens.shape[1])
    check_heads(student, teachers, vocabulary)
    if vocabulary % shards:
        raise ValueError(f"shards={shards} must divide the vocabulary of {vocabulary}")
    size = tile_size(vocabulary // shards, at_most=_ENTRIES)
    mask = mask.astype(bool)
    # Hidden states and not logits: a head's gradient is a sum over them, where 0 * NaN is NaN.
    silent = lambda scored: scored._replace(hidden=silence(scored.hidden, mask))
    return stage.tiled_terms(
        moments(
            silent(student),
            {view: silent(scored) for view, scored in teachers.items()},
            silence(tokens, mask),
            Tiling(vocabulary, size, shards, chunk, constrain),
            stage.second_pass,
        )
    )


def tile_size(width: int, *, at_most: int) -> int:
    """Entries of each tile where so many are cut evenly into tiles of whole lanes, the last one
    reaching back over a few that are done.

    >>> tile_size(151936, at_most=4096), tile_size(160, at_most=4096)
    (4096, 160)
    """
    if at_most >= width:
        return width
    tiles = math.ceil(width / max(at_most - at_most % _LANES, _LANES))
    return min(width, math.ceil(width / (tiles * _LANES)) * _LANES)
